# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of services on the loopback address, as users write them: C(HTTP1=5555), C(HTTP1=any), C(HTTP1=off).

C(HTTP1=5555,any-host) accepts requests for any host name. Ansible splits a list that is written as text at its commas,
so this may be two elements.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name

_WORDS = {"any": 0, "off": None}
_ANY_HOST = "any-host"


class LocalPorts(NamedTuple):
    """The local ports that a user has chosen.

    Attributes:
        ports: by service; 0 for any port, None for none.
        any_host: the services whose port accepts requests for any host name.
    """

    ports: dict[str, int | None]
    any_host: list[str]


def parse_ports(choices: list[str]) -> LocalPorts:
    """Return the choice. Raise ValueError with a message for the user."""
    ports: dict[str, int | None] = {}
    any_host: list[str] = []
    service = ""
    for choice in ",".join(map(str, choices)).split(",") if choices else ():
        if choice.strip() == _ANY_HOST:
            any_host.append(_checked_any_host(service, ports))
            continue
        service, equals, where = choice.strip().partition("=")
        port = _WORDS[where] if where in _WORDS else _number(where)
        if not equals or port == -1:
            raise ValueError(
                f"{choice!r} is not a valid port of a service: write SERVICE=PORT with a port from 1 to 65535, "
                "SERVICE=any, or SERVICE=off."
            )
        if port and port in ports.values():
            raise ValueError(f"Port {port} is given to two services. Give each a different port.")
        ports[valid_name("service", service)] = port
    return LocalPorts(ports, any_host)


def _checked_any_host(service: str, ports: dict[str, int | None]) -> str:
    """Return the service that C(any-host) follows, if it is allowed there."""
    if ports.get(service) is None or not service.upper().startswith("HTTP"):
        raise ValueError(
            f"{_ANY_HOST!r} must follow the port of an HTTP service, as in HTTP1=5555,{_ANY_HOST}: that port then "
            "accepts requests for any host."
        )
    return service


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65536 else -1
