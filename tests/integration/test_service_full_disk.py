# SPDX-License-Identifier: GPL-3.0-or-later
"""The database and the log on a real disk that is full, and later has space again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from peers.full_disk import SmallDisk, why_impossible
from tunnelproxy.log_file import LogFile
from tunnelproxy.outage import Outage
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.enrolment import add_thing
from tunnelproxy.service.errors import ServiceError, StoreError
from tunnelproxy.service.model import Mode, NewTunnel, Tunnel, digest, new_access_token
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.state import expiry
from tunnelproxy.service.state.certificates import Certificates
from tunnelproxy.service.state.directory import Endpoints, StateDirectory
from tunnelproxy.service.state.expiry import Expiry
from tunnelproxy.service.state.store import Store

NOW = 1_700_000_000.0

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", kib=512) as small:
        yield small


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(disk: SmallDisk, said: list[str]) -> Iterator[Store]:
    opened = Store(disk.path / "service.db", Outage("the database", "…", report=lambda level, text: said.append(text)))
    yield opened
    opened.close()


def open_tunnel(store: Store, minutes: int = 1) -> Tunnel:
    return store.open_tunnel(NewTunnel("d" * 200, lifetime=minutes), digests(), NOW)


def digests() -> dict[Mode, bytes]:
    return {mode: digest(new_access_token()) for mode in Mode}


@pytest.fixture
def full(disk: SmallDisk, store: Store) -> None:
    """Leave no space on the disk, nor in the part that SQLite has reserved."""
    disk.fill()
    with suppress(StoreError):
        while True:
            open_tunnel(store)


@pytest.fixture
def before(store: Store) -> Tunnel:
    return open_tunnel(store)


def test_on_a_full_disk_no_change_is_made_partially(before: Tunnel, full: None, store: Store) -> None:
    tunnels = store.list_tunnels(thing_name=None, before=None, limit=1000)
    with pytest.raises(StoreError, match="database or disk is full; free space on its disk"):
        open_tunnel(store)
    with pytest.raises(StoreError):
        store.rotate_tokens(before, digests(), ("other", ("SSH1",)), NOW)
    with pytest.raises(StoreError):
        store.close_tunnel(before.tunnel_id, NOW)
    assert store.list_tunnels(thing_name=None, before=None, limit=1000) == tunnels


def test_connected_ends_are_known_even_if_they_cannot_be_written(
    before: Tunnel, full: None, store: Store, disk: SmallDisk
) -> None:
    store.set_connected(before.tunnel_id, Mode.SOURCE, True, NOW + 1)
    assert store.end_states(before.tunnel_id)[Mode.SOURCE].connected
    disk.empty()
    store.write_ends()
    store.close()
    again = Store(disk.path / "service.db")
    assert again.end_states(before.tunnel_id)[Mode.SOURCE].connected
    again.close()


def test_the_beginning_and_the_end_of_the_outage_are_reported(
    before: Tunnel, full: None, store: Store, disk: SmallDisk, said: list[str]
) -> None:
    for _ in range(3):
        with pytest.raises(StoreError):
            store.close_tunnel(before.tunnel_id, NOW)
    disk.empty()
    store.close_tunnel(before.tunnel_id, NOW)
    assert said[0].startswith("cannot write to the database: database or disk is full; ")
    assert said[1].startswith("the database can be written again; writing failed ")
    assert len(said) == 2


def test_tokens_that_were_not_stored_are_not_delivered(before: Tunnel, full: None, store: Store) -> None:
    delivered: list[Tunnel] = []
    revoked: list[Mode] = []
    operations = TunnelOperations(
        store,
        disconnect=lambda tunnel_id: None,
        revoke=lambda tunnel_id, mode: revoked.append(mode),
        clock=lambda: NOW,
        tunnel_opened=lambda: None,
        deliver=lambda tunnel, token: delivered.append(tunnel),
    )
    with pytest.raises(StoreError):
        operations.call("OpenTunnel", {"destinationConfig": {"thingName": "pump", "services": ["SSH1"]}})
    with pytest.raises(StoreError):
        operations.call("RotateTunnelAccessToken", {"tunnelId": before.tunnel_id, "clientMode": "ALL"})
    assert (delivered, revoked) == ([], [])


def test_tunnels_expire_once_there_is_space_again(
    before: Tunnel, full: None, store: Store, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_WAIT_AFTER_FAILURE", 0.02)
    disconnected: list[str] = []

    @in_event_loop
    async def run() -> None:
        task = asyncio.ensure_future(Expiry(store, disconnected.append, clock=lambda: NOW + 61).run())
        # Their ends are disconnected immediately, and at each further attempt.
        await until(lambda: disconnected.count(before.tunnel_id) >= 2)
        assert store.count_open_tunnels() > 0
        disk.empty()
        await until(lambda: store.count_open_tunnels() == 0)
        task.cancel()

    run()


def test_the_log_loses_complete_lines_and_reports_it_twice(disk: SmallDisk, said: list[str]) -> None:
    path = disk.path / "log"
    handler = LogFile(path, report=lambda level, text: said.append(text))

    def write(text: str) -> None:
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))

    write("before")
    disk.fill()
    for _ in range(30):
        write("lost" * 100)
    disk.empty()
    write("after")
    handler.close()
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert set(lines[1:-1]) <= {"lost" * 100}
    assert len(said) == 2


def test_on_a_full_disk_an_existing_database_can_be_read_and_a_new_one_fails(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk") as disk:
        path = disk.path / "service.db"
        running = Store(path)
        disk.fill()
        second = Store(path)
        assert second.keys() == running.keys()
        second.close()
        with pytest.raises(ServiceError) as refused:
            Store(disk.path / "new.db")
        assert str(refused.value).count("free space on its disk") == 1
        running.close()


def test_a_full_disk_of_the_service_is_not_confused_with_full_output(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk") as disk:
        full = StateDirectory(disk.path / "state")
        full.create()
        Certificates(full.keys, full.ca).ensure("example.com")
        full.write_endpoints(Endpoints("example.com", 1, 2))
        full.broker_files.mkdir()
        BrokerAddress("example.com", 3, embedded=True).write(full.broker_address)
        disk.fill()
        with pytest.raises(OSError, match="No space left on device") as refused:
            add_thing(full, "pump", {"SSH1": "localhost:22"}, tmp_path / "pump")
        assert refused.value.filename == str(full.broker_files / "passwords")
