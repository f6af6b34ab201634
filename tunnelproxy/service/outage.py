# SPDX-License-Identifier: Apache-2.0
"""Tells the operator once that something cannot be written, and once that it can be written again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["Outage"]

_log = logging.getLogger(__name__)


class Outage:
    """Whether something can be written.

    Args:
        what: names it, as in ``"the audit log /var/log/audit.log"``.
        meanwhile: what that means until it can be written again, and what to do.
        say: takes a level of ``logging`` and a sentence.
        clock: gives seconds, and never goes back.

    Attributes:
        total: how many writes have failed.
    """

    def __init__(
        self,
        what: str,
        meanwhile: str,
        *,
        say: Callable[[int, str], None] = _log.log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = 0
        self._what = what
        self._meanwhile = meanwhile
        self._say = say
        self._clock = clock
        self._failed = 0
        self._since = 0.0

    def failed(self, why: object) -> None:
        """A write has failed; ``why`` is in the words of the system."""
        self.total += 1
        self._failed += 1
        if self._failed == 1:
            self._since = self._clock()
            self._say(logging.ERROR, f"cannot write to {self._what}: {why}; {self._meanwhile}")

    def worked(self) -> None:
        """A write has succeeded."""
        if not self._failed:
            return
        failed, self._failed = self._failed, 0
        seconds = self._clock() - self._since
        times = "once" if failed == 1 else f"{failed} times"
        self._say(logging.WARNING, f"{self._what} can be written again; writing failed {times} within {seconds:.0f} s")
