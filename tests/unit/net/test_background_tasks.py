# SPDX-License-Identifier: GPL-3.0-or-later
"""A background task never fails unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.background_tasks import spawn, supervise


async def fails() -> None:
    raise ValueError("no good")


@in_event_loop
async def test_a_task_that_fails_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    task = spawn("counting sheep", fails())
    await until(task.done)
    assert [record.getMessage() for record in caplog.records] == ["counting sheep has failed"]


@in_event_loop
async def test_on_failure_is_called_with_the_exception() -> None:
    told: list[Exception] = []
    spawn("counting sheep", fails(), on_failure=told.append)
    await until(lambda: told)
    assert str(told[0]) == "no good"


@in_event_loop
async def test_its_result_can_be_awaited() -> None:
    async def counts() -> int:
        return 7

    assert await spawn("counting sheep", counts()) == 7


@in_event_loop
async def test_a_cancelled_task_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = spawn("counting sheep", asyncio.sleep(60))
    task.cancel()
    await until(task.done)
    assert not caplog.records


@in_event_loop
async def test_a_supervised_task_that_fails_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def fails_twice() -> None:
        nonlocal runs
        runs += 1
        if runs <= 2:
            await fails()

    task = supervise("counting sheep", fails_twice, pause=0)
    await until(task.done)
    assert runs == 3
    said = "counting sheep has failed, and is started again"
    assert [record.getMessage() for record in caplog.records] == [said, said]


@in_event_loop
async def test_a_supervised_task_that_keeps_failing_is_started_less_and_less_often() -> None:
    began: list[float] = []

    async def fails_always() -> None:
        began.append(asyncio.get_running_loop().time())
        await fails()

    task = supervise("counting sheep", fails_always, pause=0.01)
    await until(lambda: len(began) == 5)
    task.cancel()
    pauses = [later - earlier for earlier, later in zip(began, began[1:])]
    assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))
