# SPDX-License-Identifier: Apache-2.0
"""A proxy's configuration: its options, environment and files, combined and validated."""

from __future__ import annotations

import logging
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigurationError, Objection, refuse
from ..names import CLIENT_TOKEN
from ..net.endpoint import Endpoint
from ..net.reasons import reason
from ..net.route import Route, find_route
from ..protocol.session import SUBPROTOCOLS, Mode, Version
from ..proxy.addresses import Address, BadAddress, match_services, parse_list, read_directory
from ..proxy.flow_control import STALL_SECONDS
from ..proxy.link import TunnelCredentials
from .options import (
    CAPATH_VARIABLE,
    CLIENT_TOKEN_VARIABLE,
    CLIENT_TYPES,
    ENDPOINT_VARIABLE,
    MODES,
    REGION_VARIABLE,
    TOKEN_VARIABLE,
    Options,
)
from .proxy_settings import ProxySettings, read_settings

__all__ = ["Invocation", "read_invocation"]

log = logging.getLogger(__name__)

_DEFAULT_CONFIG_DIR = Path("config")

# The reference documents the first name; its code, as of version 3.0, reads the second.
_CLIENT_TOKEN_VARIABLES = (CLIENT_TOKEN_VARIABLE, "AWSIOT_CLIENT_TOKEN")

_BIND_ADDRESS = re.compile(r"[A-Za-z0-9._:%\[\]-]+\Z")
_MALFORMED = "a client token has 32 to 128 letters, digits and dashes (^[a-zA-Z0-9-]{32,128}$), like a UUID"


class Addresses(NamedTuple):
    """The configured addresses of services."""

    configured: Mapping[str, Address | BadAddress]
    where: str
    """The option or the directory that they come from."""
    in_files: bool = False
    """Whether they come from files, which may also be for other tunnels."""


@dataclass(frozen=True)
class Invocation:
    """A command line, combined with its environment and its files."""

    route: Route
    access: TunnelCredentials
    addresses: Addresses
    bind_address: str | None
    destination_version: Version | None
    stall_seconds: float
    settings: ProxySettings
    strict: bool = False
    """Whether to reject what the reference ignores."""

    def plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        """Give each service of the tunnel its address; a :data:`~..proxy.Plan`."""
        amiss = _objection(strict=self.strict)
        return match_services(
            self.addresses.configured,
            offered,
            self.access.mode,
            self.addresses.where,
            surplus=amiss if self.addresses.in_files else refuse,
            bare=amiss,
        )


def read_invocation(options: Options, environment: Mapping[str, str]) -> Invocation:
    """Combine the options with the environment and with the files that they name.

    Raises:
        ConfigurationError: something is missing, invalid or contradictory; the text names the option.
    """
    amiss = _objection(strict=options.strict)
    for problem, instead in options.amiss:
        amiss(problem, instead)
    settings = (
        read_settings(Path(options.get("settings-json")), amiss) if options.get("settings-json") else ProxySettings()
    )
    mode = _mode(options)
    addresses = _addresses(options, mode, amiss)
    bind_address = options.get("local-bind-address")
    endpoint = _endpoint(options, environment, settings)
    access = TunnelCredentials(
        mode, _token(options, environment), _client_token(options, environment, amiss), _versions(options)
    )
    if mode is Mode.SOURCE and bind_address is not None:
        _check_address(bind_address, options.label("local-bind-address"), strict=options.strict)
    return Invocation(
        route=find_route(
            endpoint,
            environment,
            capath=options.get("capath") or environment.get(CAPATH_VARIABLE) or None,
            verify=not options.get("no-ssl-host-verify"),
            ping_seconds=settings.ping_seconds,
            amiss=amiss,
        ),
        access=access,
        addresses=addresses,
        bind_address=bind_address,
        destination_version=_destination_version(options, amiss),
        stall_seconds=options.get("stall-seconds", STALL_SECONDS),
        settings=settings,
        strict=options.strict,
    )


def _objection(*, strict: bool) -> Objection:
    return refuse if strict else _warn


def _warn(problem: str, instead: str) -> None:
    log.warning("%s; %s (--strict refuses this)", problem, instead)


def _destination_version(options: Options, amiss: Objection) -> Version | None:
    given = options.get("destination-client-type", "auto")
    if given not in CLIENT_TYPES:
        label = options.label("destination-client-type")
        amiss(f"{label}: '{given}' is none of {', '.join(CLIENT_TYPES)}", "V3 is assumed")
        return Version.V3
    return None if given == "auto" else Version[given]


