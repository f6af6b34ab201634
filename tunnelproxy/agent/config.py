# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration file, ``agent.yml``. Relative paths in it start from its own directory."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..addresses import Address, parse_address
from ..errors import ConfigurationError
from ..mqtt import KEEPALIVE_SECONDS, Broker
from ..protocol.framing import SERVICE_ID
from ..protocol.session import Mode
from ..transport.endpoint import Endpoint
from .allow_list import AllowList
from .section import Section

__all__ = ["AgentConfig", "read_config"]

AWS_ALPN = "x-amzn-mqtt-ca"
"""With this name in the TLS handshake, AWS IoT Core speaks MQTT with device certificates on port 443.

Source: "Protocols, port mappings, and authentication", AWS IoT Developer Guide."""

MAX_TUNNELS = 8
STATE_DIRECTORY_VARIABLE = "STATE_DIRECTORY"
"""Set by systemd for a unit with ``StateDirectory=``."""

_THING = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
_MQTT_TLS_PORT = 8883
_MQTT_PORT = 1883
_HTTPS_PORT = 443
_LEAST_KEEPALIVE, _MOST_KEEPALIVE = 5, 1200


@dataclass(frozen=True)
class AgentConfig:
    """What the agent is told.

    Attributes:
        services: what to connect to for each service that a tunnel may carry.
        endpoint: the data plane; None for AWS's in the region that a notification names.
        capath: the authorities to trust at the data plane, instead of the system's.
        state_dir: where to remember tunnels; None to forget them when the agent ends.
        max_tunnels: how many to be in at once.
        warnings: what the operator should know.
    """

    thing: str
    broker: Broker
    services: Mapping[str, Address]
    allow: AllowList
    endpoint: Endpoint | None
    capath: str | None
    state_dir: Path | None
    max_tunnels: int
    warnings: tuple[str, ...]


def read_config(path: Path, environment: Mapping[str, str]) -> AgentConfig:
    """Read a configuration file.

    Raises:
        ConfigurationError: it cannot be read, or says something that the agent cannot do; the key is named.
    """
    root = Section(_load(path), "", str(path), path.absolute().parent)
    thing = root.text("thing", required=True)
    if not _THING.match(thing):
        raise root.error("thing", f"'{thing}' is not the name of a thing: letters, digits, ':', '_' and '-'")
    warnings: list[str] = []
    broker = _broker(root.section("broker"), thing, warnings)
    services = _services(root)
    allow = _allow_list(root)
    allow.check(services, f"{path}: services")
    endpoint = root.text("endpoint")
    state_dir = root.path("state_dir") or environment.get(STATE_DIRECTORY_VARIABLE, "").partition(":")[0]
    config = AgentConfig(
        thing=thing,
        broker=broker,
        services=services,
        allow=allow,
        endpoint=_endpoint(root, endpoint) if endpoint else None,
        capath=root.path("capath") or None,
        state_dir=Path(state_dir) if state_dir else None,
        max_tunnels=root.number("max_tunnels", MAX_TUNNELS, 1, 1000),
        warnings=tuple(warnings),
    )
    root.refuse_others()
    return config


def _load(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; name the file with --config") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a text in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        # Not the error's text: it quotes the line, which may hold the password.
        raise ConfigurationError(f"{path} is not YAML{line}") from None


def _services(root: Section) -> dict[str, Address]:
    services: dict[str, Address] = {}
    given = root.section("services")
    for name in given:
        if not SERVICE_ID.match(name):
            raise given.error(name, "this is not a service ID, such as SSH1")
        services[name] = parse_address(given.text(name, required=True), given.where(name), Mode.DESTINATION)
    if not services:
        raise root.error("services", "there is none: say where each leads, as in 'SSH1: 22'")
    return services


def _allow_list(root: Section) -> AllowList:
    entries = root.texts("allow")
    return AllowList.default() if entries is None else AllowList.parse(entries, root.where("allow"))


def _endpoint(root: Section, text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ConfigurationError:
        raise root.error("endpoint", f"'{text}' is not HOST or HOST:PORT") from None


def _broker(section: Section, thing: str, warnings: list[str]) -> Broker:
    encrypted = section.flag("tls", True)
    port = section.number("port", _MQTT_TLS_PORT if encrypted else _MQTT_PORT, 1, 65535)
    broker = Broker(
        host=section.text("host", required=True),
        port=port,
        # Not the thing's name: an application of the device may be connected under it, and of two clients with one
        # ID the broker disconnects the older.
        client_id=section.text("client_id") or f"{thing}-tunnels",
        tls=_broker_tls(section, port) if encrypted else None,
        user=section.text("user") or None,
        password=_password(section, warnings),
        keepalive=section.number("keepalive", KEEPALIVE_SECONDS, _LEAST_KEEPALIVE, _MOST_KEEPALIVE),
    )
    if not encrypted:
        warnings.append(f"{section.where('tls')}: off, so tokens can be read on the network; use it on loopback only")
        for key in ("ca", "cert", "key", "alpn"):
            if section.text(key):
                raise section.error(key, "it has no use with 'tls: false'")
    if broker.password is not None and broker.user is None:
        raise section.error("user", "it is missing, and there is a password")
    section.refuse_others()
    return broker


def _password(section: Section, warnings: list[str]) -> str | None:
    password, file = section.text("password"), section.path("password_file")
    if password and file:
        raise section.error("password", "it excludes 'password_file'")
    holder = file or (section.file if password else "")
    if holder and os.path.exists(holder) and os.stat(holder).st_mode & 0o044:
        warnings.append(f"{holder} holds a password, and other users can read it: chmod 600 {holder}")
    if not file:
        return password or None
    content = section.read("password_file").strip()
    if not content:
        raise section.error("password_file", f"{file} is empty")
    return content


def _broker_tls(section: Section, port: int) -> ssl.SSLContext:
    ca, cert, key = section.path("ca"), section.path("cert"), section.path("key")
    if bool(cert) != bool(key):
        raise section.error("key" if cert else "cert", "it is missing: a certificate and its key belong together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        _trust(context, section, ca)
    else:
        context.load_default_certs()
    if cert:
        section.read("cert")
        section.read("key")
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError):
            raise section.error("cert", f"{cert} and {key} are not a certificate in PEM and its key") from None
    # Which authenticates with a certificate; with a password, AWS has other names, which need what it calls custom
    # authentication.
    alpn = section.text("alpn") or (AWS_ALPN if port == _HTTPS_PORT and cert else "")
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def _trust(context: ssl.SSLContext, section: Section, ca: str) -> None:
    try:
        if os.path.isdir(ca):
            context.load_verify_locations(capath=ca)
        else:
            section.read("ca")
            context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError):
        raise section.error("ca", f"there is no certificate in {ca}") from None
