# SPDX-License-Identifier: Apache-2.0
"""From a client to its relay: messages are decoded, checked, and passed on within the tunnel's bandwidth."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Callable

from ...protocol.decoder import Decoder
from ...protocol.framing import LENGTH_BYTES, Bytes, Message, join_frames
from .frame_rules import FrameRules
from .relay import End, Relay

__all__ = ["Ingress"]


class Ingress:
    """What one client sends.

    Args:
        end: the client's connection.
        relay: the relay of its tunnel.
        rules: the rules for its messages.
        resume: called when :attr:`is_waiting` has become false by itself.
    """

    def __init__(self, end: End, relay: Relay, rules: FrameRules, resume: Callable[[], None]) -> None:
        self._end = end
        self._relay = relay
        self._rules = rules
        self._resume = resume
        self._decoder = Decoder()
        self._latest: Message | None = None
        """The latest data message: the decoder returns the same object for the next one, which needs no check then."""
        self._checked: deque[Bytes] = deque()
        """The messages of one read. Passed on together after it, they take an eighth less time than one by one."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the tunnel has used up its bandwidth, and nothing should be read from the client for a while."""
        return self._timer is not None

    def receive(self, data: Bytes) -> None:
        """Check the frames that the payload of a WebSocket message completes, and keep them for :meth:`pass_on`.

        Raises:
            ProtocolError: a frame is invalid. Those before it are kept, here and with BrokenRule.
            BrokenRule: the client must not send a message.
        """
        relayed: list[Bytes] = []
        size = 0
        whole = not self._decoder.pending
        try:
            for message, _, encoded in self._decoder.decode(data):
                if message is self._latest or self._is_relayed(message):
                    relayed.append(encoded)
                    size += LENGTH_BYTES + len(encoded)
        finally:
            if relayed:
                # Data is usually complete messages that are all relayed, and need not be put together again.
                self._checked.append(data if whole and size == len(data) else join_frames(relayed))

    def pass_on(self) -> bool:
        """Relay what has been received, as far as the tunnel's bandwidth allows; return whether it allows more."""
        if self._timer is not None or not self._checked:
            return self._timer is None
        bandwidth = self._relay.bandwidth
        passed: list[Bytes] = []
        seconds = 0.0
        while self._checked and seconds <= 0:
            message = self._checked.popleft()
            passed.append(message)
            self._end.client.bytes_received += len(message)
            if bandwidth is not None:
                seconds = bandwidth.take(len(message))
        self._relay.relay(self._end, *passed)
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._continue)
        return seconds <= 0

    def close(self) -> None:
        """Relay the rest at once: the client has disconnected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._relay.relay(self._end, *self._checked)
        self._checked.clear()

    def _continue(self) -> None:
        self._timer = None
        self.pass_on()
        self._resume()

    def _is_relayed(self, message: Message) -> bool:
        if not (self._rules.check(message) and self._relay.consider(self._end, message)):
            return False
        if message.type == Message.DATA:
            self._latest = message
        return True