def _mode(options: Options) -> Mode:
    listens, connects = "source-listen-port" in options.given, "destination-app" in options.given
    if listens and connects:
        raise ConfigurationError(
            f"{options.label('source-listen-port')} and {options.label('destination-app')} exclude each other"
        )
    if "mode" not in options.given:
        if not listens and not connects:
            raise ConfigurationError("one of -s/--source-listen-port, -d/--destination-app and -m/--mode is required")
        return Mode.SOURCE if listens else Mode.DESTINATION
    mode = MODES[options.get("mode")]
    if (listens and mode is Mode.DESTINATION) or (connects and mode is Mode.SOURCE):
        other = options.label("source-listen-port" if listens else "destination-app")
        raise ConfigurationError(
            f"{options.label('mode')} {options.get('mode')} contradicts {other}, which is for the other end"
        )
    return mode


def _versions(options: Options) -> tuple[Version, ...]:
    forced = options.get("protocol-version")
    return tuple(SUBPROTOCOLS) if forced is None else (Version[forced],)


def _token(options: Options, environment: Mapping[str, str]) -> str:
    given = options.get("access-token")
    token = (given or environment.get(TOKEN_VARIABLE) or "").strip()
    if not token:
        raise ConfigurationError(f"no access token: give one in {TOKEN_VARIABLE}, or with -t/--access-token")
    if not token.isascii() or not token.isprintable() or " " in token:
        where = options.label("access-token") if given else TOKEN_VARIABLE
        raise ConfigurationError(f"{where}: the access token has invalid characters: was it copied completely?")
    return token


def _client_token(options: Options, environment: Mapping[str, str], amiss: Objection) -> str:
    token: str | None = options.get("client-token")
    where = "" if token is None else options.label("client-token")
    if token == "":
        amiss(f"{where}: {_MALFORMED}", "the empty one is ignored")
        token = None
    for name in _CLIENT_TOKEN_VARIABLES:
        if token is None and environment.get(name):
            token, where = environment[name], name
    if token is None:
        return str(uuid.uuid4())
    if not CLIENT_TOKEN.match(token):
        raise ConfigurationError(f"{where}: {_MALFORMED}")
    return token


def _endpoint(options: Options, environment: Mapping[str, str], settings: ProxySettings) -> Endpoint:
    given, region = options.get("proxy-endpoint"), options.get("region")
    if given and region:
        raise ConfigurationError(f"{options.label('proxy-endpoint')} and {options.label('region')} exclude each other")
    if given:
        return _parse_endpoint(given, options.label("proxy-endpoint"))
    where = options.label("region") if region else REGION_VARIABLE
    region = region or environment.get(REGION_VARIABLE)
    of_region = _endpoint_of(region, where, settings) if region else None
    if environment.get(ENDPOINT_VARIABLE):
        return _parse_endpoint(environment[ENDPOINT_VARIABLE], ENDPOINT_VARIABLE)
    if of_region is None:
        raise ConfigurationError(
            f"one of -r/--region and -e/--proxy-endpoint is required (or {REGION_VARIABLE}, {ENDPOINT_VARIABLE})"
        )
    return of_region


def _parse_endpoint(text: str, where: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _endpoint_of(region: str, where: str, settings: ProxySettings) -> Endpoint:
    try:
        return settings.endpoint_of(region)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _addresses(options: Options, mode: Mode, amiss: Objection) -> Addresses:
    for name in ("source-listen-port", "destination-app"):
        if name in options.given:
            label = options.label(name)
            listed = parse_list(options.get(name), label, mode, amiss)
            if listed:
                return Addresses(listed, label)
    given = options.get("config-dir")
    directory = Path(given) if given else _DEFAULT_CONFIG_DIR
    if given and not directory.is_dir():
        raise ConfigurationError(f"{options.label('config-dir')}: there is no directory {directory}")
    configured = read_directory(directory, mode, amiss) if directory.is_dir() else {}
    if mode is Mode.DESTINATION and not configured:
        raise ConfigurationError(
            f"a destination needs addresses: give -d/--destination-app, as in -d SSH1=22,HTTP1=80, or files with lines "
            f"like 'SSH1 = 22' below {directory}/ (--config-dir)"
        )
    return Addresses(configured, f"{directory}/", in_files=True)


def _check_address(host: str, where: str, *, strict: bool) -> None:
    """Check that an address is valid to listen on; with ``strict``, that this machine has it now."""
    try:
        host.encode("idna")
        if strict or not _BIND_ADDRESS.match(host):
            _bind(host)
    except (OSError, UnicodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "not a host name"
        raise ConfigurationError(f"{where}: cannot listen on '{host}': {why}") from None


def _bind(host: str) -> None:
    family, kind, number, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, number) as sock:
        sock.bind(address)
