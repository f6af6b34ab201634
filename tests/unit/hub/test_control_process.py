# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose control process is used, how many there are, and what is made of their answers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from peers.event_loop import in_event_loop, until
from peers.hub_in_process import ACCOUNT
from tunnelproxy.hub import control_process
from tunnelproxy.hub.account import Account
from tunnelproxy.hub.control_answers import EndStates
from tunnelproxy.hub.control_process import Callers
from tunnelproxy.hub.fingerprint import fingerprint
from tunnelproxy.hub.known_accounts import KnownAccounts
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.wire import Caller

CALLER = Caller({"AWS_PROFILE": "ops"}, "/")


class Process:
    """A control process that answers what a test wants; it counts those that run."""

    running: list[Process]
    asked: list[str]
    answers: dict[str, Any]
    start_error: Exception | None = None

    def __init__(self) -> None:
        self.alive = True
        self._gone: list[Callable[[], None]] = []

    @classmethod
    async def start(cls, caller: Caller) -> Process:
        if cls.start_error is not None:
            raise cls.start_error
        made = cls()
        cls.running.append(made)
        return made

    async def ask(self, op: str, arguments: Mapping[str, Any]) -> Any:
        self.asked.append(op)
        answer = self.answers[op]
        if callable(answer):
            answer = await answer(self)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def when_gone(self, call: Callable[[], None]) -> None:
        self._gone.append(call)

    async def stop(self) -> None:
        self.alive = False
        self.running.remove(self)
        for call in self._gone:
            call()


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    identity = {"key": ACCOUNT, "known_by": "digest", "watch": {}, "lasts": True}
    for name, value in {"running": [], "asked": [], "answers": {"identify": identity}, "start_error": None}.items():
        monkeypatch.setattr(Process, name, value, raising=False)
    monkeypatch.setattr(control_process, "_Process", Process)
    return Process


@pytest.fixture
def known(tmp_path: Path) -> KnownAccounts:
    return KnownAccounts(tmp_path / "accounts.jsonl")


@in_event_loop
async def test_callers_of_one_environment_share_a_process(known: KnownAccounts) -> None:
    callers = Callers(known)
    one = callers.of(CALLER)
    assert callers.of(replace(CALLER, environment={"AWS_PROFILE": "ops", "SHLVL": "3", "_": "/bin/x"})) is one
    others = [
        replace(CALLER, environment={"AWS_PROFILE": "other"}),
        replace(CALLER, directory="/tmp"),
        replace(CALLER, verify=False),
        replace(CALLER, python="/usr/bin/python3"),
    ]
    assert len({id(callers.of(each)) for each in [CALLER, *others]}) == 5


@in_event_loop
async def test_an_account_is_asked_for_once_while_its_files_stay(
    known: KnownAccounts, tmp_path: Path, processes: type[Process]
) -> None:
    path = tmp_path / "config"
    path.write_text("a")
    processes.answers["identify"]["watch"] = {str(path): fingerprint(str(path))}
    caller = Callers(known).of(CALLER)
    for _ in range(2):
        assert await caller.account("pump") == Account.from_key(ACCOUNT)
    assert (processes.asked, dict(known)) == (["identify"], {"digest": ACCOUNT})
    path.write_text("ab")
    await caller.account("pump")
    assert processes.asked == ["identify", "identify"]


