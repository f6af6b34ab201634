# SPDX-License-Identifier: GPL-3.0-or-later
"""Tunnels to many things are opened as fast as the control API allows, and no faster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peers.process import wait_for
from peers.service import TunnelingService
from peers.throttle import Throttle
from tunnelproxy.hub import client
from tunnelproxy.hub.control_worker import AT_ONCE

OPENS_PER_SECOND = 4.0
THINGS = 12

numbers = itertools.count(1)


@pytest.fixture
def throttle(service: TunnelingService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Throttle]:
    """A control API that throttles, for a controller with a hub of its own."""
    rates = {"OpenTunnel": OPENS_PER_SECOND}
    with Throttle(service.api, ca=service.environment["AWS_CA_BUNDLE"], rates=rates) as throttle:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_IOTSECURETUNNELING", throttle.url)
        monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
        yield throttle
        client.stop()


def outcome(thing: str, wait: float = 0.0) -> str:
    """Open a tunnel to a thing that no device belongs to, and return the code of the failure."""
    with pytest.raises(client.HubError) as caught:
        client.ensure(thing, open_policy="reuse", unregistered=True, wait=wait)
    return caught.value.code


def open_many(things: int) -> list[str]:
    names = [f"rate-{next(numbers)}" for _ in range(things)]
    with ThreadPoolExecutor(things) as pool:
        return list(pool.map(outcome, names))


@pytest.mark.alone
def test_tunnels_to_many_things_are_opened_at_the_known_rate(
    throttle: Throttle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_OPEN_RATE", str(OPENS_PER_SECOND))
    assert set(open_many(THINGS)) == {"device-not-connected"}
    opened = throttle.times("OpenTunnel")
    assert (throttle.refused, len(opened)) == (0, THINGS)
    assert opened[-1] - opened[0] < 1.25 * (THINGS - 1) / OPENS_PER_SECOND


@pytest.mark.parametrize("rate", ["", str(OPENS_PER_SECOND)])
def test_an_opening_that_is_throttled_all_the_same_is_repeated(
    throttle: Throttle, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_OPEN_RATE", rate)
    with throttle.refusing(3, "OpenTunnel"):
        assert set(open_many(4)) == {"device-not-connected"}
        assert throttle.refused >= 3
    assert len(throttle.times("OpenTunnel")) == 4 + throttle.refused


def test_devices_that_are_waited_for_do_not_delay_the_next_tunnel(
    throttle: Throttle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description that takes long must not take the place of a call that opens a tunnel."""
    monkeypatch.setenv("IOTOPS_TUNNEL_OPEN_RATE", str(OPENS_PER_SECOND))
    with ThreadPoolExecutor(THINGS) as pool, throttle.holding("DescribeTunnel"):
        for _ in range(THINGS):
            pool.submit(outcome, f"rate-{next(numbers)}")
        wait_for(lambda: throttle.held == AT_ONCE, "there are as many descriptions at once as there may be", 30)
        wait_for(lambda: len(throttle.times("OpenTunnel")) == THINGS, "all tunnels are opened nevertheless", 10)
        assert client.call("open_tunnel", {}, purpose="open one more")["tunnelId"]
