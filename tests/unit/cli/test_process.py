# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that holds tokens does first, and how it runs until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

import pytest

from tunnelproxy.cli.process import (
    hidden_tokens,
    hide_tokens,
    new_event_loop,
    protect_memory,
    run_until_signal,
    take_tokens,
)


@pytest.mark.parametrize(
    ("arguments", "kept", "tokens"),
    [
        ("-m src", "-m src", {}),
        ("-m src -t T -v 5", "-m src -v 5", {"access-token": "T"}),
        ("-tT -m src", "-m src", {"access-token": "T"}),
        ("-t=T", "", {"access-token": "T"}),
        ("--access-token T", "", {"access-token": "T"}),
        ("--access-token=T", "", {"access-token": "T"}),
        ("--access-token=", "", {"access-token": ""}),
        ("--acc T --cl=C -m src", "-m src", {"access-token": "T", "client-token": "C"}),
        ("--c x", "--c x", {}),
        ("-i C -t T", "", {"access-token": "T", "client-token": "C"}),
        ("-iC --client-token=D", "", {"client-token": "D"}),
        ("--client-token C", "", {"client-token": "C"}),
        ("-t -T -i --C", "", {"access-token": "-T", "client-token": "--C"}),
        ("-t --access-token", "", {"access-token": "--access-token"}),
        ("-kt T -m src", "-k -m src", {"access-token": "T"}),
        ("-ktT", "-k", {"access-token": "T"}),
        ("-m src -t", "-m src -t", {}),
        ("--access-token", "--access-token", {}),
        ("--access-tokens T", "--access-tokens T", {}),
        ("-d -t", "-d -t", {}),
        ("-r us-east-1 -c /ti -dtcp=22 -e it", "-r us-east-1 -c /ti -dtcp=22 -e it", {}),
    ],
)
def test_what_is_taken(arguments: str, kept: str, tokens: dict[str, str]) -> None:
    assert take_tokens(arguments.split()) == (kept.split(), tokens)


def test_tokens_are_moved_from_the_arguments_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: started.append((arguments, environment)))
    monkeypatch.setattr(sys, "argv", ["tunnelproxy", "-m", "src", "-t", "secret"])
    hide_tokens()
    [(arguments, environment)] = started
    assert arguments == [sys.executable, "tunnelproxy", "-m", "src"]
    monkeypatch.setattr(os, "environ", environment)
    assert hidden_tokens() == {"access-token": "secret"}
    # Processes that this one starts do not have them.
    assert hidden_tokens() == {}


def test_without_tokens_the_process_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(sys, "argv", ["tunnelproxy", "-m", "src"])
    hide_tokens()


def test_files_are_the_users_own_and_there_are_no_core_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: limits.append((which, values)))
    before = os.umask(0o022)
    try:
        protect_memory()
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)
    assert limits == [(resource.RLIMIT_CORE, (0, 0))]


def test_the_result_of_the_coroutine_is_returned() -> None:
    async def main() -> int:
        return 7

    assert run_until_signal(main()) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_the_coroutine(number: signal.Signals) -> None:
    cancelled: list[bool] = []

    async def main() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert run_until_signal(main()) is None
    assert cancelled == [True]


def test_without_uvloop_the_event_loop_is_asyncios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop()
    loop.close()
    assert isinstance(loop, asyncio.SelectorEventLoop)
