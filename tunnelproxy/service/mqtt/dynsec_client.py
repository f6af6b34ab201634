# SPDX-License-Identifier: Apache-2.0
"""Updates the embedded broker's access rules while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from ...net.mqtt import BrokerLogin, MqttSession
from .dynsec_rules import ANSWERS, COMMANDS, changes, refusals

__all__ = ["DynsecClient"]

_CONFIRM_SECONDS = 5.0
_MAX_PER_MESSAGE = 12
"""Things per message: each takes up to 1 kB, and the broker's max_packet_size is 16 kB."""

log = logging.getLogger(__name__)


class DynsecClient:
    """An MQTT session of the user that may change the broker's rules.

    Args:
        broker: where and how to connect.
    """

    def __init__(self, broker: BrokerLogin) -> None:
        self._session = MqttSession(broker, self, ANSWERS)
        self._things: frozenset[str] = frozenset()
        self._sent: dict[int, asyncio.Future[None]] = {}

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await self._session.run()

    def assume(self, things: Iterable[str]) -> None:
        """Assume that the broker was started with rules for these things."""
        self._things = frozenset(things)

    async def update(self, things: Iterable[str]) -> bool:
        """Make the broker have rules for these things and no others.

        Returns:
            Whether it has them. If not, because it cannot be reached, call again.
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
        # Not earlier: a broker that has died is restarted with rules for the things that exist at that moment.
        self._things = wanted
        return True

    # Callbacks of the session

    def connected(self) -> None:
        """Do nothing: the caller retries updates."""

    def disconnected(self) -> None:
        for waiting in self._sent.values():
            waiting.cancel()

    def received(self, payload: bytes) -> None:
        for refusal in refusals(payload):
            log.error("mosquitto does not change its rules: %s", refusal)

    def published(self, number: int) -> None:
        waiting = self._sent.get(number)
        if waiting is not None and not waiting.done():
            # The plugin acts before the broker confirms the message.
            waiting.set_result(None)


def _towards(before: frozenset[str], after: frozenset[str]) -> frozenset[str]:
    """The things after as many changes as fit into one message."""
    differing = sorted(before ^ after)[:_MAX_PER_MESSAGE]
    return before.symmetric_difference(differing)
