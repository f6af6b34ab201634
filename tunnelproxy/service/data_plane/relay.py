# SPDX-License-Identifier: Apache-2.0
"""The relay of one tunnel: passes messages on between its two ends, and tells an end when the other is gone.

Without I/O: an end is anything that can send, be paused, and be disconnected.
"""

from __future__ import annotations

from typing import Protocol

from ...protocol.framing import Bytes, Message, frame
from ...protocol.session import Mode, Version
from ..limits import TokenBucket
from .connected_clients import Client

__all__ = ["End", "Relay"]


class End(Protocol):
    """A client's connection, as the relay uses it. ClientConnection is one; it cannot be imported here because it
    imports this module."""

    client: Client

    def send(self, *messages: Bytes) -> None:
        """Send frames. Each argument is whole frames, and becomes a WebSocket message."""

    def pause_reading(self) -> None:
        """Read nothing from the client until :meth:`resume_reading`."""

    def resume_reading(self) -> None:
        """Read from the client again."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the WebSocket."""


class Relay:
    """The two ends of a tunnel, and the streams between them.

    Args:
        bandwidth: limits what both ends together may send; None for no limit.
    """

    def __init__(self, bandwidth: TokenBucket | None = None) -> None:
        self.bandwidth = bandwidth
        self._ends: dict[Mode, End] = {}
        # The current stream ID of each service; "" is the one service of peers that name none.
        self._streams: dict[str, int] = {}
        # The ends whose send buffers are full.
        self._full: set[Mode] = set()

    def end(self, mode: Mode) -> End | None:
        """The client connected as this end."""
        return self._ends.get(mode)

    @property
    def is_empty(self) -> bool:
        """Whether neither end is connected."""
        return not self._ends

    def attach(self, end: End) -> End | None:
        """Add an end; return the one that it replaces."""
        mode = end.client.mode
        replaced = self._ends.get(mode)
        if replaced is not None:
            self._remove(replaced)
        self._ends[mode] = end
        if mode.other in self._full:
            end.pause_reading()
        return replaced

    def detach(self, end: End) -> bool:
        """Remove an end that is gone; return False if it had been replaced before."""
        if not self._is_current(end):
            return False
        self._remove(end)
        return True

    def consider(self, end: End, message: Message) -> bool:
        """Track what a message does to the streams.

        Returns:
            Whether to relay it. A start that nobody can receive is answered with a reset instead.
        """
        if end.client.mode.other not in self._ends:
            self._answer_start(end, message)
            return False
        # A V1 peer has one service, whatever it calls it.
        service = "" if end.client.version is Version.V1 else message.serviceId
        if message.type in (Message.STREAM_START, Message.CONNECTION_START):
            # A destination that has connected meanwhile takes the start of a connection for that of its stream.
            self._streams[service] = message.streamId
        elif message.type == Message.STREAM_RESET and self._streams.get(service) == message.streamId:
            del self._streams[service]
        return True

    def relay(self, end: End, *messages: Bytes) -> None:
        """Pass frames on to the other end, in the same WebSocket messages; ignore an end that was replaced."""
        mode = end.client.mode
        other = self._ends.get(mode.other)
        if other is not None and self._ends.get(mode) is end:
            other.send(*messages)

    def pause_writing(self, end: End) -> None:
        """The send buffer of an end is full: pause reading from the other end, and from one that replaces that."""
        if self._is_current(end):
            self._full.add(end.client.mode)
            other = self._ends.get(end.client.mode.other)
            if other is not None:
                other.pause_reading()

    def resume_writing(self, end: End) -> None:
        """The send buffer of an end has drained."""
        if self._is_current(end):
            self._full.discard(end.client.mode)
            other = self._ends.get(end.client.mode.other)
            if other is not None:
                other.resume_reading()

    def _is_current(self, end: End) -> bool:
        return self._ends.get(end.client.mode) is end

    def _remove(self, end: End) -> None:
        self.resume_writing(end)
        other = self._ends.get(end.client.mode.other)
        if other is not None:
            for service, stream_id in self._streams.items():
                named = "" if other.client.version is Version.V1 else service
                other.send(frame(Message(type=Message.STREAM_RESET, streamId=stream_id, serviceId=named)))
        self._streams.clear()
        del self._ends[end.client.mode]

    @staticmethod
    def _answer_start(end: End, message: Message) -> None:
        answers = {
            Message.STREAM_START: Message.STREAM_RESET,
            Message.CONNECTION_START: Message.CONNECTION_RESET,
        }
        answer = answers.get(message.type)
        if answer is not None:
            end.send(
                frame(
                    Message(
                        type=answer,
                        streamId=message.streamId,
                        serviceId=message.serviceId,
                        connectionId=message.connectionId,
                    )
                )
            )
