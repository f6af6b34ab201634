# SPDX-License-Identifier: Apache-2.0
"""Enrols devices: their entry in the registry, credentials for the MQTT broker, and the agent's configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..names import THING_NAME
from .errors import ServiceError
from .mqtt.broker_address import BrokerAddress
from .mqtt.password_file import PasswordFile, new_password, password_line
from .state.device_folder import DeviceFolder
from .state.directory import Endpoints, StateDirectory
from .state.store import Store

__all__ = ["NO_DESCRIPTION", "Description", "Enrolment", "add_thing", "describe_thing", "remove_thing"]

T = TypeVar("T")

_ATTRIBUTE_NAME = re.compile(r"[a-zA-Z0-9_.,@/:#-]{1,128}")
_ATTRIBUTE_VALUE = re.compile(r"[a-zA-Z0-9_.,@/:#=\[\]-]{0,800}")
_SERVICE_CA = "ca.pem"
_BROKER_CA = "broker-ca.pem"
_ANY_HOST = ("0.0.0.0", "::")  # noqa: S104  to refuse them


@dataclass(frozen=True)
class Enrolment:
    """The result of enrolling a thing.

    Attributes:
        directory: the directory to copy to the device.
        password_line: the line for the password file of an external broker; None for an embedded one.
    """

    directory: Path
    password_line: str | None


@dataclass(frozen=True)
class Description:
    """What the registry stores about a thing in addition to its name; None for no change."""

    thing_type: str | None = None
    attributes: Mapping[str, str] | None = None

    def check(self) -> None:
        """Check that AWS IoT's registry would accept the description.

        Raises:
            ServiceError: it would not.
        """
        if self.thing_type is not None and not THING_NAME.match(self.thing_type):
            raise ServiceError(
                f"--type: '{self.thing_type}' is not the name of a thing type: use letters, digits, ':', '_' and "
                "'-', 128 at most"
            )
        for name, value in (self.attributes or {}).items():
            if not _ATTRIBUTE_NAME.fullmatch(name) or not _ATTRIBUTE_VALUE.fullmatch(value):
                raise ServiceError(
                    f"--attribute: '{name}={value}' has characters that AWS IoT does not allow, or is too long: use "
                    "letters, digits and _.,@/:#-, at most 128 for the name and 800 for the value"
                )


NO_DESCRIPTION = Description()


def add_thing(
    state: StateDirectory,
    thing: str,
    services: Mapping[str, str],
    output: Path,
    *,
    authority: Path | None = None,
    replace: bool = False,
    description: Description = NO_DESCRIPTION,
) -> Enrolment:
    """Enrol a device, and write the files that its agent needs.

    Args:
        state: the service's state directory.
        thing: the thing's name.
        services: the address of each service on the device.
        output: the directory to write to.
        authority: the authority of the operator's certificate, if any; None if the device's system trusts it.
        replace: whether to give an already enrolled thing a new password, and to overwrite the files.
        description: what the registry stores about it.

    Raises:
        ServiceError: the service has no broker, the thing is enrolled already, or the files cannot be written.
    """
    if not THING_NAME.match(thing):
        raise ServiceError(f"'{thing}' is not the name of a thing: use letters, digits, ':', '_' and '-', 128 at most")
    description.check()
    given = None if authority is None else _read(authority, "--ca")
    with state.entered():
        broker, endpoints = _broker(state), _endpoints(state)
        authorities = _authorities(state, given, broker, endpoints)
        passwords = PasswordFile(state.broker_files / "passwords")
        is_known = broker.embedded and passwords.has(thing)
    with DeviceFolder.opened(output) as folder:
        if not replace and (is_known or folder.has("agent.yml")):
            raise ServiceError(
                f"{thing} is enrolled already; --replace gives it a new password and invalidates the old one"
            )
        for name, content in ((_SERVICE_CA, authorities.service), (_BROKER_CA, authorities.of_broker)):
            # A file of an earlier enrolment may not be valid for this one.
            folder.remove(name) if content is None else folder.write(name, content)
        with state.entered():
            password = passwords.set(thing) if broker.embedded else new_password()
            _in_registry(state, lambda store: store.put_thing(thing, description.thing_type, description.attributes))
        folder.write("password", f"{password}\n".encode())
        folder.write("agent.yml", _configuration(thing, broker, authorities, endpoints, services).encode())
    return Enrolment(output, None if broker.embedded else password_line(thing, password))


def describe_thing(state: StateDirectory, thing: str, description: Description) -> None:
    """Change the registry's description of an enrolled thing.

    Raises:
        ServiceError: the thing is not enrolled, or the description is not valid.
    """
    description.check()

    def change(store: Store) -> None:
        if store.find_thing(thing) is None:
            raise ServiceError(f"no thing {thing} is enrolled; enrol it with: tunnelproxy service add-thing")
        store.put_thing(thing, description.thing_type, description.attributes)

    with state.entered():
        _in_registry(state, change)


def remove_thing(state: StateDirectory, thing: str) -> None:
    """Remove a thing and its password: it can no longer connect to the broker.

    Raises:
        ServiceError: there is no such thing, or the broker is external, so the service cannot remove its user.
    """
    with state.entered():
        known = bool(THING_NAME.match(thing)) and _in_registry(state, lambda store: store.remove_thing(thing))
        if not _broker(state).embedded:
            raise ServiceError("the service uses an external MQTT broker: remove the thing's user there")
        if THING_NAME.match(thing):
            known = PasswordFile(state.broker_files / "passwords").remove(thing) or known
    if not known:
        raise ServiceError(f"no thing {thing} is enrolled")


def _in_registry(state: StateDirectory, act: Callable[[Store], T]) -> T:
    store = Store(state.database)
    try:
        return act(store)
    finally:
        store.close()


def _broker(state: StateDirectory) -> BrokerAddress:
    broker = BrokerAddress.read(state.broker_address)
    if broker is None:
        raise ServiceError(
            f"the tunneling service in {state.path} has no MQTT broker: run it with --mqtt-port, which starts one, or "
            "with --mqtt-broker"
        )
    return broker


def _endpoints(state: StateDirectory) -> Endpoints:
    endpoints = state.read_endpoints()
    if endpoints is None:
        raise ServiceError(f"the tunneling service in {state.path} has never been started; start it first")
    if endpoints.host in _ANY_HOST:
        raise ServiceError(
            f"the service listens on {endpoints.host}, which is not an address that devices can connect to: run it "
            "with --public-name and a name or address that devices can reach"
        )
    return endpoints


@dataclass(frozen=True)
class _Authorities:
    """The certificate authorities for the device, in PEM; None for those that the device's system trusts."""

    service: bytes | None
    broker: bytes | None
    is_one: bool

    @property
    def of_broker(self) -> bytes | None:
        """The file for the broker alone; None if the broker has the service's authority."""
        return None if self.is_one else self.broker

    @property
    def broker_file(self) -> str:
        """The name of the file with the broker's authority."""
        return _SERVICE_CA if self.is_one else _BROKER_CA


