# SPDX-License-Identifier: Apache-2.0
"""Joins the two ends of one tunnel: passes messages on, and tells an end when the other is gone.

No I/O here: an end is anything that can be sent bytes, held back, and disconnected.
"""

from __future__ import annotations

from typing import Protocol

from ...protocol.framing import Bytes, Message, frame
from ..limits import TokenBucket
from ..model import Mode

__all__ = ["End", "Relay"]


class End(Protocol):
    """A client connected to a tunnel."""

    @property
    def mode(self) -> Mode:
        """Which end it is."""

    @property
    def version(self) -> int:
        """The version of the protocol that it negotiated."""

    def send(self, *messages: Bytes) -> None:
        """Send frames: each argument is whole frames, and becomes a WebSocket message."""

    def pause_reading(self) -> None:
        """Take nothing from the client until :meth:`resume_reading`."""

    def resume_reading(self) -> None:
        """Take from the client again."""

    def disconnect(self, code: int, reason: str) -> None:
        """Close the WebSocket."""


class Relay:
    """The two ends of one tunnel and the streams that live between them.

    Args:
        pace: how fast both ends together may send; None for as fast as they like.
    """

    def __init__(self, pace: TokenBucket | None = None) -> None:
        self.pace = pace
        self._ends: dict[Mode, End] = {}
        # The current stream ID of each service; "" is the one service of peers that name none.
        self._streams: dict[str, int] = {}
        # The ends that take no more for now.
        self._full: set[Mode] = set()

    def end(self, mode: Mode) -> End | None:
        """The client connected as this end."""
        return self._ends.get(mode)

    @property
    def is_empty(self) -> bool:
        """Whether neither end is connected."""
        return not self._ends

    def attach(self, end: End) -> End | None:
        """Join an end, and return the one that it replaces."""
        replaced = self._ends.get(end.mode)
        if replaced is not None:
            self._separate(replaced)
        self._ends[end.mode] = end
        if end.mode.other in self._full:
            end.pause_reading()
        return replaced

    def detach(self, end: End) -> bool:
        """Take out an end that is gone; False if it had been replaced before."""
        if self._ends.get(end.mode) is not end:
            return False
        self._separate(end)
        return True

    def consider(self, end: End, message: Message) -> bool:
        """Note what a message does to the streams.

        Returns:
            Whether it is to be relayed. A start with nobody to receive it is answered with a reset instead.
        """
        if end.mode.other not in self._ends:
            self._answer_start(end, message)
            return False
        # A V1 peer has one service, whatever it calls it.
        service = message.serviceId if end.version > 1 else ""
        if message.type in (Message.STREAM_START, Message.CONNECTION_START):
            # A destination that came meanwhile takes the start of a connection for that of its stream.
            self._streams[service] = message.streamId
        elif message.type == Message.STREAM_RESET and self._streams.get(service) == message.streamId:
            del self._streams[service]
        return True

    def relay(self, end: End, *messages: Bytes) -> None:
        """Pass frames on to the other end, in the same WebSocket messages; nothing of an end that was replaced."""
        other = self._ends.get(end.mode.other)
        if other is not None and self._ends.get(end.mode) is end:
            other.send(*messages)

    def hold_back(self, end: End) -> None:
        """An end takes no more: take nothing from the other one, nor from one that replaces it."""
        if self._ends.get(end.mode) is not end:
            return
        self._full.add(end.mode)
        other = self._ends.get(end.mode.other)
        if other is not None:
            other.pause_reading()

    def let_go(self, end: End) -> None:
        """An end takes data again."""
        if self._ends.get(end.mode) is not end:
            return
        self._full.discard(end.mode)
        other = self._ends.get(end.mode.other)
        if other is not None:
            other.resume_reading()

    def _separate(self, end: End) -> None:
        self.let_go(end)
        other = self._ends.get(end.mode.other)
        if other is not None:
            for service, stream_id in self._streams.items():
                named = service if other.version > 1 else ""
                other.send(frame(Message(type=Message.STREAM_RESET, streamId=stream_id, serviceId=named)))
        self._streams.clear()
        del self._ends[end.mode]

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
