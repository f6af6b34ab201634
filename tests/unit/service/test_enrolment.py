# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written for a device is what its agent reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.agent.config import read_config
from tunnelproxy.proxy.addresses import TcpAddress, UnixAddress
from tunnelproxy.service.enrolment import Description, add_thing, describe_thing, remove_thing
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.state.certificates import Certificates
from tunnelproxy.service.state.directory import Endpoints, StateDirectory
from tunnelproxy.service.state.store import Store

SERVICES = {"SSH1": "localhost:22", "HTTP1": "10.0.0.1:80", "CAM1": "/run/a b.sock"}


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return prepared(tmp_path / "state")


def prepared(path: Path) -> StateDirectory:
    made = StateDirectory(path)
    made.create()
    made.broker_files.mkdir()
    Certificates(made.keys, made.ca).ensure("example.com")
    made.write_endpoints(Endpoints("example.com", 1, 2))
    return made


def test_with_the_services_own_broker(state: StateDirectory, tmp_path: Path) -> None:
    BrokerAddress("example.com", 3, embedded=True).write(state.broker_address)
    enrolment = add_thing(state, "pump", SERVICES, tmp_path / "pump")
    config = read_config(enrolment.directory / "agent.yml", {})
    assert enrolment.password_line is None
    assert (config.thing, config.broker.user, str(config.broker)) == ("pump", "pump", "example.com:3")
    assert config.broker.password == (tmp_path / "pump" / "password").read_text().strip()
    assert str(config.endpoint) == "example.com:2"
    assert config.services == {
        "SSH1": TcpAddress("localhost", 22),
        "HTTP1": TcpAddress("10.0.0.1", 80),
        "CAM1": UnixAddress("/run/a b.sock"),
    }
    assert config.warnings == ()


@pytest.mark.parametrize("encrypted", [True, False])
def test_with_a_broker_that_runs_elsewhere(state: StateDirectory, tmp_path: Path, encrypted: bool) -> None:
    ca = str(state.ca / "ca.pem") if encrypted else ""
    BrokerAddress("::1", 3, encrypted, "joe", ca).write(state.broker_address)
    enrolment = add_thing(state, "no", SERVICES, tmp_path / "no")
    config = read_config(enrolment.directory / "agent.yml", {})
    # "no" is a word of YAML's.
    assert config.thing == "no"
    assert enrolment.password_line is not None
    assert enrolment.password_line.startswith("no:$7$")
    assert (config.broker.tls is not None) == encrypted
    assert (tmp_path / "no" / "broker-ca.pem").exists() == encrypted


def test_a_service_that_listens_everywhere_cannot_say_where_it_is(state: StateDirectory, tmp_path: Path) -> None:
    BrokerAddress("0.0.0.0", 3, embedded=True).write(state.broker_address)
    state.write_endpoints(Endpoints("0.0.0.0", 1, 2))
    with pytest.raises(ServiceError, match="run it with --public-name"):
        add_thing(state, "pump", SERVICES, tmp_path / "pump")
    assert not (tmp_path / "pump").exists()


@pytest.mark.parametrize("embedded", [True, False])
def test_with_a_certificate_that_the_device_s_system_trusts(
    state: StateDirectory, tmp_path: Path, embedded: bool
) -> None:
    state.write_endpoints(Endpoints("example.com", 1, 2, own_certificate=True))
    BrokerAddress("example.com", 3, embedded=embedded).write(state.broker_address)
    enrolment = add_thing(state, "pump", SERVICES, tmp_path / "pump")
    config = read_config(enrolment.directory / "agent.yml", {})
    assert (config.capath, str(config.broker)) == (None, "example.com:3")
    assert {file.name for file in enrolment.directory.iterdir()} == {"agent.yml", "password"}


def test_with_a_certificate_of_an_authority_that_the_operator_names(state: StateDirectory, tmp_path: Path) -> None:
    state.write_endpoints(Endpoints("example.com", 1, 2, own_certificate=True))
    BrokerAddress("example.com", 3, embedded=True).write(state.broker_address)
    other = Certificates(tmp_path / "keys", tmp_path / "ca")
    other.ensure("example.com")
    enrolment = add_thing(state, "pump", SERVICES, tmp_path / "pump", authority=other.authority)
    config = read_config(enrolment.directory / "agent.yml", {})
    assert config.capath == str(tmp_path / "pump" / "ca.pem")
    assert Path(config.capath).read_bytes() == other.authority.read_bytes()
    assert config.broker.tls is not None
    assert len(config.broker.tls.get_ca_certs()) == 1
    # Later the operator has a certificate that all systems trust.
    add_thing(state, "pump", SERVICES, tmp_path / "pump", replace=True)
    assert not (tmp_path / "pump" / "ca.pem").exists()


def test_an_authority_that_makes_no_sense_is_refused(state: StateDirectory, tmp_path: Path) -> None:
    BrokerAddress("example.com", 3, embedded=True).write(state.broker_address)
    with pytest.raises(ServiceError, match="--ca: the service has its own certificate authority"):
        add_thing(state, "pump", SERVICES, tmp_path / "pump", authority=state.ca / "ca.pem")
    state.write_endpoints(Endpoints("example.com", 1, 2, own_certificate=True))
    with pytest.raises(ServiceError, match="--ca: cannot read /nowhere: No such file"):
        add_thing(state, "pump", SERVICES, tmp_path / "pump", authority=Path("/nowhere"))


def test_the_registry_knows_a_thing_from_its_enrolment_to_its_removal(state: StateDirectory, tmp_path: Path) -> None:
    def known() -> tuple[str | None, dict[str, str]] | None:
        store = Store(state.database)
        thing = store.find_thing("pump")
        store.close()
        return None if thing is None else (thing.thing_type, thing.attributes)

    BrokerAddress("example.com", 3, embedded=True).write(state.broker_address)
    add_thing(state, "pump", SERVICES, tmp_path / "pump", description=Description("pumps", {"site": "north"}))
    assert known() == ("pumps", {"site": "north"})
    add_thing(state, "pump", SERVICES, tmp_path / "pump", replace=True)
    assert known() == ("pumps", {"site": "north"})
    describe_thing(state, "pump", Description(attributes={"line": "3"}))
    assert known() == ("pumps", {"line": "3"})
    remove_thing(state, "pump")
    assert known() is None
    with pytest.raises(ServiceError, match="no thing pump is enrolled"):
        describe_thing(state, "pump", Description("pumps"))


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (Description("a b"), "--type: 'a b' is not the name of a thing type"),
        (Description(attributes={"a b": ""}), "--attribute: 'a b=' has characters"),
        (Description(attributes={"site": "{{ x }}"}), "--attribute: 'site={{ x }}' has characters"),
        (Description(attributes={"site": "x" * 801}), "or is too long"),
    ],
)
def test_descriptions_that_awss_registry_rejects_are_rejected(
    state: StateDirectory, tmp_path: Path, description: Description, said: str
) -> None:
    BrokerAddress("example.com", 3, embedded=True).write(state.broker_address)
    with pytest.raises(ServiceError, match=said):
        add_thing(state, "pump", SERVICES, tmp_path / "pump", description=description)
    assert not (tmp_path / "pump").exists()