@in_event_loop
async def test_an_account_that_may_change_at_any_time_is_soon_asked_for_again(
    known: KnownAccounts, processes: type[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.answers["identify"].update(lasts=False, key="aws::eu-central-1@https://service")
    monkeypatch.setattr(control_process, "STALE_SECONDS", 0.0)
    caller = Callers(known).of(CALLER)
    await caller.account("pump")
    caller.learn(Account.from_key(ACCOUNT))
    await caller.account("pump")
    # A service that does not tell its account ID is not remembered.
    assert (processes.asked, dict(known)) == (["identify", "identify"], {})


@in_event_loop
async def test_found_tunnels_and_states_are_data(known: KnownAccounts, processes: type[Process]) -> None:
    caller = Callers(known).of(CALLER)
    tunnel = {
        "tunnel_id": "id",
        "arn": "arn",
        "region": "eu-central-1",
        "services": ["SSH1"],
        "expires_at": 1.5,
        "source_token": "the-token",
    }
    processes.answers.update(
        open=tunnel, take=None, end_states={"tunnel": "OPEN"}, call={"a": 1}, check_registered=None
    )
    opened = await caller.open("pump", ["SSH1"], "me")
    assert (opened.services, opened.taken_from) == (("SSH1",), "")
    assert "the-token" not in repr(opened)
    assert await caller.take("pump", "SSH1", 60.0, "me", take_over=False, held=[]) is None
    processes.answers["take"] = {**tunnel, "taken_from": "you"}
    taken = await caller.take("pump", "SSH1", 60.0, "me", take_over=True, held=[])
    assert taken is not None
    assert taken.taken_from == "you"
    assert await caller.end_states("id") == EndStates(tunnel="OPEN")
    assert await caller.call("iot", "list_things", {}, "list things") == {"a": 1}
    await caller.check_registered("pump")


@in_event_loop
async def test_states_that_nobody_can_say_are_unknown(known: KnownAccounts, processes: type[Process]) -> None:
    processes.answers["end_states"] = HubError("it is throttled")
    assert await Callers(known).of(CALLER).end_states("id") == EndStates()


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (FileNotFoundError(2, "No such file"), "hub-failed", "cannot be started with /no/python: No such file"),
            (ValueError("embedded null byte"), "bad-input", "cannot be passed on (embedded null byte)"),
        ],
    )
    def test_a_process_that_cannot_be_started_is_told(
        self, error: Exception, code: str, words: str, known: KnownAccounts, processes: type[Process]
    ) -> None:
        @in_event_loop
        async def check() -> None:
            processes.start_error = error
            with pytest.raises(HubError) as caught:
                await Callers(known).of(replace(CALLER, python="/no/python")).account("pump")
            assert caught.value.code == code
            assert words in caught.value.message

        check()

    @in_event_loop
    async def test_an_answer_that_does_not_come_is_told(
        self, known: KnownAccounts, processes: type[Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_process, "CALL_SECONDS", 0.01)

        async def never(process: Process) -> None:
            await asyncio.Event().wait()

        processes.answers["open"] = never
        with pytest.raises(HubError, match="the control API did not answer within 0 s"):
            await Callers(known).of(CALLER).open("pump", ["SSH1"], "me")

    @in_event_loop
    async def test_what_only_reads_is_asked_again_where_the_process_ended(
        self, known: KnownAccounts, processes: type[Process]
    ) -> None:
        async def end(process: Process) -> Any:
            process.alive = False
            processes.answers.update(end_states={"tunnel": "OPEN"})
            return control_process._EndedError("it ended")

        processes.answers.update(end_states=end, open=end)
        caller = Callers(known).of(CALLER)
        assert (await caller.end_states("id")).tunnel == "OPEN"
        with pytest.raises(HubError, match="it ended"):
            await caller.open("pump", ["SSH1"], "me")
        assert processes.asked == ["end_states", "end_states", "open"]


class TestNumber:
    @in_event_loop
    async def test_the_longest_unused_process_makes_room(
        self, known: KnownAccounts, processes: type[Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_process, "MOST_PROCESSES", 2)
        callers = Callers(known)
        three = [callers.of(replace(CALLER, environment={"AWS_PROFILE": name})) for name in "abc"]
        for each in three:
            await each.account("pump")
        assert [each.running for each in three] == [False, True, True]
        assert len(processes.running) == 2
        await callers.stop()
        assert processes.running == []

    @in_event_loop
    async def test_whoever_waits_for_a_place_has_it_when_somebody_is_answered(
        self, known: KnownAccounts, processes: type[Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_process, "MOST_PROCESSES", 1)
        answer = asyncio.Event()

        async def wait(process: Process) -> Any:
            await answer.wait()
            return {"tunnel": "OPEN"}

        processes.answers["end_states"] = wait
        callers = Callers(known)
        loop = asyncio.get_running_loop()
        first = loop.create_task(callers.of(CALLER).end_states("id"))
        await until(lambda: processes.asked)
        second = loop.create_task(callers.of(replace(CALLER, directory="/tmp")).end_states("id"))
        await until(lambda: callers._waiting)
        answer.set()
        assert [(await each).tunnel for each in (first, second)] == ["OPEN", "OPEN"]
        await callers.stop()

    @in_event_loop
    async def test_processes_that_nobody_needs_end(
        self, known: KnownAccounts, processes: type[Process], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        callers = Callers(known)
        used, other = callers.of(CALLER), callers.of(replace(CALLER, directory="/tmp"))
        for each in (used, other):
            await each.account("pump")
        callers.tidy([used])
        assert (used.running, callers.of(CALLER) is used) == (True, True)
        monkeypatch.setattr(control_process, "IDLE_SECONDS", 0.0)
        callers.tidy([used])
        await until(lambda: processes.running == [])
        assert callers.of(CALLER) is used
        assert callers.of(replace(CALLER, directory="/tmp")) is not other


@in_event_loop
async def test_a_caller_s_data_plane_is_that_of_its_environment(known: KnownAccounts) -> None:
    caller = Callers(known).of(Caller({"AWSIOT_TUNNEL_ENDPOINT": "127.0.0.1:1"}, "/"))
    assert caller.data_plane.endpoint == "127.0.0.1:1"


REAL_PROCESS = control_process._Process


class Pipes:
    """The pipes of a control process, whose other ends a test has."""

    def __init__(self) -> None:
        self.stdout, self.stderr = asyncio.StreamReader(limit=1000), asyncio.StreamReader(limit=1000)
        self.stdin = self
        self.pid = 0
        self.requests: list[dict[str, Any]] = []
        self.killed = False

    def write(self, data: bytes) -> None:
        self.requests.append(json.loads(data))

    async def drain(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.end()

    def kill(self) -> None:
        self.killed = True
        self.end()

    def end(self) -> None:
        for stream in (self.stdout, self.stderr):
            stream.feed_eof()

    async def wait(self) -> int:
        return 0


class TestPipes:
    @pytest.fixture(autouse=True)
    def no_signals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def killpg(pid: int, number: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(os, "killpg", killpg)

    @in_event_loop
    async def test_answers_come_in_any_order(self) -> None:
        pipes = Pipes()
        process = REAL_PROCESS(pipes)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        first, second = (loop.create_task(process.ask("identify", {"thing": name})) for name in "ab")
        await until(lambda: len(pipes.requests) == 2)
        pipes.stdout.feed_data(b'{"id": 1, "result": "b"}\n{"id": 7, "result": "?"}\n')
        pipes.stdout.feed_data(b'{"id": 0, "error": "it is refused", "code": "no-permission"}\n')
        assert await second == "b"
        with pytest.raises(HubError, match="it is refused") as caught:
            await first
        assert caught.value.code == "no-permission"
        assert process.alive
        await process.stop()
        assert not process.alive

    @in_event_loop
    async def test_a_process_that_ended_is_told_with_its_last_words(self) -> None:
        pipes = Pipes()
        process = REAL_PROCESS(pipes)  # type: ignore[arg-type]
        gone = asyncio.Event()
        process.when_gone(gone.set)
        asking = asyncio.get_running_loop().create_task(process.ask("identify", {}))
        await until(lambda: pipes.requests)
        pipes.stderr.feed_data(b"x" * 2000 + b"\nKilled\n")
        await until(lambda: process._said and process._said[-1] == "Killed")
        pipes.end()
        with pytest.raises(HubError, match=r"exited before it answered \(Killed\): run the task again"):
            await asking
        await gone.wait()
        with pytest.raises(HubError, match="exited before it answered"):
            await process.ask("identify", {})

    @in_event_loop
    async def test_a_process_that_answers_nonsense_is_killed(self, caplog: pytest.LogCaptureFixture) -> None:
        pipes = Pipes()
        process = REAL_PROCESS(pipes)  # type: ignore[arg-type]
        pipes.stdout.feed_data(b"hello\n")
        await until(lambda: not process.alive)
        assert pipes.killed
        assert "a control process sent an invalid answer" in caplog.text


def test_a_folder_that_is_gone_is_the_root(tmp_path: Path) -> None:
    assert control_process._existing(str(tmp_path)) == str(tmp_path)
    assert control_process._existing(str(tmp_path / "gone")) == "/"
    assert control_process._identity(str(tmp_path / "gone")) == []
