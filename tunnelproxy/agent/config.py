# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration file, ``agent.yml``. Relative paths in it start at its own directory."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, TypeVar

import yaml

from ..errors import ConfigurationError
from ..names import SERVICE_ID, THING_NAME
from ..net.endpoint import Endpoint, tls_context
from ..net.mqtt import KEEPALIVE_SECONDS, BrokerLogin
from ..protocol.session import Mode
from ..proxy.addresses import Address, parse_address
from .allow_list import AllowList
from .config_section import Section

__all__ = ["AgentConfig", "examine", "read_config"]

T = TypeVar("T")

_AWS_ALPN = "x-amzn-mqtt-ca"
"""The ALPN name with which AWS IoT Core accepts MQTT with device certificates on port 443.

Source: "Protocols, port mappings, and authentication", AWS IoT Developer Guide."""

_MAX_TUNNELS = 8
_STATE_DIRECTORY_VARIABLE = "STATE_DIRECTORY"
"""Set by systemd for a unit with ``StateDirectory=``."""

_MQTT_TLS_PORT = 8883
_MQTT_PORT = 1883
_HTTPS_PORT = 443
_LEAST_KEEPALIVE, _MOST_KEEPALIVE = 5, 1200


@dataclass(frozen=True)
class AgentConfig:
    """The agent's configuration.

    Attributes:
        services: the address to connect to for each service that a tunnel may carry.
        endpoint: the data plane; None for AWS's in the region that a notification names.
        capath: the CA certificates to trust for the data plane, instead of the system's.
        state_dir: where to save tunnels; None to forget them when the agent stops.
        max_tunnels: how many tunnels to serve at once.
        warnings: sentences for the operator.
        exposed: sentences about secrets that every user of the device can read.
    """

    thing: str
    broker: BrokerLogin
    services: Mapping[str, Address]
    allow: AllowList
    endpoint: Endpoint | None
    capath: str | None
    state_dir: Path | None
    max_tunnels: int
    warnings: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()


def read_config(path: Path, environment: Mapping[str, str]) -> AgentConfig:
    """Read a configuration file.

    Raises:
        ConfigurationError: it cannot be read, or a value is invalid; the text names the key.
    """
    config, faults = examine(path, environment)
    if config is None:
        raise ConfigurationError(faults[0])
    return config


def examine(path: Path, environment: Mapping[str, str]) -> tuple[AgentConfig | None, list[str]]:
    """Read a configuration file, and continue after a problem.

    Returns:
        the configuration, or None if there are problems; and the problems, at most one per top-level key.
    """
    faults: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ConfigurationError as error:
            faults.append(str(error))
            return None

    root = attempt(lambda: Section(_load(path), "", str(path), path.absolute().parent))
    if root is None:
        return None, faults
    thing = attempt(lambda: _thing(root))
    secrets = _Secrets()
    broker = attempt(lambda: _broker(root.section("broker"), thing or "", secrets))
    services = attempt(lambda: _services(root))
    allow = attempt(lambda: _allow_list(root))
    if allow is not None and services is not None:
        attempt(lambda: allow.check(services, f"{path}: services"))
    endpoint = attempt(lambda: _endpoint(root))
    capath = attempt(lambda: _capath(root))
    state_dir = attempt(lambda: root.path("state_dir"))
    max_tunnels = attempt(lambda: root.number("max_tunnels", _MAX_TUNNELS, 1, 1000))
    attempt(root.refuse_others)
    if faults or thing is None or broker is None or services is None or allow is None or max_tunnels is None:
        return None, faults
    state_dir = state_dir or environment.get(_STATE_DIRECTORY_VARIABLE, "").partition(":")[0]
    config = AgentConfig(
        thing=thing,
        broker=broker,
        services=services,
        allow=allow,
        endpoint=endpoint,
        capath=capath,
        state_dir=Path(state_dir) if state_dir else None,
        max_tunnels=max_tunnels,
        warnings=(*secrets.warnings, *_no_tls(root, broker)),
        exposed=tuple(secrets.exposed),
    )
    return config, []


