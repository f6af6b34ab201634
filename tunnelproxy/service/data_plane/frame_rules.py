# SPDX-License-Identifier: Apache-2.0
"""The messages that a client may send.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "ProtocolBuffers Message Schema".
"""

from __future__ import annotations

from collections.abc import Collection

from ...protocol.framing import Message
from ...protocol.session import Mode

__all__ = ["BrokenRule", "FrameRules"]

_STARTS = frozenset({Message.STREAM_START, Message.CONNECTION_START})
_OF_STREAMS = _STARTS | {Message.DATA, Message.STREAM_RESET, Message.CONNECTION_RESET}
_SERVICE_ONLY = frozenset({Message.SESSION_RESET, Message.SERVICE_IDS})


class BrokenRule(Exception):
    """A client must not send a message; the text says which rule it breaks."""


class FrameRules:
    """The rules for one WebSocket connection. They depend on its earlier messages.

    Args:
        mode: which end the client is.
        services: the tunnel's services; None for a V1 client, whose service IDs are ignored.
    """

    def __init__(self, mode: Mode, services: Collection[str] | None) -> None:
        self._mode = mode
        self._services = services
        self._names_services: bool | None = None

    def check(self, message: Message) -> bool:
        """Check a message; return False for one of an unknown type that may be ignored.

        Raises:
            BrokenRule: the connection must be closed.
        """
        if message.type not in _OF_STREAMS:
            return self._check_other(message)
        if message.type in _STARTS and self._mode is Mode.DESTINATION:
            raise BrokenRule("a destination must not start streams or connections")
        if message.streamId == 0:
            raise BrokenRule("stream ID 0 is invalid")
        if self._services is not None:
            self._check_service(message.serviceId, self._services)
        return True

    def _check_other(self, message: Message) -> bool:
        if message.type in _SERVICE_ONLY:
            raise BrokenRule("only the service may send SESSION_RESET and SERVICE_IDS")
        if not message.ignorable:
            raise BrokenRule("unknown message type that is not ignorable")
        return False

    def _check_service(self, service: str, services: Collection[str]) -> None:
        names = bool(service)
        if self._names_services is None:
            self._names_services = names
        elif self._names_services is not names:
            raise BrokenRule("messages with and without service ID in one connection")
        if names and service not in services:
            raise BrokenRule("a service ID that the tunnel does not have")
