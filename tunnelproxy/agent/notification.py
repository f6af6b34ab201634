# SPDX-License-Identifier: Apache-2.0
"""The message that a device receives when a tunnel is opened for it, or when its access token is rotated.

Source: "IoT agent snippet", AWS IoT Developer Guide, and ``$aws/things/<thing>/tunnels/notify`` in its list of reserved
topics.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from ..names import SERVICE_ID

__all__ = ["MAX_PAYLOAD", "Notification", "NotificationRefused", "notify_topic", "read_notification"]

MAX_PAYLOAD = 8192
"""Bytes; AWS's tokens have a few hundred."""

_SHOWN_DIGITS = 8


class NotificationRefused(Exception):
    """The agent rejects a notification. The text says why, without the token."""


@dataclass(frozen=True)
class Notification:
    """An access token for the destination of a tunnel.

    Attributes:
        region: the region of the tunnel; empty if the service did not send it.
        services: the services of the tunnel; empty if the service did not send them.
    """

    token: str = field(repr=False)
    region: str
    services: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of the token, in hexadecimal; it identifies the notification."""
        return hashlib.sha256(self.token.encode()).hexdigest()

    def __str__(self) -> str:
        # The payload has no tunnel ID, so logs use this name.
        return f"tunnel {self.digest[:_SHOWN_DIGITS]} ({', '.join(self.services) or 'unknown services'})"


def notify_topic(thing: str) -> str:
    """The MQTT topic of a thing's notifications."""
    return f"$aws/things/{thing}/tunnels/notify"


def read_notification(payload: bytes) -> Notification:
    """Read a payload.

    Raises:
        NotificationRefused: it is malformed, or is for a source.
    """
    if len(payload) > MAX_PAYLOAD:
        raise NotificationRefused(f"it has {len(payload)} bytes, more than {MAX_PAYLOAD}")
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise NotificationRefused("it is not JSON") from None
    if not isinstance(content, dict):
        raise NotificationRefused("it is not a JSON object")
    mode = content.get("clientMode")
    if mode != "destination":
        shown = repr(mode)[:40] if isinstance(mode, str) else "missing, or not a text"
        raise NotificationRefused(f"its clientMode is {shown}; a device is the destination")
    region = content.get("region") or ""
    if not isinstance(region, str):
        raise NotificationRefused("its region is not a text")
    return Notification(_token(content.get("clientAccessToken")), region, _services(content.get("services")))


def _token(token: object) -> str:
    if not isinstance(token, str) or not token:
        raise NotificationRefused("it has no clientAccessToken")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise NotificationRefused("its clientAccessToken has invalid characters")
    return token


def _services(services: object) -> tuple[str, ...]:
    if services is None:
        return ()
    if not isinstance(services, list) or not all(isinstance(name, str) and SERVICE_ID.match(name) for name in services):
        raise NotificationRefused("its services are not a list of service IDs")
    return tuple(services)
