# SPDX-License-Identifier: Apache-2.0
"""The last resort: what goes wrong that nobody has thought of is logged with its traceback, but not without end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ...net.connections import is_failed_handshake

__all__ = ["UnexpectedErrors"]

_AGAIN_AFTER = 600.0
_MOST_PLACES = 200

_log = logging.getLogger(__name__)


class UnexpectedErrors:
    """Logs one traceback for each place where something fails, and again after ten minutes with the count since then.

    Args:
        clock: gives seconds, and never goes back.

    Attributes:
        total: how many there were.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self._clock = clock
        self._logged: dict[tuple[str, str, int], float] = {}
        self._not_logged: dict[tuple[str, str, int], int] = {}

    def report(self, what: str, error: BaseException | None) -> None:
        """Count a failure, and log it unless the same was logged lately.

        Args:
            what: a sentence, such as ``"a request has failed"``.
            error: what was raised.
        """
        self.total += 1
        place = _place(what, error)
        now = self._clock()
        if now - self._logged.get(place, -_AGAIN_AFTER) < _AGAIN_AFTER:
            self._not_logged[place] = self._not_logged.get(place, 0) + 1
            return
        if len(self._logged) >= _MOST_PLACES:
            self._logged.clear()
            self._not_logged.clear()
        self._logged[place] = now
        before = self._not_logged.pop(place, 0)
        more = f" (and {before} times more since it was last logged)" if before else ""
        _log.error("%s%s", what, more, exc_info=error)

    def of_loop(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For ``loop.set_exception_handler``: what failed in a callback, or in a task that nobody awaits.

        A client that breaks off its TLS handshake is no failure: :class:`listener.Listener` counts it.
        """
        what, error = str(context.get("message", "a callback has failed")), context.get("exception")
        if not is_failed_handshake(what):
            # A class where asyncio promises an instance, as aiofastnet 1.2 has it, must not fail here in turn: asyncio
            # would log that each time.
            self.report(what, error() if isinstance(error, type) else error)


def _place(what: str, error: BaseException | None) -> tuple[str, str, int]:
    trace = None if error is None else error.__traceback__
    if trace is None:
        # Without a traceback, texts of asyncio's differ by what they name.
        return type(error).__name__, what[:40], 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return type(error).__name__, trace.tb_frame.f_code.co_filename, trace.tb_lineno
