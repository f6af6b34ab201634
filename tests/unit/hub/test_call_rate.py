# SPDX-License-Identifier: GPL-3.0-or-later
"""How far apart calls are made, in the order in which they were asked for."""

from __future__ import annotations

import asyncio

import pytest

from peers.event_loop import in_event_loop
from tunnelproxy.hub.account import Account
from tunnelproxy.hub.call_rate import RATE_VARIABLE, CallRate, rate_of
from tunnelproxy.hub.location import HubError

AWS = Account("aws", "123456789012", "eu-central-1")
OWN = AWS._replace(endpoint="https://service")


@pytest.mark.parametrize(
    ("op", "account", "chosen", "rate"),
    [
        ("open", AWS, None, 1.0),
        ("open", AWS, "", 1.0),
        ("open", AWS, "2.5", 2.5),
        ("open", AWS, "0", 0.0),
        ("end_states", AWS, "2.5", 10.0),
        ("identify", AWS, None, 0.0),
        ("open", OWN, None, 0.0),
        ("open", OWN, "3", 3.0),
        ("take", OWN, None, 0.0),
    ],
)
def test_aws_has_known_rates_and_the_caller_may_know_better(
    op: str, account: Account, chosen: str | None, rate: float
) -> None:
    assert rate_of(op, account, {} if chosen is None else {RATE_VARIABLE: chosen}) == rate


@pytest.mark.parametrize("chosen", ["-1", "nan", "inf", "1 per second", "¹"])
def test_a_rate_that_is_no_number_is_named(chosen: str) -> None:
    with pytest.raises(HubError, match=f"{RATE_VARIABLE}$") as caught:
        rate_of("open", AWS, {RATE_VARIABLE: chosen})
    assert caught.value.code == "bad-input"


async def turns(calls: CallRate, number: int, rate: float) -> list[tuple[int, float]]:
    """Who had a turn, and when, in the order of the turns."""
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    had: list[tuple[int, float]] = []

    async def take(who: int) -> None:
        await calls.turn(rate)
        had.append((who, loop.time() - began))

    await asyncio.gather(*(take(who) for who in range(number)))
    return had


@in_event_loop
async def test_turns_come_at_the_rate_and_in_order() -> None:
    had = await turns(CallRate(), 4, 50.0)
    assert [who for who, _ in had] == [0, 1, 2, 3]
    assert all(later - sooner >= 1 / 50.0 for (_, sooner), (_, later) in zip(had, had[1:]))


@in_event_loop
async def test_without_a_rate_nobody_waits_until_a_call_is_throttled() -> None:
    calls = CallRate()
    assert (await turns(calls, 100, 0.0))[-1][1] < 1.0
    calls.throttled(100.0)
    assert all(at >= 1 / 100.0 for _, at in await turns(calls, 3, 0.0))


@in_event_loop
async def test_who_gives_up_does_not_keep_the_others_waiting() -> None:
    calls = CallRate()
    calls.throttled(20.0)
    impatient = asyncio.get_running_loop().create_task(calls.turn(0.0))
    patient = asyncio.get_running_loop().create_task(calls.turn(0.0))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait_for(patient, 10)
