# SPDX-License-Identifier: Apache-2.0
"""Tells the embedded broker, while it runs, which things there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from ...net.mqtt import Broker, MqttSession
from .dynsec_rules import ANSWERS, COMMANDS, changes, refusals

__all__ = ["DynsecClient"]

_CONFIRM_SECONDS = 5.0
_MOST_AT_ONCE = 12
"""Things in one message: each takes 1 kB at most, and the broker's max_packet_size is 16 kB."""

_log = logging.getLogger(__name__)


class DynsecClient:
    """A session that may change the broker's rules.

    Args:
        broker: where, and as whom.
    """

    def __init__(self, broker: Broker) -> None:
        self._session = MqttSession(broker, self, ANSWERS)
        self._things: frozenset[str] = frozenset()
        self._sent: dict[int, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Stay connected; ends when cancelled only."""
        await self._session.run()

    def assume(self, things: Iterable[str]) -> None:
        """The broker is started with rules for these things."""
        self._things = frozenset(things)

    async def update(self, things: Iterable[str]) -> bool:
        """See that the broker has rules for these things and for no others.

        Returns:
            Whether it has; if not, because it is away, ask again.
        """
        wanted = frozenset(things)
        while self._things != wanted:
            if not await self._change(_towards(self._things, wanted)):
                return False
        return True

    async def _change(self, wanted: frozenset[str]) -> bool:
        commands = changes(self._things, wanted)
        number = None if commands is None else self._session.publish(COMMANDS, commands)
        if number is None:
            return False
        confirmed = self._sent[number] = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait({confirmed}, timeout=_CONFIRM_SECONDS)
        self._sent.pop(number, None)
        if not done or confirmed.cancelled():
            return False
        # Only then: a broker that has died meanwhile is started with rules for whoever is there by then.
        self._things = wanted
        return True

    # What the session reports.

    def connected(self) -> None:
        """Nothing waits for it."""

    def disconnected(self) -> None:
        for waiting in self._sent.values():
            waiting.cancel()

    def received(self, payload: bytes) -> None:
        for refusal in refusals(payload):
            _log.error("mosquitto does not change its rules: %s", refusal)

    def published(self, number: int) -> None:
        waiting = self._sent.get(number)
        if waiting is not None and not waiting.done():
            # The plugin acts before the broker confirms.
            waiting.set_result(None)


def _towards(before: frozenset[str], after: frozenset[str]) -> frozenset[str]:
    """Some of the way from some things to others: what one message can tell."""
    differing = sorted(before ^ after)[:_MOST_AT_ONCE]
    return before.symmetric_difference(differing)
