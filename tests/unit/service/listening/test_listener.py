# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that do not complete their handshake, against a listener in this process."""

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
from tunnelproxy.service.listening import listener as module
from tunnelproxy.service.listening.listener import Listener
from tunnelproxy.service.logs.unexpected_errors import UnexpectedErrors
from tunnelproxy.service.state.certificates import Certificates, server_context


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_lost = False
        self.has_received = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.has_received = True
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True


class Port:
    """A listener, and its clients."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        certificates = Certificates(folder / "keys", folder / "ca")
        certificates.ensure("127.0.0.1")
        self.client_context = ssl.create_default_context(capath=str(folder / "ca"))
        self.protocols: list[Echo] = []
        self.events: list[Event] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.listener = Listener(self._make, server_context(certificates), limits, self.events.append)

    def _make(self) -> Echo:
        self.protocols.append(Echo())
        return self.protocols[-1]

    @property
    def causes(self) -> Counter[str]:
        return Counter(event.cause for event in self.events if isinstance(event, CutOff))

    async def connect(self, *, tls: bool = True, address: str = "127.0.0.1") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(
            *self.socket.getsockname(),
            ssl=self.client_context if tls else None,
            server_hostname="127.0.0.1" if tls else None,
            local_addr=(address, 0),
        )
        self.writers.append(writer)
        return reader

    async def begin(self, address: str) -> asyncio.StreamReader:
        """Connect, and send the first byte of a handshake only."""
        reader = await self.connect(tls=False, address=address)
        self.writers[-1].write(b"\x16")
        return reader

    async def is_served(self, **how: Any) -> bool:
        reader = await self.connect(**how)
        self.writers[-1].write(b"hello")
        return await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"


@asynccontextmanager
async def listening(folder: Path, **limits: Any) -> AsyncIterator[Port]:
    port = Port(folder, Limits(**limits))
    port.listener.open(port.socket)
    try:
        yield port
    finally:
        port.listener.close()
        for protocol in port.protocols:
            with contextlib.suppress(AttributeError):
                protocol.transport.abort()
        for writer in port.writers:
            writer.transport.abort()
        port.socket.close()


@pytest.fixture
def _short_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-open connection keeps its place for a tenth of the usual time."""
    monkeypatch.setattr(module, "_MIN_HALF_OPEN_SECONDS", 0.3)


async def has_ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("tls", [True, False], ids=["after TLS", "before TLS"])
@in_event_loop
async def test_an_idle_connection_is_cut_off_in_time(tmp_path: Path, tls: bool) -> None:
    async with listening(tmp_path, handshake_seconds=0.2) as port:
        assert await has_ended(await port.connect(tls=tls))
        assert port.causes["handshake-time"] == 1


@in_event_loop
async def test_a_client_that_stalls_in_the_handshake_is_counted_once(tmp_path: Path) -> None:
    async with listening(tmp_path, handshake_seconds=0.2) as port:
        assert await has_ended(await port.begin("127.0.0.3"))
        await until(lambda: port.causes)
        await port.is_served()
        assert sum(port.causes.values()) == 1


@in_event_loop
async def test_a_settled_connection_is_not_cut_off(tmp_path: Path) -> None:
    async with listening(tmp_path, handshake_seconds=0.2) as port:
        assert await port.is_served()
        port.listener.settle(port.protocols[0])
        # Long enough for another connection to be cut off.
        await has_ended(await port.connect(tls=False))
        assert not port.protocols[0].is_lost


@pytest.mark.usefixtures("_short_places")
@in_event_loop
async def test_the_address_with_the_most_half_open_connections_loses_one(tmp_path: Path) -> None:
    async with listening(tmp_path, half_open=4) as port:
        honest = await port.connect(address="127.0.0.2")
        crowd = [await port.begin(address="127.0.0.3") for _ in range(3)]
        assert await port.is_served(address="127.0.0.4")
        # The listener keeps a place free for the next connection, so two may be gone.
        assert await has_ended(crowd[0])
        assert not honest.at_eof()
        assert not crowd[-1].at_eof()
        assert port.causes["half-open"] in (1, 2)


