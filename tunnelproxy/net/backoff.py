# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next attempt."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Exponential backoff with jitter, so that a fleet does not reconnect all at once.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        first: the longest first delay, in seconds.
        most: the longest delay of all, in seconds: how long operators wait after a service has come back.
    """

    def __init__(self, first: float = 1.0, most: float = 8.0) -> None:
        self._first = first
        self._most = max(first, most)
        self._ceiling = first

    def next_delay(self) -> float:
        """Seconds to wait now; the longest possible delay doubles each time."""
        delay = random.uniform(self._first / 4, self._ceiling)  # noqa: S311  spreads load, guards nothing
        self._ceiling = min(self._ceiling * 2, self._most)
        return delay

    def reset(self) -> None:
        """Start from the first delay again, after a success."""
        self._ceiling = self._first
