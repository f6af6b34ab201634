# SPDX-License-Identifier: Apache-2.0
"""Logs unexpected errors with their tracebacks, at a limited rate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ...net.connections import is_failed_handshake

__all__ = ["UnexpectedErrors"]

_REPEAT_AFTER = 600.0
_MAX_PLACES = 200

log = logging.getLogger(__name__)


class UnexpectedErrors:
    """Logs one traceback per place of failure, and after ten minutes another one with the count since then.

    Args:
        clock: returns seconds, monotonic.

    Attributes:
        total: how many errors there were.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self._clock = clock
        self._logged: dict[tuple[str, str, int], float] = {}
        self._not_logged: dict[tuple[str, str, int], int] = {}

    def report(self, what: str, error: BaseException | None) -> None:
        """Count an error, and log it unless it was logged recently.

        Args:
            what: a sentence, such as ``"a request has failed"``.
            error: the exception.
        """
        self.total += 1
        place = _place(what, error)
        now = self._clock()
        if now - self._logged.get(place, -_REPEAT_AFTER) < _REPEAT_AFTER:
            self._not_logged[place] = self._not_logged.get(place, 0) + 1
            return
        if len(self._logged) >= _MAX_PLACES:
            self._logged.clear()
            self._not_logged.clear()
        self._logged[place] = now
        before = self._not_logged.pop(place, 0)
        more = f" ({before} more times since this was last logged)" if before else ""
        log.error("%s%s", what, more, exc_info=error)

    def of_loop(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For ``loop.set_exception_handler``: an error in a callback, or in a task that is not awaited.

        A client that aborts its TLS handshake is not an error: the listener counts it.
        """
        what, error = str(context.get("message", "a callback has failed")), context.get("exception")
        if not is_failed_handshake(what):
            # aiofastnet 1.2 passes a class, although asyncio promises an instance. That must not fail here: asyncio
            # would log it each time.
            self.report(what, error() if isinstance(error, type) else error)


def _place(what: str, error: BaseException | None) -> tuple[str, str, int]:
    trace = None if error is None else error.__traceback__
    if trace is None:
        # Without a traceback, the key is the beginning of asyncio's message: the end differs.
        return type(error).__name__, what[:40], 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return type(error).__name__, trace.tb_frame.f_code.co_filename, trace.tb_lineno
