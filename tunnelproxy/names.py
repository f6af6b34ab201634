# SPDX-License-Identifier: Apache-2.0
"""What things, services, tokens, regions and network addresses may be called, and how a host and a port are written.

Each pattern matches from the start of a text to its end: call ``match``. Plugins have a copy of :data:`SAFE_NAME` in
``plugins/module_utils``, because Ansible sends modules to a Python that may not have this package.
"""

from __future__ import annotations

import re

__all__ = [
    "CLIENT_TOKEN",
    "REGION",
    "SAFE_NAME",
    "SERVICE_ID",
    "THING_NAME",
    "format_host_port",
    "split_host_port",
]

THING_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
"""The name of a thing, or of a thing type. Source: ``ThingName`` in botocore's model of ``iot``."""

SERVICE_ID = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
"""A service ID, such as SSH1. Source: ``Service`` in botocore's model of ``iotsecuretunneling``."""

SAFE_NAME = re.compile(r"(?!-)[a-zA-Z0-9:_-]{1,128}\Z")
"""A thing's name or a service ID that is safe as a command's argument: ssh parses a leading hyphen as an option."""

CLIENT_TOKEN = re.compile(r"[a-zA-Z0-9-]{32,128}\Z")
"""A client token. Source: ``client-token`` in AWS's WebSocketProtocolGuide.md."""

REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d{1,2}\Z")
"""An AWS region, such as us-east-1."""

_PORT_AT_END = re.compile(r":\d*\Z")


def format_host_port(host: str, port: int) -> str:
    """``HOST:PORT``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, str | None]:
    """Split ``HOST``, ``HOST:PORT``, ``[IPV6]`` and ``[IPV6]:PORT``; an IPv6 address without brackets has no port.

    Returns:
        the host as written, with its brackets, and the port: None if there is no colon for one. Neither is checked, and
        either may be empty.
    """
    host, _, port = text.rpartition(":")
    has_port = _PORT_AT_END.search(text) and (":" not in host or host.endswith("]"))
    return (host, port) if has_port else (text, None)
