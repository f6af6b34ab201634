# SPDX-License-Identifier: Apache-2.0
"""The parts of ``tunnelproxy service`` for devices: the MQTT broker, and enrolment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..service.enrolment import Description
    from ..service.mqtt.notifier import BrokerSettings
    from ..service.state.directory import StateDirectory

__all__ = ["add_broker_options", "add_parser", "broker_settings"]

_DEFAULT_SERVICES = "SSH1=22,HTTP1=80"

Command = Callable[[argparse.Namespace], None]


def add_parser(
    commands: argparse._SubParsersAction[Any],
    add_state_dir: Callable[[argparse.ArgumentParser], None],
    reporting: Callable[[Command], Callable[[argparse.Namespace], int]],
    state: Callable[[argparse.Namespace], StateDirectory],
) -> None:
    """Add ``add-thing``, ``describe-thing`` and ``remove-thing``."""
    add = commands.add_parser("add-thing", help="enrol a device, and write the files for its agent")
    add_state_dir(add)
    add.add_argument("name", metavar="NAME", help="the thing's name")
    add.add_argument("--output", type=Path, metavar="DIR", help="the directory to write to (default: ./NAME)")
    add.add_argument(
        "--services",
        default=_DEFAULT_SERVICES,
        metavar="ID=ADDRESS,…",
        help="the address of each service on the device (default: %(default)s)",
    )
    add.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="with --certificate: the CA certificate that devices trust, in PEM (default: their system's)",
    )
    add.add_argument("--replace", action="store_true", help="give a thing that is already enrolled a new password")
    _add_description(add)
    add.set_defaults(handler=reporting(lambda arguments: _add_thing(arguments, state(arguments))))

    describe = commands.add_parser("describe-thing", help="change the type or the attributes of an enrolled device")
    add_state_dir(describe)
    describe.add_argument("name", metavar="NAME", help="the thing's name")
    _add_description(describe)
    describe.set_defaults(handler=reporting(lambda arguments: _describe_thing(arguments, state(arguments))))

    remove = commands.add_parser("remove-thing", help="remove a device and its password")
    add_state_dir(remove)
    remove.add_argument("name", metavar="NAME", help="the thing's name")
    remove.set_defaults(handler=reporting(lambda arguments: _remove_thing(arguments, state(arguments))))


def _add_description(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", metavar="TYPE", help="the thing's type, which inventories can filter by")
    parser.add_argument(
        "--attribute",
        action="append",
        metavar="NAME=VALUE",
        help="an attribute, which inventories can filter by; can be repeated; replaces all earlier attributes",
    )


def add_broker_options(run: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    """Add the options of ``service run`` for the MQTT broker."""
    run.add_argument(
        "--mqtt-port",
        type=port,
        metavar="N",
        help="run an MQTT broker (Mosquitto, which must be installed) on this port, for devices with agents; 0 for the "
        "port of the last run, or any free port",
    )
    run.add_argument(
        "--mqtt-broker",
        metavar="URL",
        help="use a broker that runs elsewhere, such as mqtts://USER@HOST:8883",
    )
    run.add_argument(
        "--mqtt-ca",
        default="",
        metavar="PATH",
        help="CA certificates for --mqtt-broker: a PEM file or an OpenSSL hashed directory (default: the system's)",
    )
    run.add_argument(
        "--mqtt-password-file", type=Path, metavar="FILE", help="contains the password of USER at --mqtt-broker"
    )


def broker_settings(arguments: argparse.Namespace) -> BrokerSettings:
    """The settings of the broker.

    Raises:
        ServiceError: options contradict each other, or the password cannot be read.
    """
    from ..service.errors import ServiceError
    from ..service.mqtt.broker_address import BrokerAddress
    from ..service.mqtt.notifier import BrokerSettings

    if arguments.mqtt_broker is None:
        for option in ("mqtt_ca", "mqtt_password_file"):
            if getattr(arguments, option):
                raise ServiceError(f"--{option.replace('_', '-')} requires --mqtt-broker")
        return BrokerSettings(arguments.mqtt_port)
    if arguments.mqtt_port is not None:
        raise ServiceError("--mqtt-port and --mqtt-broker exclude each other")
    # add-thing copies the file for devices later, and may run in another directory.
    authorities = str(Path(arguments.mqtt_ca).absolute()) if arguments.mqtt_ca else ""
    broker = BrokerAddress.parse(arguments.mqtt_broker, authorities)
    if arguments.mqtt_password_file is None:
        return BrokerSettings(external=broker)
    if not broker.user:
        raise ServiceError("--mqtt-broker: there is a password but no user: give mqtts://USER@HOST:8883")
    try:
        password = arguments.mqtt_password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"--mqtt-password-file: cannot read {arguments.mqtt_password_file}") from error
    return BrokerSettings(external=broker, password=password)


def _add_thing(arguments: argparse.Namespace, state: StateDirectory) -> None:
    from ..errors import ConfigurationError
    from ..protocol.session import Mode
    from ..proxy.addresses import ANY_SERVICE, parse_list
    from ..service.enrolment import add_thing
    from ..service.errors import ServiceError

    try:
        addresses = parse_list(arguments.services, "--services", Mode.DESTINATION)
    except ConfigurationError as error:
        raise ServiceError(str(error)) from error
    if ANY_SERVICE in addresses:
        raise ServiceError("--services: give each service its ID, as in SSH1=22")
    output = arguments.output or Path(arguments.name)
    services = {name: str(address) for name, address in addresses.items()}
    enrolment = add_thing(
        state,
        arguments.name,
        services,
        output,
        authority=arguments.ca,
        replace=arguments.replace,
        description=_description(arguments),
    )
    print(f"{arguments.name} is enrolled: copy {enrolment.directory} to the device, and run there:", file=sys.stderr)
    print(f"  tunnelproxy agent run --config {enrolment.directory.name}/agent.yml", file=sys.stderr)
    if enrolment.password_line is not None:
        print("and add this line to the password file of your broker:", file=sys.stderr)
        print(enrolment.password_line)


def _describe_thing(arguments: argparse.Namespace, state: StateDirectory) -> None:
    from ..service.enrolment import NO_DESCRIPTION, describe_thing
    from ..service.errors import ServiceError

    description = _description(arguments)
    if description == NO_DESCRIPTION:
        raise ServiceError("nothing to change: give --type, --attribute, or both")
    describe_thing(state, arguments.name, description)


def _description(arguments: argparse.Namespace) -> Description:
    from ..service.enrolment import Description
    from ..service.errors import ServiceError

    if arguments.attribute is None:
        return Description(arguments.type)
    pairs = [text.partition("=") for text in arguments.attribute]
    unclear = [name for name, equals, _ in pairs if not equals]
    if unclear:
        raise ServiceError(f"--attribute: '{unclear[0]}' has no value; give NAME=VALUE")
    return Description(arguments.type, {name: value for name, _, value in pairs})


def _remove_thing(arguments: argparse.Namespace, state: StateDirectory) -> None:
    from ..service.enrolment import remove_thing

    remove_thing(state, arguments.name)
