# SPDX-License-Identifier: Apache-2.0
"""Tasks that run in the background, where nobody awaits them: one that fails is logged by its name.

asyncio tells of a failed task when it is collected, and of one that somebody holds never. Each task here is held until
it is done, for the event loop itself holds it weakly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Callable, TypeVar

__all__ = ["restarted", "watched"]

log = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
"""For what fails each time: a traceback a minute is 2 MB of log a day."""

T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()


def watched(
    name: str, coroutine: Coroutine[Any, Any, T], *, on_failure: Callable[[Exception], None] | None = None
) -> asyncio.Task[T]:
    """Run a coroutine in the background, and log it where it fails.

    Args:
        name: what it does, for the operator: "<name> has failed".
        on_failure: is told of the exception, such as to end the process where nothing works without this task.

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


def restarted(name: str, run: Callable[[], Awaitable[None]], *, pause: float = RESTART_SECONDS) -> asyncio.Task[None]:
    """Run something in the background, and again, after a pause, where it fails; one that returns is done.

    Args:
        name: what it does, for the operator: "<name> has failed".
        run: makes the coroutine.
        pause: seconds between a failure and the next start. It doubles, up to a minute, for as long as each run fails
            within a minute.

    Returns:
        the task, to cancel.
    """
    return watched(name, _again_and_again(name, run, pause))


async def _again_and_again(name: str, run: Callable[[], Awaitable[None]], pause: float) -> None:
    loop = asyncio.get_running_loop()
    next_pause = pause
    while True:
        began = loop.time()
        try:
            await run()
        except Exception:  # whatever it is, the next run may do better
            log.exception("%s has failed, and is started again", name)
        else:
            return
        if loop.time() - began > LONGEST_PAUSE_SECONDS:
            next_pause = pause
        await asyncio.sleep(next_pause)
        next_pause = min(2 * next_pause, LONGEST_PAUSE_SECONDS)