class _Secrets:
    """Collects warnings about users who can read the files with secrets."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.exposed: list[str] = []

    def note(self, file: str, what: str) -> None:
        """Check who can read a file that contains a secret."""
        mode = os.stat(file).st_mode if os.path.exists(file) else 0
        if mode & 0o004:
            self.exposed.append(f"{file} contains {what}, and every user can read it: chmod 600 {file}")
        elif mode & 0o040:
            self.warnings.append(
                f"{file} contains {what}, and its group can read it; if that is not intended: chmod 600 {file}"
            )


def _thing(root: Section) -> str:
    thing = root.text("thing", required=True)
    if not THING_NAME.match(thing):
        raise root.error(
            "thing", f"'{thing}' is not the name of a thing: letters, digits, ':', '_' and '-', 128 at most"
        )
    return thing


def _load(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; name the file with --config") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        # Without the text of the error: it quotes the line, which may contain the password.
        raise ConfigurationError(f"{path} is not YAML{line}") from None


def _services(root: Section) -> dict[str, Address]:
    services: dict[str, Address] = {}
    given = root.section("services")
    for name in given:
        if not SERVICE_ID.match(name):
            raise given.error(name, "not a service ID, such as SSH1")
        services[name] = parse_address(given.text(name, required=True), given.where(name), Mode.DESTINATION)
    if not services:
        raise root.error("services", "no service: give each its address, as in 'SSH1: 22'")
    return services


def _allow_list(root: Section) -> AllowList:
    entries = root.texts("allow")
    return AllowList.default() if entries is None else AllowList.parse(entries, root.where("allow"))


def _endpoint(root: Section) -> Endpoint | None:
    text = root.text("endpoint")
    try:
        return Endpoint.parse(text) if text else None
    except ConfigurationError:
        raise root.error("endpoint", f"'{text}' is not HOST or HOST:PORT") from None


def _capath(root: Section) -> str | None:
    capath = root.path("capath") or None
    if capath is not None:
        try:
            tls_context(capath)
        except ConfigurationError:
            raise root.error(
                "capath",
                f"no readable certificate in {capath}: give an OpenSSL hashed directory or a PEM file",
            ) from None
    return capath


def _no_tls(root: Section, broker: BrokerLogin) -> tuple[str, ...]:
    if broker.tls is not None:
        return ()
    where = root.section("broker").where("tls")
    return (f"{where}: off, so tokens can be read on the network: use this on loopback only",)


def _broker(section: Section, thing: str, secrets: _Secrets) -> BrokerLogin:
    encrypted = section.flag("tls", True)
    port = section.number("port", _MQTT_TLS_PORT if encrypted else _MQTT_PORT, 1, 65535)
    broker = BrokerLogin(
        host=_host(section),
        port=port,
        # Not the thing's name: an application on the device may use it, and the broker disconnects the older of two
        # clients with one ID.
        client_id=section.text("client_id") or f"{thing}-tunnels",
        tls=_broker_tls(section, port, secrets) if encrypted else None,
        user=section.text("user") or None,
        password=_password(section, secrets),
        keepalive=section.number("keepalive", KEEPALIVE_SECONDS, _LEAST_KEEPALIVE, _MOST_KEEPALIVE),
    )
    if not encrypted:
        for key in ("ca", "cert", "key", "alpn"):
            if section.text(key):
                raise section.error(key, "not valid with 'tls: false'")
    if broker.password is not None and broker.user is None:
        raise section.error("user", "missing, but there is a password")
    section.refuse_others()
    return broker


def _host(section: Section) -> str:
    host = section.text("host", required=True)
    if "/" in host:
        raise section.error("host", f"'{host}' is not a host name or an address: remove the '/'")
    return host


def _password(section: Section, secrets: _Secrets) -> str | None:
    password, file = section.text("password"), section.path("password_file")
    if password and file:
        raise section.error("password", "cannot be used together with 'password_file'")
    if password:
        secrets.note(section.file, "a password")
    if not file:
        return password or None
    secrets.note(file, "a password")
    content = section.read("password_file").strip()
    if not content:
        raise section.error("password_file", f"{file} is empty")
    return content


def _broker_tls(section: Section, port: int, secrets: _Secrets) -> ssl.SSLContext:
    ca, cert, key = section.path("ca"), section.path("cert"), section.path("key")
    if bool(cert) != bool(key):
        raise section.error("key" if cert else "cert", "missing: give both the certificate and its key")
    if ca and not os.path.isdir(ca):
        section.read("ca")
    try:
        context = tls_context(ca or None)
    except ConfigurationError:
        raise section.error("ca", f"no certificate in {ca}") from None
    if cert:
        section.read("cert")
        section.read("key")
        secrets.note(key, "the device's key")
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError):
            raise section.error("cert", f"{cert} and {key} are not a certificate in PEM and its key") from None
    # This name is for certificates. For passwords, AWS has other names, which require its custom authentication.
    alpn = section.text("alpn") or (_AWS_ALPN if port == _HTTPS_PORT and cert else "")
    if alpn:
        context.set_alpn_protocols([alpn])
    return context
