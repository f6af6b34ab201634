# SPDX-License-Identifier: Apache-2.0
"""Which service ID stands for which address: the command line's lists and the files below ``config/``.

Source: the AWS IoT guide "Multiplex data streams in a secure tunnel"; the reference local proxy's ``-s`` and ``-d``.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Union

from .errors import ConfigurationError
from .protocol.framing import SERVICE_ID
from .protocol.session import NAMELESS, Mode

__all__ = [
    "ANY_SERVICE",
    "Address",
    "TcpAddress",
    "UnixAddress",
    "match_services",
    "parse_address",
    "parse_list",
    "read_directory",
]

ANY_SERVICE = ""
"""Key of an address that was given without a service ID: it is for the only service of the tunnel."""

_HOST_PORT = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\s/]+):)?(?P<port>\d{1,5})\Z")


class TcpAddress(NamedTuple):
    """A host, or None for the default one, and a port; port 0 stands for any free one."""

    host: str | None
    port: int

    def __str__(self) -> str:
        host = self.host or "localhost"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class UnixAddress(NamedTuple):
    """A Unix socket's path."""

    path: str

    def __str__(self) -> str:
        return self.path


Address = Union[TcpAddress, UnixAddress]


def parse_address(text: str, where: str, mode: Mode) -> Address:
    """Read ``PORT``, ``HOST:PORT``, ``[IPV6]:PORT``, or, at the destination, the path of a Unix socket.

    Args:
        where: what to name in the error: an option or a file.
    """
    if "/" in text and mode is Mode.DESTINATION:
        return UnixAddress(text)
    match = _HOST_PORT.match(text)
    if match is None or int(match["port"]) > 65535 or (int(match["port"]) == 0 and mode is Mode.DESTINATION):
        hint = "; put each service on a line of its own" if "=" in text else ""
        forms = "PORT or HOST:PORT" + (" or a Unix socket's path" if mode is Mode.DESTINATION else "")
        raise ConfigurationError(f"{where}: '{text}' is not an address: give {forms}{hint}")
    return TcpAddress(match["host"].strip("[]") if match["host"] else None, int(match["port"]))


def parse_list(text: str, option: str, mode: Mode) -> dict[str, Address]:
    """Read the value of ``-s`` or ``-d``: ``[ID=]ADDRESS`` with commas between."""
    addresses: dict[str, Address] = {}
    for item in text.split(","):
        name, equals, address = item.strip().rpartition("=")
        if equals and not SERVICE_ID.match(name.strip()):
            raise ConfigurationError(f"{option}: '{name.strip()}' is not a service ID, such as SSH1")
        name = name.strip()
        if name in addresses:
            raise ConfigurationError(f"{option}: {name or 'an address without a service ID'} is given twice")
        addresses[name] = parse_address(address.strip(), option, mode)
    if ANY_SERVICE in addresses and len(addresses) > 1:
        raise ConfigurationError(f"{option}: with several services, each needs its service ID, as in SSH1=22,HTTP1=80")
    return addresses


def read_directory(directory: Path, mode: Mode) -> dict[str, Address]:
    """Read every ``*.ini`` file below a directory. Names of files mean nothing; each service may stand in one only."""
    addresses: dict[str, Address] = {}
    origin: dict[str, Path] = {}
    for path in sorted(directory.rglob("*.ini")):
        for name, value in _read_ini(path).items():
            if not SERVICE_ID.match(name):
                raise ConfigurationError(f"{path}: '{name}' is not a service ID, such as SSH1")
            if name in addresses:
                raise ConfigurationError(f"{path}: {name} is already configured in {origin[name]}")
            addresses[name] = parse_address(value, f"{path}: {name}", mode)
            origin[name] = path
    return addresses


def _read_ini(path: Path) -> Mapping[str, str]:
    marks = ("#", ";")
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=marks, inline_comment_prefixes=marks)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # service IDs are case-sensitive
    section = "services"
    try:
        parser.read_string(f"[{section}]\n{path.read_text(encoding='utf-8')}", source=str(path))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not an ini file of services: each line must be like 'SSH1 = 22'{_line_at_fault(error)}"
        ) from error
    if parser.sections() != [section]:
        raise ConfigurationError(f"{path}: sections have no meaning here: remove the line [{parser.sections()[-1]}]")
    return parser[section]


def _line_at_fault(error: Exception) -> str:
    if isinstance(error, configparser.ParsingError) and error.errors:
        number, _ = error.errors[0]
        return f" (line {number - 1} is not)"
    if isinstance(error, configparser.DuplicateOptionError):
        return f" ({error.option} stands twice)"
    return ""


def match_services(
    configured: Mapping[str, Address], offered: Iterable[str], mode: Mode, where: str
) -> dict[str, Address]:
    """Find the address of each service that the tunnel carries.

    A source picks a free port for a service that has none configured. ``where`` says in an error what was configured.

    Raises:
        ConfigurationError: a source has a service configured that the tunnel lacks, or a destination has none for one
            that the tunnel carries. It names both lists.
    """
    offered = list(offered)
    lists = f"{where} has {_names(configured)}, the tunnel carries {_names(offered)}"
    if ANY_SERVICE in configured:
        if len(offered) != 1:
            raise ConfigurationError(f"an address without a service ID fits a tunnel with one service only: {lists}")
        return {offered[0]: configured[ANY_SERVICE]}
    if offered == [NAMELESS] and configured:
        if len(configured) > 1:
            raise ConfigurationError(
                f"the tunnel, or the version that this proxy speaks (V1), has one service without a name, but {where} "
                f"has {_names(configured)}: give one"
            )
        return {NAMELESS: next(iter(configured.values()))}
    surplus = [name for name in configured if name not in offered]
    missing = [name for name in offered if name not in configured]
    if mode is Mode.DESTINATION and missing:
        raise ConfigurationError(f"no address for {_names(missing)}: {lists}")
    if mode is Mode.SOURCE and surplus:
        raise ConfigurationError(f"this tunnel does not offer {_names(surplus)}: {lists}")
    return {name: configured.get(name, TcpAddress(None, 0)) for name in offered}


def _names(names: Iterable[str]) -> str:
    return ", ".join(name or "one without a name" for name in names) or "none"
