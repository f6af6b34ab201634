# SPDX-License-Identifier: GPL-3.0-or-later
"""A task in the background never ends unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.background_tasks import restarted, watched


async def fails() -> None:
    raise ValueError("no good")


@in_event_loop
async def test_one_that_fails_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    task = watched("counting sheep", fails())
    await until(task.done)
    assert [record.getMessage() for record in caplog.records] == ["counting sheep has failed"]


@in_event_loop
async def test_whoever_depends_on_it_is_told() -> None:
    told: list[Exception] = []
    watched("counting sheep", fails(), on_failure=told.append)
    await until(lambda: told)
    assert str(told[0]) == "no good"


@in_event_loop
async def test_its_result_is_to_be_had() -> None:
    async def counts() -> int:
        return 7

    assert await watched("counting sheep", counts()) == 7


@in_event_loop
async def test_one_that_is_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = watched("counting sheep", asyncio.sleep(60))
    task.cancel()
    await until(task.done)
    assert not caplog.records


@in_event_loop
async def test_one_that_is_to_run_for_ever_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def fails_twice() -> None:
        nonlocal runs
        runs += 1
        if runs <= 2:
            await fails()

    task = restarted("counting sheep", fails_twice, pause=0)
    await until(task.done)
    assert runs == 3
    said = "counting sheep has failed, and is started again"
    assert [record.getMessage() for record in caplog.records] == [said, said]


@in_event_loop
async def test_one_that_fails_each_time_is_started_less_and_less_often() -> None:
    began: list[float] = []

    async def fails_always() -> None:
        began.append(asyncio.get_running_loop().time())
        await fails()

    task = restarted("counting sheep", fails_always, pause=0.01)
    await until(lambda: len(began) == 5)
    task.cancel()
    pauses = [later - earlier for earlier, later in zip(began, began[1:])]
    assert all(pause >= 0.01 * 2**number for number, pause in enumerate(pauses))
