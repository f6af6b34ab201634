# SPDX-License-Identifier: Apache-2.0
"""The addresses of services, from the command line's lists and the files below ``config/``.

Source: the AWS IoT guide "Multiplex data streams in a secure tunnel"; the reference local proxy's ``-s`` and ``-d``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Union

from ..errors import ConfigurationError, Objection, refuse
from ..names import SERVICE_ID, format_host_port
from ..protocol.session import NAMELESS, Mode

__all__ = [
    "ANY_SERVICE",
    "Address",
    "BadAddress",
    "TcpAddress",
    "UnixAddress",
    "match_services",
    "parse_address",
    "parse_list",
    "read_directory",
]

ANY_SERVICE = ""
"""The key of an address that was given without a service ID, for the only service of a tunnel."""

_COMMENT = re.compile(r"\s[#;].*")
_HOST_PORT = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\s/]+):)?(?P<port>\d{1,5})\Z")


class TcpAddress(NamedTuple):
    """A host, or None for the default, and a port; port 0 means any free port."""

    host: str | None
    port: int

    def __str__(self) -> str:
        return format_host_port(self.host or "localhost", self.port)


class UnixAddress(NamedTuple):
    """A Unix socket's path."""

    path: str

    def __str__(self) -> str:
        return self.path


Address = Union[TcpAddress, UnixAddress]

_LONGEST_SHOWN = 40
"""Messages show service IDs of up to this many characters in full."""


class BadAddress(NamedTuple):
    """An invalid value that a file has for a service: an error only if the tunnel carries that service."""

    problem: str


def parse_address(text: str, where: str, mode: Mode) -> Address:
    """Parse ``PORT``, ``HOST:PORT``, ``[IPV6]:PORT``, or, at a destination, the path of a Unix socket.

    Args:
        where: the option or file to name in an error.

    Raises:
        ConfigurationError: the text is none of these.
    """
    if "/" in text and mode is Mode.DESTINATION:
        return UnixAddress(text)
    match = _HOST_PORT.match(text)
    if match is None or int(match["port"]) > 65535 or (int(match["port"]) == 0 and mode is Mode.DESTINATION):
        hint = "; put each service on a line of its own" if "=" in text else ""
        forms = "PORT or HOST:PORT" + (" or a Unix socket's path" if mode is Mode.DESTINATION else "")
        raise ConfigurationError(f"{where}: '{text}' is not an address: give {forms}{hint}")
    return TcpAddress(match["host"].strip("[]") if match["host"] else None, int(match["port"]))


def parse_list(text: str, option: str, mode: Mode, amiss: Objection = refuse) -> dict[str, Address]:
    """Parse the value of ``-s`` or ``-d``: ``[ID=]ADDRESS``, separated by commas.

    Args:
        option: the option to name in an error.
        amiss: what to do about an empty item, or a service that is given twice.

    Raises:
        ConfigurationError: an item cannot be parsed, or several services lack their IDs.
    """
    addresses: dict[str, Address] = {}
    for item in map(str.strip, text.split(",")):
        if not item:
            amiss(
                f"{option}: '' is not an address: there is a comma too many",
                "it is ignored",
            )
            continue
        name, equals, address = (part.strip() for part in item.rpartition("="))
        if equals and not SERVICE_ID.match(name):
            raise ConfigurationError(f"{option}: '{name}' is not a service ID, such as SSH1")
        found = parse_address(address, option, mode)
        if name in addresses and name == ANY_SERVICE:
            raise ConfigurationError(f"{option}: an address without a service ID is given twice")
        if name in addresses:
            amiss(f"{option}: {name} is given twice", f"the first, {addresses[name]}, is used")
        addresses.setdefault(name, found)
    if ANY_SERVICE in addresses and len(addresses) > 1:
        raise ConfigurationError(f"{option}: with several services, each needs its service ID, as in SSH1=22,HTTP1=80")
    return addresses


def read_directory(directory: Path, mode: Mode, amiss: Objection = refuse) -> dict[str, Address | BadAddress]:
    """Read every file below a directory, in the order of their names, which have no meaning.

    Args:
        amiss: what to do about a file or a line that is not as it should be.

    Returns:
        the address of each service.
    """
    addresses: dict[str, Address | BadAddress] = {}
    origin: dict[str, Path] = {}
    for path in _files_below(directory):
        try:
            lines = _read_ini(path, amiss)
        except ConfigurationError as error:
            amiss(str(error), "the file is ignored")
            continue
        # Every file is read, even one about something else, with secrets in it: messages do not show its content.
        for name, (number, value) in lines.items():
            where = f"{path}, line {number}"
            if not SERVICE_ID.match(name):
                amiss(f"{where}: it does not begin with a service ID, such as SSH1", "the line is ignored")
            elif name in addresses:
                amiss(f"{path}: {_shown(name)} is already configured in {origin[name]}", "the first is used")
            else:
                addresses[name] = _address_in_file(value, f"{path}: {_shown(name)}", mode, amiss)
                origin[name] = path
    return addresses


