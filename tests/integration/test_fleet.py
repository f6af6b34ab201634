# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices with an agent each: every device gets one tunnel, even if the hub is killed.

There are three of them, or ``TEST_FLEET``; ``make test-fleet`` runs twenty.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from peers.collection import Outcome
from peers.fleet import AgentFleet
from peers.process import wait_for

DEVICES = int(os.environ.get("TEST_FLEET", "3"))
THINGS = tuple(f"pump-{number}" for number in range(1, DEVICES + 1))
FORKS = ("-f", str(DEVICES))
ONE_EACH = {1: DEVICES}
DONE = ("SUCCESS", "CHANGED")


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    began = time.monotonic()
    with AgentFleet(*THINGS) as running:
        print(f"{DEVICES} devices up in {time.monotonic() - began:.1f} s")
        yield running


@pytest.fixture(scope="module")
def first_ping(fleet: AgentFleet) -> dict[str, Outcome]:
    """The outcome of the first command, without a hub and without a tunnel."""
    assert fleet.tunnels_each() == {0: DEVICES}
    return ping(fleet)


def ping(fleet: AgentFleet) -> dict[str, Outcome]:
    began = time.monotonic()
    outcomes = fleet.controller.module("ansible.builtin.ping", "all", *FORKS)
    print(f"ping in {time.monotonic() - began:.1f} s")
    return outcomes


def failures(outcomes: dict[str, Outcome]) -> dict[str, str]:
    assert set(outcomes) == set(THINGS)
    return {thing: outcome.message for thing, outcome in outcomes.items() if outcome.word not in DONE}


def failures_while_the_hub_is_killed(fleet: AgentFleet, moment: Callable[[], bool], *module: str) -> dict[str, str]:
    """Run a module on all devices, and kill the hub at a given moment; return the failures."""
    retrying = {"ANSIBLE_SSH_RETRIES": "3"}
    hub = hub_of(fleet)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fleet.controller.run, "ansible", "all", *FORKS, "-m", *module, **retrying)
        wait_for(lambda: running.done() or moment(), "the moment to kill the hub", 60)
        os.kill(hub, signal.SIGKILL)
        said = running.result().stdout
    words = dict(re.findall(r"^(\S+) \| (\w+)", said, re.MULTILINE))
    assert set(words) == set(THINGS), said
    return {thing: said for thing, word in words.items() if word not in DONE}


def hub_of(fleet: AgentFleet) -> int:
    pid: int = fleet.controller.hub_status()["pid"]
    return pid


def test_a_first_ping_opens_one_tunnel_per_device(fleet: AgentFleet, first_ping: dict[str, Outcome]) -> None:
    assert failures(first_ping) == {}
    assert fleet.tunnels_each() == ONE_EACH


def test_no_second_tunnel_after_the_hub_was_killed_between_two_runs(
    fleet: AgentFleet, first_ping: dict[str, Outcome]
) -> None:
    before = fleet.tunnels()
    os.kill(hub_of(fleet), signal.SIGKILL)
    # As if hours had passed, and ssh's own connections were gone too.
    fleet.controller.disconnect()

    assert failures(ping(fleet)) == {}
    assert fleet.tunnels() == before


def test_no_second_tunnel_after_the_hub_was_killed_in_the_middle_of_a_run(
    fleet: AgentFleet, first_ping: dict[str, Outcome]
) -> None:
    before = fleet.tunnels()
    begun = fleet.home / "begun"
    begun.mkdir()
    # Each first attempt blocks.
    work = f"mkdir {begun}/{{{{ inventory_hostname }}}} && while [ -d {begun} ]; do sleep 0.1; done; true"

    assert (
        failures_while_the_hub_is_killed(
            fleet, lambda: len(list(begun.iterdir())) == DEVICES, "ansible.builtin.shell", "-a", work
        )
        == {}
    )
    assert fleet.tunnels() == before


def test_no_second_tunnel_after_the_hub_was_killed_while_it_opened_them(
    fleet: AgentFleet, first_ping: dict[str, Outcome]
) -> None:
    fleet.close_tunnels()

    assert (
        failures_while_the_hub_is_killed(fleet, lambda: fleet.tunnels_each()[1] >= DEVICES // 4, "ansible.builtin.ping")
        == {}
    )
    assert fleet.tunnels_each() == ONE_EACH
