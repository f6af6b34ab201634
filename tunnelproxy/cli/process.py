# SPDX-License-Identifier: Apache-2.0
"""Protects a process's tokens, and runs its event loop until a signal stops it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from .abbreviations import TOKENS
from .readiness import notify

__all__ = ["hidden_tokens", "hide_tokens", "new_event_loop", "protect_memory", "run_until_signal", "take_tokens"]

# Different from the variables that users set: --config overrides those, and the command line overrides --config.
_HIDDEN = {
    "access-token": "TUNNELPROXY_ARGUMENT_ACCESS_TOKEN",
    "client-token": "TUNNELPROXY_ARGUMENT_CLIENT_TOKEN",
}
# --access-token TOKEN, --access-token=TOKEN and --acc TOKEN; -t TOKEN, -tTOKEN and -kt TOKEN.
_LONG = re.compile(rf"--(?P<name>{'|'.join(TOKENS)})(?:=(?P<token>.*))?\Z", re.DOTALL)
_SHORT = re.compile(r"-(?P<flags>[hVk]*)(?P<name>[ti])=?(?P<token>.+)?\Z", re.DOTALL)
_NAMES = {"t": "access-token", "i": "client-token", **TOKENS}

T = TypeVar("T")


def protect_memory() -> None:
    """Keep tokens out of core files, and make new files unreadable for other users."""
    os.umask(0o077)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_tokens() -> None:
    """Restart this process with the tokens moved from its arguments to its environment.

    Every user can see a process's arguments in ``ps``, but not its environment.
    """
    kept, tokens = take_tokens(sys.argv[1:])
    if tokens:
        environment = {**os.environ, **{_HIDDEN[name]: token for name, token in tokens.items()}}
        os.execve(sys.executable, [sys.executable, sys.argv[0], *kept], environment)  # noqa: S606  ourselves


def hidden_tokens() -> dict[str, str]:
    """The tokens that :func:`hide_tokens` removed from the command line, by the names of their options."""
    return {name: os.environ.pop(variable) for name, variable in _HIDDEN.items() if variable in os.environ}


def take_tokens(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into the arguments that others may see, and the tokens by the names of their options.

    A token may begin with a dash. An option without its token is left for the parser to reject.
    """
    kept: list[str] = []
    tokens: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        match = _LONG.match(argument) or _SHORT.match(argument)
        if match is None:
            kept.append(argument)
            continue
        token = match["token"] if match["token"] is not None else next(rest, None)
        if token is None:
            kept.append(argument)
            break
        tokens[_NAMES[match["name"]]] = token
        if match.groupdict().get("flags"):
            kept.append(f"-{match['flags']}")
    return kept, tokens


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Create an event loop: uvloop's if it is installed (the extra ``speed``)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run_until_signal(main: Coroutine[Any, Any, T]) -> T | None:
    """Run a coroutine until it returns, or until SIGTERM or SIGINT cancels it; then return None."""
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)

    def stop() -> None:
        notify("STOPPING=1")
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        return None
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
