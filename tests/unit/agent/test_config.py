# SPDX-License-Identifier: GPL-3.0-or-later
"""``agent.yml``: what it may say, and which key an error names."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path

import pytest

from tunnelproxy.agent.config import AgentConfig, examine, read_config
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.proxy.addresses import TcpAddress, UnixAddress
from tunnelproxy.service.state.certificates import Certificates

LEAST = "thing: pump\nbroker: {host: mqtt.example.com}\nservices: {SSH1: 22}\n"


def read(folder: Path, text: str, **environment: str) -> AgentConfig:
    path = folder / "agent.yml"
    path.write_text(text)
    path.chmod(0o600)
    return read_config(path, environment)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    return made


def test_little_has_to_be_said(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST)
    assert config.services == {"SSH1": TcpAddress(None, 22)}
    assert (config.broker.port, config.broker.client_id, config.broker.user) == (8883, "pump-tunnels", None)
    assert config.broker.tls is not None
    assert config.broker.tls.verify_mode is ssl.CERT_REQUIRED
    assert config.broker.tls.check_hostname
    assert (config.endpoint, config.capath, config.state_dir) == (None, None, None)
    assert config.warnings == ()


def test_all_can_be_said_and_paths_start_from_the_file(tmp_path: Path, certificates: Certificates) -> None:
    (tmp_path / "password").write_text("the password\n")
    (tmp_path / "password").chmod(0o600)
    config = read(
        tmp_path,
        "thing: pump\n"
        "broker: {host: '::1', port: 8884, ca: ca/ca.pem, cert: keys/server.pem, key: keys/server-key.pem,\n"
        "  user: joe, password_file: password, client_id: me, keepalive: 60}\n"
        "services: {SSH1: 22, HTTP1: '10.0.0.1:80', CAM1: /run/camera.sock}\n"
        "allow: [22, '10.0.0.1:*', /run/camera.sock]\n"
        "endpoint: tunnels.example.com:8443\ncapath: ca\nstate_dir: state\nmax_tunnels: 2\n",
    )
    assert str(config.broker) == "[::1]:8884"
    broker = config.broker
    assert (broker.user, broker.password, broker.client_id, broker.keepalive) == ("joe", "the password", "me", 60)
    assert config.services["HTTP1"] == TcpAddress("10.0.0.1", 80)
    assert config.services["CAM1"] == UnixAddress("/run/camera.sock")
    assert str(config.endpoint) == "tunnels.example.com:8443"
    assert (config.capath, config.state_dir) == (str(tmp_path / "ca"), tmp_path / "state")
    assert config.max_tunnels == 2
    assert config.warnings == ()
    assert "the password" not in repr(config)


def test_systemd_says_where_the_state_is(tmp_path: Path) -> None:
    assert read(tmp_path, LEAST, STATE_DIRECTORY="/var/lib/a:/var/lib/b").state_dir == Path("/var/lib/a")


def test_a_password_that_others_can_read_is_exposed(tmp_path: Path) -> None:
    path = tmp_path / "agent.yml"
    path.write_text(LEAST.replace("com}", "com, user: u, password: p}"))
    path.chmod(0o644)
    config = read_config(path, {})
    [exposed] = config.exposed
    assert exposed.endswith(f"contains a password, and every user can read it: chmod 600 {path}")
    path.chmod(0o640)
    config = read_config(path, {})
    assert config.exposed == ()
    assert "its group can read it" in config.warnings[0]


def test_a_key_that_others_can_read_is_exposed(tmp_path: Path, certificates: Certificates) -> None:
    certificates.server_key.chmod(0o644)
    config = read(tmp_path, LEAST.replace("com}", "com, cert: keys/server.pem, key: keys/server-key.pem}"))
    [exposed] = config.exposed
    assert "contains the device's key" in exposed


def test_each_top_level_key_may_have_its_fault(tmp_path: Path) -> None:
    path = tmp_path / "agent.yml"
    path.write_text("thing: a/b\nbroker: {port: x}\nservices: {SSH1: x y}\ncapath: none.pem\nmax_tunnels: 0\nfoo: 1\n")
    config, faults = examine(path, {})
    assert config is None
    assert [fault.removeprefix(f"{path}: ").partition(":")[0] for fault in faults] == [
        "thing",
        "broker.port",
        "services.SSH1",
        "capath",
        "max_tunnels",
        "foo",
    ]


def test_without_tls_there_is_a_warning(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST.replace("com}", "com, tls: false}"))
    assert (config.broker.tls, config.broker.port) == (None, 1883)
    assert "tokens can be read on the network" in config.warnings[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "thing: missing"),
        ("- a", "must be a mapping: lines like 'key: value'"),
        ("a: [", "agent.yml is not YAML (line 1)"),
        (LEAST.replace("pump", "a/b"), "thing: 'a/b' is not the name of a thing"),
        (LEAST.replace("pump", "[a]"), "thing: must be a single string or number"),
        (LEAST + "service: {}\n", "agent.yml: service: unknown key; valid keys: allow, broker"),
        (LEAST.replace("com}", "com, prot: 1}"), "agent.yml: broker.prot: unknown key"),
        (LEAST.replace("host: mqtt.example.com", ""), "broker.host: missing"),
        (LEAST.replace("mqtt.example.com", "mqtts://a"), "broker.host: 'mqtts://a' is not a host name or an address"),
        (LEAST + "capath: agent.yml\n", "capath: no readable certificate in"),
        (LEAST.replace("com}", "com, port: 70000}"), "broker.port: must be a number from 1 to 65535"),
        (LEAST.replace("com}", "com, port: '1'}"), "broker.port: must be a number from 1 to 65535"),
        (LEAST.replace("com}", "com, tls: 1}"), "broker.tls: must be true or false"),
        (LEAST.replace("com}", "com, tls: false, ca: x}"), "broker.ca: not valid with 'tls: false'"),
        (LEAST.replace("com}", "com, ca: nowhere.pem}"), "broker.ca: cannot read"),
        (LEAST.replace("com}", "com, ca: agent.yml}"), "broker.ca: no certificate in"),
        (LEAST.replace("com}", "com, cert: a}"), "broker.key: missing"),
        (LEAST.replace("com}", "com, key: a}"), "broker.cert: missing"),
        (LEAST.replace("com}", "com, cert: a, key: b}"), "broker.cert: cannot read"),
        (LEAST.replace("com}", "com, cert: agent.yml, key: agent.yml}"), "are not a certificate in PEM and its key"),
        (LEAST.replace("com}", "com, password: HIDDEN}"), "broker.user: missing, but there is a password"),
        (
            LEAST.replace("com}", "com, user: u, password: HIDDEN, password_file: b}"),
            "cannot be used together with 'password_file'",
        ),
        (LEAST.replace("com}", "com, user: u, password_file: b}"), "broker.password_file: cannot read"),
        (LEAST.replace("{SSH1: 22}", "{}"), "services: no service: give"),
        (LEAST.replace("{SSH1: 22}", "{a b: 22}"), "services.a b: not a service ID"),
        (LEAST.replace("SSH1: 22", "SSH1: x y"), "services.SSH1: 'x y' is not an address"),
        (LEAST.replace("SSH1: 22", "SSH1: 10.0.0.1:22"), "SSH1 leads to 10.0.0.1:22, which the allow list does not"),
        (LEAST + "allow: 22\n", "allow: must be a list of strings"),
        (LEAST + "allow: [x y]\n", "allow: 'x y' is not an address"),
        (LEAST + "endpoint: 'a b'\n", "endpoint: 'a b' is not HOST or HOST:PORT"),
        (LEAST + "max_tunnels: 0\n", "max_tunnels: must be a number from 1 to 1000"),
    ],
)
def test_an_error_names_the_key(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(error)) as caught:
        read(tmp_path, text)
    assert "HIDDEN" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"cannot read {tmp_path}{os.sep}none.yml")):
        read_config(tmp_path / "none.yml", {})
