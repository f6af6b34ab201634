# SPDX-License-Identifier: GPL-3.0-or-later
"""When tunnels expire, and what happens to those that cannot be stored as closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.errors import StoreError
from tunnelproxy.service.model import Mode, NewTunnel, Tunnel, digest, new_access_token
from tunnelproxy.service.state import expiry as module
from tunnelproxy.service.state.expiry import Expiry
from tunnelproxy.service.state.store import Store

NOW = 1_700_000_000.0
DAY = 24 * 3600.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "service.db")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disconnected() -> list[str]:
    return []


@pytest.fixture
def expiry(store: Store, disconnected: list[str], clock: Clock) -> Expiry:
    return Expiry(store, disconnected.append, clock=clock)


def open_tunnel(store: Store, minutes: int) -> Tunnel:
    digests = {mode: digest(new_access_token()) for mode in Mode}
    return store.open_tunnel(NewTunnel("d" * 200, lifetime=minutes), digests, NOW)


def is_open(store: Store, tunnel: Tunnel) -> bool:
    found = store.find_tunnel(tunnel.tunnel_id)
    assert found is not None
    return found.is_open


def make_read_only(store: Store, read_only: bool) -> None:
    store._db.execute(f"PRAGMA query_only = {int(read_only)}")


def test_a_tunnel_is_closed_when_its_lifetime_is_over(
    store: Store, expiry: Expiry, disconnected: list[str], clock: Clock
) -> None:
    short, long = open_tunnel(store, 1), open_tunnel(store, 2)
    assert expiry.close_due() == pytest.approx(60)
    clock.now += 61
    assert expiry.close_due() == pytest.approx(59)
    assert disconnected == [short.tunnel_id]
    assert (is_open(store, short), is_open(store, long)) == (False, True)


def test_without_a_tunnel_it_looks_again_after_an_hour(expiry: Expiry) -> None:
    assert expiry.close_due() == 3600


def test_a_closed_tunnel_is_forgotten_after_a_day(store: Store, expiry: Expiry, clock: Clock) -> None:
    tunnel = open_tunnel(store, 1)
    clock.now += 61
    expiry.close_due()
    clock.now += DAY - 1
    expiry.close_due()
    assert store.find_tunnel(tunnel.tunnel_id) is not None
    clock.now += 2
    expiry.close_due()
    assert store.find_tunnel(tunnel.tunnel_id) is None


def test_a_tunnel_that_cannot_be_stored_as_closed_is_disconnected_all_the_same(
    store: Store, expiry: Expiry, disconnected: list[str], clock: Clock
) -> None:
    tunnel = open_tunnel(store, 1)
    make_read_only(store, True)
    clock.now += 61
    for _ in range(2):
        with pytest.raises(StoreError):
            expiry.close_due()
    assert disconnected == [tunnel.tunnel_id] * 2
    make_read_only(store, False)
    expiry.close_due()
    assert not is_open(store, tunnel)


@in_event_loop
async def test_it_runs_on_through_failures_and_until_new_tunnels_are_due(
    store: Store, expiry: Expiry, disconnected: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_AFTER_FAILURE", 0.01)
    task = asyncio.ensure_future(expiry.run())
    tunnel = open_tunnel(store, 1)
    clock.now += 61
    make_read_only(store, True)
    expiry.tunnel_opened()
    await until(lambda: len(disconnected) >= 2)
    make_read_only(store, False)
    await until(lambda: not is_open(store, tunnel))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
