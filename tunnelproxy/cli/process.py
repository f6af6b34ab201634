# SPDX-License-Identifier: Apache-2.0
"""What a process that holds tokens does first, and how it runs its event loop until a signal ends it."""

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

# Not the variables that users set: those rank below --config, and the command line above it.
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
    """Keep tokens out of core files, and files of ours away from other users."""
    os.umask(0o077)
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def hide_tokens() -> None:
    """Start this process anew with the tokens from its arguments in its environment instead.

    Arguments are there for every user to see, in ``ps``; the environment is not.
    """
    kept, tokens = take_tokens(sys.argv[1:])
    if tokens:
        environment = {**os.environ, **{_HIDDEN[name]: token for name, token in tokens.items()}}
        os.execve(sys.executable, [sys.executable, sys.argv[0], *kept], environment)  # noqa: S606  ourselves


def hidden_tokens() -> dict[str, str]:
    """What :func:`hide_tokens` has taken off the command line, by the names of the options."""
    return {name: os.environ.pop(variable) for name, variable in _HIDDEN.items() if variable in os.environ}


def take_tokens(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Divide a command line into what may be seen, and the tokens by the names of their options.

    A token may begin with a dash. One that is not there is left for the parser to miss.
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
