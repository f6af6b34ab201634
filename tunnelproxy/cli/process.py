# SPDX-License-Identifier: Apache-2.0
"""What a process that holds tokens does first, and how it runs its event loop until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["hide_token", "new_event_loop", "protect_memory", "run_until_signal"]

TOKEN_VARIABLE = "AWSIOT_TUNNEL_ACCESS_TOKEN"  # noqa: S105  the name of a variable, not a token

T = TypeVar("T")


def protect_memory() -> None:
    """Keep tokens out of core files, and files of ours away from other users."""
    os.umask(0o077)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_token() -> None:
    """Start this process anew with an access token from its arguments in its environment instead.

    Arguments are there for every user to see, in ``ps``; the environment is not.
    """
    kept: list[str] = []
    token = None
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument in ("-t", "--access-token"):
            token = next(arguments, None)
            if token is None:
                return
        elif argument.startswith("--access-token="):
            token = argument.partition("=")[2]
        elif argument.startswith("-t") and len(argument) > len("-t"):
            token = argument[len("-t") :]
        else:
            kept.append(argument)
    if token is not None:
        environment = {**os.environ, TOKEN_VARIABLE: token}
        os.execve(sys.executable, [sys.executable, sys.argv[0], *kept], environment)  # noqa: S606  ourselves


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop: uvloop's where it is installed (the extra ``speed``)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run_until_signal(main: Coroutine[Any, Any, T]) -> T | None:
    """Run a coroutine; SIGTERM and SIGINT cancel it, and None is returned then."""
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        return None
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
