# SPDX-License-Identifier: Apache-2.0
"""What happens in the service, as data for the audit log, the log and the metrics.

No event contains a secret: access keys appear by name, tokens never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

__all__ = ["Connected", "ControlCall", "CutOff", "Disconnected", "Event", "EventHandler", "Refused", "Suppressed"]


@dataclass(frozen=True)
class ControlCall:
    """A request to the control API was answered.

    Attributes:
        key: the name of the access key that signed it; None if no known key did.
        access_key_id: the key ID in the request, whether or not the signature is valid.
        operation: None if the request names none that exists.
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
    """A client connected to a tunnel. ``key`` is the access key whose request created its token."""

    channel: str
    address: str | None
    key: str | None
    thing: str | None
    tunnel: str
    mode: str
    version: int


@dataclass(frozen=True)
class Disconnected:
    """A client disconnected from a tunnel.

    Attributes:
        outcome: the WebSocket close code and reason, or a note that there was none.
        bytes_received: payload of the WebSocket messages received from it.
        bytes_sent: payload of the WebSocket messages sent to it.
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
    """A client of the data plane was refused. ``cause`` is one of ``handshake.Cause``; ``reason`` is a sentence."""

    channel: str
    address: str | None
    key: str | None
    thing: str | None
    tunnel: str | None
    cause: str
    reason: str = ""


@dataclass(frozen=True)
class CutOff:
    """A connection was closed before its first valid request. ``cause`` is a limit's name, ``tls`` or ``http``."""

    address: str
    cause: str


@dataclass(frozen=True)
class Suppressed:
    """Events caused by clients without an access key were counted, but not written one by one.

    Attributes:
        of: the kind of event, as in the audit log.
        outcome: the error's name or the cause, which they have in common.
        count: how many were not written.
        addresses: how many addresses they came from, if addresses were counted.
        seconds: the period.
    """

    of: str
    outcome: str
    count: int
    addresses: int
    seconds: float


Event = Union[ControlCall, Connected, Disconnected, Refused, CutOff, Suppressed]

EventHandler = Callable[[Event], None]
"""Records an event. It must not raise or block."""
