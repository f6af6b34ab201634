# SPDX-License-Identifier: Apache-2.0
"""Tasks that nobody awaits: a failure is logged with the task's name.

asyncio reports the exception of a task only when the task is garbage-collected, and never while something refers to
it. The event loop has only weak references, so each task is kept here until it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Callable, TypeVar

__all__ = ["spawn", "supervise"]

log = logging.getLogger(__name__)

_RESTART_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
"""For a task that fails each time: one traceback a minute is 2 MB of log a day."""

T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()


def spawn(
    name: str, coroutine: Coroutine[Any, Any, T], *, on_failure: Callable[[Exception], None] | None = None
) -> asyncio.Task[T]:
    """Run a coroutine in the background, and log its exception if it fails.

    Args:
        name: what it does, for the log: "<name> has failed".
        on_failure: called with the exception, for example to end a process that cannot work without this task.

    Returns:
        the task, to cancel or to await.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)

    def done(task: asyncio.Task[T]) -> None:
        _running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            log.error("%s has failed", name, exc_info=error)
            if on_failure is not None:
                on_failure(error)

    task.add_done_callback(done)
    return task


def supervise(name: str, run: Callable[[], Awaitable[None]], *, pause: float = _RESTART_SECONDS) -> asyncio.Task[None]:
    """Run a coroutine in the background, and run it again, after a pause, each time it fails. Ends when it returns.

    Args:
        name: what it does, for the log: "<name> has failed".
        run: makes the coroutine.
        pause: seconds between a failure and the next start. It doubles, up to a minute, while each run fails within a
            minute.

    Returns:
        the task, to cancel.
    """
    return spawn(name, _run_until_success(name, run, pause))


async def _run_until_success(name: str, run: Callable[[], Awaitable[None]], pause: float) -> None:
    loop = asyncio.get_running_loop()
    next_pause = pause
    while True:
        began = loop.time()
        try:
            await run()
        except Exception:  # whatever it is, the next run may succeed
            log.exception("%s has failed, and is started again", name)
        else:
            return
        if loop.time() - began > _LONGEST_PAUSE_SECONDS:
            next_pause = pause
        await asyncio.sleep(next_pause)
        next_pause = min(2 * next_pause, _LONGEST_PAUSE_SECONDS)
