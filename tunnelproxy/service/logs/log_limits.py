# SPDX-License-Identifier: Apache-2.0
"""Limits the rate at which clients without an access key can write to the log and the audit log.

Each address has a limit, so that a flooding address does not hide another one, and all together have a limit, so that
many addresses cannot do what one cannot. Further events are counted, and summarized once a minute for each kind: the
lines and the counts in the summaries add up to the number of events.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ..events import ControlCall, Event, EventHandler, Refused, Suppressed
from ..limits import TokenBucket

__all__ = ["SUMMARY_SECONDS", "LogLimits"]

SUMMARY_SECONDS = 60.0
"""Seconds between summaries."""

_RATE, _BURST = 1.0, 200
_ADDRESS_RATE, _ADDRESS_BURST = 0.1, 20
_MAX_ADDRESSES = 1000


@dataclass
class _Count:
    number: int = 0
    addresses: set[str | None] = field(default_factory=set)


class LogLimits:
    """Passes events on at a limited rate.

    Args:
        write: called with each event to write.
        clock: returns seconds, monotonic.
    """

    def __init__(self, write: EventHandler, clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._all = TokenBucket(_RATE, _BURST, clock)
        self._by_address: OrderedDict[str | None, TokenBucket] = OrderedDict()
        self._counts: dict[tuple[str, str], _Count] = {}
        self._since = clock()

    def note(self, event: Event) -> None:
        """Write an event, or only count it."""
        kind = _kind(event)
        if kind is None or not isinstance(event, (ControlCall, Refused)) or self._may_write(event.address):
            self._write(event)
        else:
            count = self._counts.setdefault(kind, _Count())
            count.number += 1
            if len(count.addresses) < _MAX_ADDRESSES:
                count.addresses.add(event.address)

    def summarize(self) -> None:
        """Write how many events were only counted since the last summary."""
        counts, self._counts = self._counts, {}
        now = self._clock()
        for (of, outcome), count in counts.items():
            self._write(Suppressed(of, outcome, count.number, len(count.addresses), now - self._since))
        self._since = now

    async def run(self) -> None:
        """Write the summaries until cancelled."""
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            self.summarize()

    def _may_write(self, address: str | None) -> bool:
        bucket = self._by_address.get(address)
        if bucket is None:
            bucket = TokenBucket(_ADDRESS_RATE, _ADDRESS_BURST, self._clock)
            self._by_address[address] = bucket
            if len(self._by_address) > _MAX_ADDRESSES:
                self._by_address.popitem(last=False)
        self._by_address.move_to_end(address)
        return bucket.has_token() and self._all.try_take() and bucket.try_take()


def _kind(event: Event) -> tuple[str, str] | None:
    """The kind of an event, for counting; None for an event that only the holder of an access key can cause.

    Anyone can cause a refusal by the data plane, and anyone can replay a signed request.
    """
    if isinstance(event, Refused):
        return "refused", event.cause
    if isinstance(event, ControlCall) and (event.key is None or event.outcome == "InvalidSignatureException"):
        return "control", event.outcome
    return None
