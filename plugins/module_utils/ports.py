# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where services listen on the loopback address, as users write it: C(HTTP1=5555), C(HTTP1=any), C(HTTP1=off)."""

from __future__ import annotations

from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name

_WORDS = {"any": 0, "off": None}


def parse_ports(choices: list[str]) -> dict[str, int | None]:
    """Return a port by service: 0 for any port, None for none. Raise ValueError with a sentence."""
    ports: dict[str, int | None] = {}
    for choice in choices:
        service, equals, where = str(choice).partition("=")
        port = _WORDS[where] if where in _WORDS else _number(where)
        if not equals or port == -1:
            raise ValueError(
                f"{choice!r} does not say where a service listens: write SERVICE=PORT with a port from 1 to 65535, "
                "SERVICE=any, or SERVICE=off."
            )
        if port and port in ports.values():
            raise ValueError(f"Port {port} is given to two services. Give each a port of its own.")
        ports[valid_name("service", service)] = port
    return ports


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65536 else -1
