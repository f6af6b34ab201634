# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that do not get on with their handshake, against a door in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net import connections
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.listener import Listener
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.unexpected_errors import UnexpectedErrors


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_lost = False
        self.has_spoken = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.has_spoken = True
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True


class House:
    """A door, and those who come."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        certificates = Certificates(folder / "keys", folder / "ca")
        certificates.ensure("127.0.0.1")
        self.client_context = ssl.create_default_context(capath=str(folder / "ca"))
        self.protocols: list[Echo] = []
        self.events: list[Event] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.door = Listener(self._make, server_context(certificates), limits, self.events.append)

    def _make(self) -> Echo:
        self.protocols.append(Echo())
        return self.protocols[-1]

    @property
    def causes(self) -> Counter[str]:
        return Counter(event.cause for event in self.events if isinstance(event, CutOff))

    async def come(self, *, tls: bool = True, address: str = "127.0.0.1") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(
            *self.listener.getsockname(),
            ssl=self.client_context if tls else None,
            server_hostname="127.0.0.1" if tls else None,
            local_addr=(address, 0),
        )
        self.writers.append(writer)
        return reader

    async def begins(self, address: str) -> asyncio.StreamReader:
        """Come with the first byte of a handshake, and no other."""
        reader = await self.come(tls=False, address=address)
        self.writers[-1].write(b"\x16")
        return reader

    async def comes_through(self, **how: Any) -> bool:
        reader = await self.come(**how)
        self.writers[-1].write(b"hello")
        return await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"


@asynccontextmanager
async def house(folder: Path, **limits: Any) -> AsyncIterator[House]:
    opened = House(folder, Limits(**limits))
    opened.door.open(opened.listener)
    try:
        yield opened
    finally:
        opened.door.close()
        for protocol in opened.protocols:
            with contextlib.suppress(AttributeError):
                protocol.transport.abort()
        for writer in opened.writers:
            writer.transport.abort()
        opened.listener.close()


async def has_ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("tls", [True, False], ids=["after TLS", "before TLS"])
@in_event_loop
async def test_who_does_nothing_is_cut_off_in_time(tmp_path: Path, tls: bool) -> None:
    async with house(tmp_path, handshake_seconds=0.5) as opened:
        assert await has_ended(await opened.come(tls=tls))
        assert opened.causes["handshake-time"] == 1


@in_event_loop
async def test_who_stops_within_the_handshake_is_counted_once(tmp_path: Path) -> None:
    async with house(tmp_path, handshake_seconds=0.5) as opened:
        assert await has_ended(await opened.begins("127.0.0.3"))
        await until(lambda: opened.causes)
        await opened.comes_through()
        assert sum(opened.causes.values()) == 1


@in_event_loop
async def test_who_is_settled_stays(tmp_path: Path) -> None:
    async with house(tmp_path, handshake_seconds=0.5) as opened:
        assert await opened.comes_through()
        opened.door.settle(opened.protocols[0])
        # Long enough that another one is cut off.
        await has_ended(await opened.come(tls=False))
        assert not opened.protocols[0].is_lost


@in_event_loop
async def test_room_is_made_at_the_expense_of_the_address_that_takes_most(tmp_path: Path) -> None:
    async with house(tmp_path, half_open=4) as opened:
        honest = await opened.come(address="127.0.0.2")
        crowd = [await opened.begins(address="127.0.0.3") for _ in range(3)]
        assert await opened.comes_through(address="127.0.0.4")
        # The door keeps a place free for the next to come, so two may be gone.
        assert await has_ended(crowd[0])
        assert not honest.at_eof()
        assert not crowd[-1].at_eof()
        assert opened.causes["half-open"] in (1, 2)


@in_event_loop
async def test_who_says_nothing_keeps_nobody_out_and_is_kept(tmp_path: Path) -> None:
    async with house(tmp_path, half_open=2) as opened:
        silent = [await opened.come(tls=False, address="127.0.0.3") for _ in range(20)]
        began = asyncio.get_running_loop().time()
        assert await opened.comes_through(address="127.0.0.4")
        assert asyncio.get_running_loop().time() - began < 2
        assert not any(reader.at_eof() for reader in silent)
        assert opened.causes == Counter()


@in_event_loop
async def test_without_a_limit_of_descriptors_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which is -1 on Linux.
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    async with house(tmp_path) as opened:
        assert await opened.comes_through()


@in_event_loop
async def test_addresses_take_turns(tmp_path: Path) -> None:
    async with house(tmp_path, half_open=2) as opened:
        for _ in range(20):
            await opened.begins(address="127.0.0.3")
        began = asyncio.get_running_loop().time()
        assert await opened.comes_through(address="127.0.0.4")
        # As soon as the crowd has had one of its places for long enough: not when all of it has.
        assert asyncio.get_running_loop().time() - began < 10
        assert opened.causes["half-open"] < 10


@in_event_loop
async def test_those_who_come_all_at_once_get_in_one_after_the_other(tmp_path: Path) -> None:
    async with house(tmp_path, half_open=2) as opened:
        settling = asyncio.ensure_future(settle_whoever_is_there(opened))
        assert all(await asyncio.gather(*(opened.comes_through() for _ in range(20))))
        settling.cancel()
        assert opened.causes == Counter()


async def settle_whoever_is_there(opened: House) -> None:
    while True:
        for protocol in opened.protocols:
            if protocol.has_spoken:
                opened.door.settle(protocol)
        await asyncio.sleep(0.01)


@in_event_loop
async def test_an_address_has_its_share_and_gets_it_back(tmp_path: Path) -> None:
    async with house(tmp_path, connections_per_address=2) as opened:
        assert await opened.comes_through()
        second = await opened.come(tls=False)
        assert await has_ended(await opened.come(tls=False))
        assert await opened.comes_through(address="127.0.0.2")
        assert not second.at_eof()
        opened.writers[0].transport.abort()
        await until(lambda: opened.protocols[0].is_lost)
        assert await opened.comes_through()
        assert opened.causes == Counter({"connections-per-address": 1})


@in_event_loop
async def test_what_is_no_tls_is_hung_up_on_and_gives_its_place_back(tmp_path: Path) -> None:
    async with house(tmp_path, connections_per_address=1) as opened:
        await opened.come(tls=False)
        opened.writers[-1].write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: opened.causes["tls"] == 1)
        assert await opened.comes_through()


@pytest.mark.parametrize("kind", ["aiofastnet", "the event loop"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_breaks_off_the_handshake_writes_nothing_to_the_log_and_is_no_failure_of_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, loop: str
) -> None:
    if kind == "aiofastnet":
        pytest.importorskip("aiofastnet")
    else:
        monkeypatch.setattr(connections, "_fast", None)
    failures = UnexpectedErrors()
    new_loop = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(failures.of_loop)
        async with house(tmp_path) as opened:
            beginnings = (
                b"\x16",
                client_hello()[:50],
                client_hello(),
                b"\x15\x03\x01\x00\x02\x02\x28",
                b"GET / HTTP/1.1\r\n",
            )
            for beginning in beginnings:
                reader = await opened.come(tls=False)
                opened.writers[-1].write(beginning)
                opened.writers[-1].write_eof()
                await has_ended(reader)
            await until(lambda: opened.causes["tls"] == len(beginnings))

    opened_loop = new_loop()
    try:
        opened_loop.run_until_complete(run())
    finally:
        opened_loop.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert failures.total == 0


def client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@in_event_loop
async def test_a_closed_door_cuts_off_those_half_way_in(tmp_path: Path) -> None:
    async with house(tmp_path) as opened:
        waiting = [await opened.come(tls=False), await opened.come()]
        await until(lambda: len(opened.protocols) == 1)
        opened.door.close()
        for reader in waiting:
            assert await has_ended(reader)