def _files_below(directory: Path) -> Iterator[Path]:
    """Regular files, and links to regular files."""
    found = [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return (path for path in sorted(found) if os.path.isfile(path))


def _address_in_file(text: str, where: str, mode: Mode, amiss: Objection) -> Address | BadAddress:
    try:
        return parse_address(text, where, mode)
    except ConfigurationError:
        hint = "; put each service on a line of its own" if "=" in text else ""
        problem = f"{where}: the value after '=' is not an address, such as 22{hint}"
        amiss(problem, "that is an error only if the tunnel carries the service")
        return BadAddress(problem)


def _read_ini(path: Path, amiss: Objection) -> dict[str, tuple[int, str]]:
    """Read the ``name = value`` lines of a file, up to its first section.

    Returns:
        the number of the line and the value, by name.

    Raises:
        ConfigurationError: the file cannot be read, or has other lines.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _not_ini(path, "it is not a text file") from error
    found: dict[str, tuple[int, str]] = {}
    keys: set[str] = set()
    section = ""
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            if not section:
                amiss(
                    f"{path}: sections are not supported here: remove the line {line}",
                    "everything below it is ignored",
                )
            section = line
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise _not_ini(path, f"line {number} is not")
        if section + name in keys:
            named = _shown(name) if SERVICE_ID.match(name) else f"the name in line {number}"
            raise _not_ini(path, f"{named} occurs twice")
        keys.add(section + name)
        if not section:
            found[name] = number, _COMMENT.sub("", value)
    return found


def _not_ini(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path} is not an ini file of services: each line must be like 'SSH1 = 22' ({why})")


def match_services(
    configured: Mapping[str, Address | BadAddress],
    offered: Iterable[str],
    mode: Mode,
    where: str,
    *,
    surplus: Objection = refuse,
    bare: Objection = refuse,
) -> dict[str, Address | None]:
    """Find the address of each service that the tunnel carries.

    A source uses a free port for a service without a configured one.

    Args:
        where: the option or folder to name in an error.
        surplus: what to do about a source's configured services that the tunnel does not carry.
        bare: what to do about an address without a service ID for a tunnel with several services.

    Returns:
        the addresses; None where a destination has none for a service.

    Raises:
        ConfigurationError: a destination has no address, or an invalid one, for a service that the tunnel carries. It
            lists the services on both sides.
    """
    # To a proxy that speaks V2 or V3, the service names no services of a tunnel that was opened without any.
    offered = list(offered) or [NAMELESS]
    lists = f"{where} has {_names(configured)}, the tunnel carries {_names(offered)}"
    if ANY_SERVICE in configured:
        return _for_the_first(_good(configured[ANY_SERVICE]), offered, mode, lists, bare)
    if offered == [NAMELESS] and configured:
        if len(configured) > 1:
            raise ConfigurationError(
                f"the tunnel, or the version that this proxy speaks (V1), has one service without a name, but {where} "
                f"has {_names(configured)}: give one"
            )
        return {NAMELESS: _good(next(iter(configured.values())))}
    unknown = [name for name in configured if name not in offered]
    missing = [name for name in offered if name not in configured]
    if mode is Mode.DESTINATION and missing:
        raise ConfigurationError(f"no address for {_names(missing)}: {lists}")
    if mode is Mode.SOURCE and unknown:
        surplus(f"this tunnel does not offer {_names(unknown)}: {lists}", "what it does not offer is ignored")
    return {name: _good(configured.get(name, TcpAddress(None, 0))) for name in offered}


def _for_the_first(
    address: Address, offered: list[str], mode: Mode, lists: str, bare: Objection
) -> dict[str, Address | None]:
    first, *others = offered
    if others:
        bare(
            f"an address without a service ID fits a tunnel with one service only: {lists}",
            f"{address} is for {first}; for {_names(others)} "
            + ("free ports are used" if mode is Mode.SOURCE else "connections are refused"),
        )
    rest: Address | None = TcpAddress(None, 0) if mode is Mode.SOURCE else None
    return {first: address, **dict.fromkeys(others, rest)}


def _good(address: Address | BadAddress) -> Address:
    if isinstance(address, BadAddress):
        raise ConfigurationError(address.problem)
    return address


def _names(names: Iterable[str]) -> str:
    return ", ".join(_shown(name) or "one without a name" for name in names) or "none"


def _shown(name: str) -> str:
    """A name, shortened if it is so long that it may be a token that somebody has put into a file."""
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:8]}…"
