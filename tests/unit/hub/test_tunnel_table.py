# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of tunnels, and what it leaves to the next hub. No link is needed: nothing listens at the data plane."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop
from peers.process import free_port
from tunnelproxy.hub.account import UNKNOWN_ACCOUNT, Account, TunnelKey
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.ssh_names import SshNames
from tunnelproxy.hub.tunnel import ManagedTunnel
from tunnelproxy.hub.tunnel_record import DataPlaneSettings, TunnelRecord
from tunnelproxy.hub.tunnel_table import TunnelTable

ACCOUNT = Account("aws", "123456789012", "eu-central-1")
CALLER: Any = None


def record(thing: str = "pump", tunnel_id: str = "id", **changes: Any) -> TunnelRecord:
    settings = DataPlaneSettings(f"127.0.0.1:{free_port()}")
    made = TunnelRecord(thing, tunnel_id, "eu-central-1", "token", account=ACCOUNT, data_plane=settings)
    return replace(made, **changes)


@asynccontextmanager
async def table(folder: Path) -> AsyncIterator[TunnelTable]:
    made = TunnelTable(folder / "tunnels.jsonl", SshNames(folder / "names.jsonl"))
    try:
        yield made
    finally:
        await made.stop()


def saved(folder: Path) -> list[str]:
    return [json.loads(line)["thing"] for line in (folder / "tunnels.jsonl").read_text().splitlines()]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The things whose tunnels carry connections."""
    things: set[str] = set()
    monkeypatch.setattr(ManagedTunnel, "busy", property(lambda tunnel: tunnel.record.tunnel_id in things))
    return things


@in_event_loop
async def test_a_tunnel_that_is_held_is_saved_and_restored(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        held = await tunnels.hold(record(), CALLER)
        assert tunnels.get(held.record.key) is held
        assert (held.record.key in tunnels, [*tunnels]) == (True, [held])
        assert saved(tmp_path) == ["pump"]
    async with table(tmp_path) as tunnels:
        tunnels.restore()
        assert [tunnel.record for tunnel in tunnels] == [held.record]


@in_event_loop
async def test_the_same_tunnel_with_a_new_token_takes_its_place(tmp_path: Path, busy: set[str]) -> None:
    async with table(tmp_path) as tunnels:
        before = await tunnels.hold(record(), CALLER)
        busy.add("id")
        after = await tunnels.hold(record(source_token="new"), CALLER)
        assert ([*tunnels], before.alive) == ([after], False)


@in_event_loop
async def test_a_tunnel_that_is_replaced_finishes_what_it_carries(tmp_path: Path, busy: set[str]) -> None:
    async with table(tmp_path) as tunnels:
        before = await tunnels.hold(record(), CALLER)
        busy.add("id")
        after = await tunnels.hold(record(tunnel_id="id2"), CALLER)
        await tunnels.stop_replaced()
        assert ([*tunnels], before.alive, tunnels.busy) == ([after], True, True)
        busy.clear()
        await tunnels.stop_replaced()
        assert (before.alive, tunnels.busy) == (False, False)
        last = await tunnels.hold(record(tunnel_id="id3"), CALLER)
        assert ([*tunnels], after.alive) == ([last], False)


@in_event_loop
async def test_a_route_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        with pytest.raises(HubError) as caught:
            await tunnels.hold(record(data_plane=DataPlaneSettings("nowhere:")), CALLER)
        assert (caught.value.code, [*tunnels]) == ("bad-input", [])


@in_event_loop
async def test_what_this_hub_cannot_use_is_left_to_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with table(tmp_path) as tunnels:
        tunnels.take_over([record("valve", data_plane=DataPlaneSettings("nowhere:")), record()])
        assert [tunnel.record.thing for tunnel in tunnels] == ["pump"]
        assert "cannot take over the tunnel of valve" in caplog.text
        tunnels.save()
        assert saved(tmp_path) == ["valve", "pump"]


@in_event_loop
async def test_a_thing_that_has_a_tunnel_keeps_it(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        held = await tunnels.hold(record(), CALLER)
        tunnels.take_over([record(tunnel_id="other")])
        assert [*tunnels] == [held]


@in_event_loop
async def test_a_tunnel_that_is_dropped_is_not_saved(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        held = await tunnels.hold(record(), CALLER)
        await tunnels.drop(held)
        assert ([*tunnels], held.alive, saved(tmp_path)) == ([], False, [])


@in_event_loop
async def test_a_tunnel_of_an_earlier_release_gets_its_account(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        held = await tunnels.hold(record(account=UNKNOWN_ACCOUNT), CALLER)
        tunnels.assign(held, ACCOUNT, "me")
        assert tunnels.get(TunnelKey(ACCOUNT, "pump")) is held
        assert (held.record.owner, len([*tunnels])) == ("me", 1)


@in_event_loop
async def test_tunnels_are_shown_by_thing(tmp_path: Path) -> None:
    async with table(tmp_path) as tunnels:
        for thing in ("valve", "pump"):
            await tunnels.hold(record(thing), CALLER)
        assert [tunnel.record.thing for tunnel in tunnels.sorted()] == ["pump", "valve"]


@in_event_loop
async def test_idle_tunnels_are_given_up_and_the_file_is_left_alone(tmp_path: Path, busy: set[str]) -> None:
    async with table(tmp_path) as tunnels:
        await tunnels.hold(record(), CALLER)
        await tunnels.hold(record("valve", "busy"), CALLER)
        busy.add("busy")
        (tmp_path / "tunnels.jsonl").unlink()
        lines = await tunnels.give_up_idle()
        assert [json.loads(line)["thing"] for line in lines] == ["pump"]
        assert [tunnel.record.thing for tunnel in tunnels] == ["valve"]
        tunnels.save()
        assert not (tmp_path / "tunnels.jsonl").exists()


@in_event_loop
async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "tunnels.jsonl").mkdir()
    async with table(tmp_path) as tunnels:
        assert tunnels.not_saved == ""
        await tunnels.hold(record(), CALLER)
        assert tunnels.not_saved.startswith(f"cannot write {tmp_path}/tunnels.jsonl: Is a directory")
        assert tunnels.not_saved.endswith("until then only this hub knows its tunnels: do not stop it")