def _authorities(
    state: StateDirectory, given: bytes | None, broker: BrokerAddress, endpoints: Endpoints
) -> _Authorities:
    if given is not None and not endpoints.own_certificate:
        raise ServiceError("--ca: the service has its own certificate authority, not --certificate; omit --ca")
    service = given if endpoints.own_certificate else _read(state.ca / "ca.pem", "--ca")
    if broker.embedded:
        return _Authorities(service, service, is_one=True)
    if not broker.ca:
        return _Authorities(service, None, is_one=False)
    if Path(broker.ca).is_dir():
        raise ServiceError(
            f"--mqtt-ca {broker.ca} is a directory: run the service with a file, which can be given to devices"
        )
    return _Authorities(service, _read(Path(broker.ca), "--mqtt-ca"), is_one=False)


def _read(source: Path, option: str) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise ServiceError(f"{option}: cannot read {source}: {error.strerror}") from error


def _configuration(
    thing: str, broker: BrokerAddress, authorities: _Authorities, endpoints: Endpoints, services: Mapping[str, str]
) -> str:
    # JSON strings are YAML strings too, whatever they contain.
    lines = [
        "# Configuration of this device's agent. docs/agent.md lists all settings.",
        "# Copy this directory to the device, and start the agent in it:",
        "#   tunnelproxy agent run --config agent.yml",
        f"thing: {json.dumps(thing)}",
        "broker:",
        f"  host: {json.dumps(broker.host)}",
        f"  port: {broker.port}",
        *([] if broker.encrypted else ["  tls: false"]),
        *([f"  ca: {authorities.broker_file}"] if authorities.broker is not None else []),
        f"  user: {json.dumps(thing)}",
        "  password_file: password",
        "services:",
        *(f"  {json.dumps(name)}: {json.dumps(address)}" for name, address in services.items()),
        *_allowed(services),
        f"endpoint: {json.dumps(endpoints.data)}",
        *([f"capath: {_SERVICE_CA}"] if authorities.service is not None else []),
    ]
    return "\n".join(lines) + "\n"


def _allowed(services: Mapping[str, str]) -> list[str]:
    """The allow list with exactly these services."""
    return ["allow:", *(f"  - {json.dumps(address)}" for address in services.values())]