@in_event_loop
async def test_idle_connections_neither_block_others_nor_are_cut_off_early(tmp_path: Path) -> None:
    async with listening(tmp_path, half_open=2) as port:
        silent = [await port.connect(tls=False, address="127.0.0.3") for _ in range(20)]
        began = asyncio.get_running_loop().time()
        assert await port.is_served(address="127.0.0.4")
        assert asyncio.get_running_loop().time() - began < 2
        assert not any(reader.at_eof() for reader in silent)
        assert port.causes == Counter()


@in_event_loop
async def test_connections_are_accepted_without_a_limit_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which is -1 on Linux.
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    async with listening(tmp_path) as port:
        assert await port.is_served()


@pytest.mark.usefixtures("_short_places")
@in_event_loop
async def test_addresses_take_turns(tmp_path: Path) -> None:
    async with listening(tmp_path, half_open=2) as port:
        for _ in range(20):
            await port.begin(address="127.0.0.3")
        began = asyncio.get_running_loop().time()
        assert await port.is_served(address="127.0.0.4")
        # As soon as one of the crowd's connections has had its place for long enough: not when all of them have.
        assert asyncio.get_running_loop().time() - began < 3
        assert port.causes["half-open"] < 10


@in_event_loop
async def test_a_rush_of_connections_is_served_in_turn(tmp_path: Path) -> None:
    async with listening(tmp_path, half_open=2) as port:
        settling = asyncio.ensure_future(settle_all(port))
        assert all(await asyncio.gather(*(port.is_served() for _ in range(20))))
        settling.cancel()
        assert port.causes == Counter()


async def settle_all(port: Port) -> None:
    while True:
        for protocol in port.protocols:
            if protocol.has_received:
                port.listener.settle(protocol)
        await asyncio.sleep(0.01)


@in_event_loop
async def test_the_limit_per_address_is_freed_when_a_connection_ends(tmp_path: Path) -> None:
    async with listening(tmp_path, connections_per_address=2) as port:
        assert await port.is_served()
        second = await port.connect(tls=False)
        assert await has_ended(await port.connect(tls=False))
        assert await port.is_served(address="127.0.0.2")
        assert not second.at_eof()
        port.writers[0].transport.abort()
        await until(lambda: port.protocols[0].is_lost)
        assert await port.is_served()
        assert port.causes == Counter({"connections-per-address": 1})


@in_event_loop
async def test_a_connection_that_is_not_tls_is_closed_and_frees_its_place(tmp_path: Path) -> None:
    async with listening(tmp_path, connections_per_address=1) as port:
        await port.connect(tls=False)
        port.writers[-1].write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: port.causes["tls"] == 1)
        assert await port.is_served()


@pytest.mark.parametrize("kind", ["aiofastnet", "the event loop"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_an_aborted_handshake_is_neither_logged_nor_an_unexpected_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, loop: str
) -> None:
    if kind == "aiofastnet":
        pytest.importorskip("aiofastnet")
    else:
        monkeypatch.setattr(connections, "_fast", None)
    failures = UnexpectedErrors()
    make_loop = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(failures.of_loop)
        async with listening(tmp_path) as port:
            beginnings = (
                b"\x16",
                client_hello()[:50],
                client_hello(),
                b"\x15\x03\x01\x00\x02\x02\x28",
                b"GET / HTTP/1.1\r\n",
            )
            for beginning in beginnings:
                reader = await port.connect(tls=False)
                port.writers[-1].write(beginning)
                port.writers[-1].write_eof()
                await has_ended(reader)
            await until(lambda: port.causes["tls"] == len(beginnings))

    event_loop = make_loop()
    try:
        event_loop.run_until_complete(run())
    finally:
        event_loop.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert failures.total == 0


def client_hello() -> bytes:
    sent = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


@in_event_loop
async def test_closing_the_listener_cuts_off_half_open_connections(tmp_path: Path) -> None:
    async with listening(tmp_path) as port:
        waiting = [await port.connect(tls=False), await port.connect()]
        await until(lambda: len(port.protocols) == 1)
        port.listener.close()
        for reader in waiting:
            assert await has_ended(reader)
