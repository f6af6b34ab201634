# SPDX-License-Identifier: Apache-2.0
"""Reports once that a file cannot be written, and once that it can be written again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["Outage"]

_log = logging.getLogger(__name__)


class Outage:
    """Tracks whether a file can be written.

    Args:
        what: names the file in messages, as in ``"the audit log /var/log/audit.log"``.
        consequence: what happens until the file can be written again, and what the operator can do.
        report: takes a level of ``logging`` and a sentence.
        clock: returns seconds, monotonic.

    Attributes:
        total: how many writes have failed.
    """

    def __init__(
        self,
        what: str,
        consequence: str,
        *,
        report: Callable[[int, str], None] = _log.log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = 0
        self._what = what
        self._consequence = consequence
        self._report = report
        self._clock = clock
        self._failed = 0
        self._since = 0.0

    def failed(self, reason: object) -> None:
        """Record a failed write; ``reason`` is the system's error message."""
        self.total += 1
        self._failed += 1
        if self._failed == 1:
            self._since = self._clock()
            self._report(logging.ERROR, f"cannot write to {self._what}: {reason}; {self._consequence}")

    def worked(self) -> None:
        """Record a successful write."""
        if not self._failed:
            return
        failed, self._failed = self._failed, 0
        seconds = self._clock() - self._since
        times = "once" if failed == 1 else f"{failed} times"
        self._report(
            logging.WARNING, f"{self._what} can be written again; writing failed {times} within {seconds:.0f} s"
        )
