# SPDX-License-Identifier: Apache-2.0
"""What happens in the service, as data, for those who keep account of it: the audit log and the metrics.

None of these holds a secret. A key is named, a token never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

__all__ = ["Connected", "ControlCall", "CutOff", "Disconnected", "Event", "EventHandler", "Refused", "Suppressed"]


@dataclass(frozen=True)
class ControlCall:
    """A request to the control API has been answered.

    Attributes:
        key: the name of the access key that signed it; None where no known key did.
        access_key_id: the key ID that the request names, whether or not it was signed with it.
        operation: None where the request names none that exists.
        outcome: ``ok``, or the name of the error.
    """

    request_id: str
    address: str | None
    key: str | None
    access_key_id: str | None
    operation: str | None
    thing: str | None
    tunnel: str | None
    outcome: str
    status: int
    seconds: float


@dataclass(frozen=True)
class Connected:
    """A client joined a tunnel. ``key`` is the access key whose request made its token."""

    channel: str
    address: str | None
    key: str | None
    thing: str | None
    tunnel: str
    mode: str
    version: int


@dataclass(frozen=True)
class Disconnected:
    """A client left a tunnel.

    Attributes:
        outcome: the WebSocket close code and reason, or that there was none.
        bytes_received: payload of its WebSocket messages.
        bytes_sent: payload of the messages sent to it.
    """

    channel: str
    address: str | None
    key: str | None
    thing: str | None
    tunnel: str
    mode: str
    version: int
    outcome: str
    bytes_received: int
    bytes_sent: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A client of the data plane was refused. ``cause`` is one of ``handshake.Cause``; ``reason`` is for people."""

    channel: str
    address: str | None
    key: str | None
    thing: str | None
    tunnel: str | None
    cause: str
    reason: str = ""


@dataclass(frozen=True)
class CutOff:
    """A connection ended before it had asked for anything. ``cause`` is a limit's name, ``tls``, or ``http``."""

    address: str
    cause: str


@dataclass(frozen=True)
class Suppressed:
    """Events that strangers caused were counted, and not written one by one.

    Attributes:
        of: the kind of event, as the audit log names it.
        outcome: what they have in common: the error's name, or the cause.
        count: how many, without those that were written.
        addresses: from how many addresses, as far as they were counted.
        seconds: within which time.
    """

    of: str
    outcome: str
    count: int
    addresses: int
    seconds: float


Event = Union[ControlCall, Connected, Disconnected, Refused, CutOff, Suppressed]

EventHandler = Callable[[Event], None]
"""Takes note of an event; must neither fail nor wait."""
