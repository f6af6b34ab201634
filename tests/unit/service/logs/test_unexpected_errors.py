# SPDX-License-Identifier: GPL-3.0-or-later
"""What nobody has thought of is logged with its traceback, once for each place."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tunnelproxy.service.logs.unexpected_errors import UnexpectedErrors


def fail_here() -> None:
    raise ValueError("one")


def fail_there() -> None:
    raise ValueError("two")


class Clock:
    time = 0.0


def report(failures: UnexpectedErrors, *actions: object) -> None:
    for action in actions:
        try:
            action()  # type: ignore[operator]
        except ValueError as error:
            failures.report("a request has failed", error)


def test_each_place_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    failures = UnexpectedErrors(lambda: 0.0)
    report(failures, *[fail_here] * 1000, fail_there)
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info and record.exc_info[1]] == [
        ("one",),
        ("two",),
    ]
    assert failures.total == 1001


def test_it_is_logged_again_later_with_the_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    failures = UnexpectedErrors(lambda: clock.time)
    report(failures, *[fail_here] * 8)
    clock.time = 700.0
    report(failures, fail_here)
    assert caplog.records[-1].getMessage() == "a request has failed (7 more times since this was last logged)"


def test_what_fails_in_a_callback_of_the_event_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failures = UnexpectedErrors()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(failures.of_loop)
        for _ in range(3):
            loop.call_soon(fail_here)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert len(caplog.records) == 1
    assert failures.total == 3


def test_a_class_in_place_of_an_error_is_logged_as_one(caplog: pytest.LogCaptureFixture) -> None:
    failures = UnexpectedErrors()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(failures.of_loop)
        for _ in range(3):
            loop.call_exception_handler({"message": "it failed", "exception": ConnectionResetError})

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["it failed"]
    assert failures.total == 3
