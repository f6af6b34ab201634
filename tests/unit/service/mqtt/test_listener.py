# SPDX-License-Identifier: GPL-3.0-or-later
"""What the MQTT port relays, to a broker that does what the test wants. Mosquitto is in the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.mqtt.listener import MqttListener
from tunnelproxy.service.state.certificates import Certificates, server_context

ACCEPTED = b"\x20\x02\x00\x00"
ACCEPTED_5 = b"\x20\x03\x00\x00\x00"
REJECTED = b"\x20\x02\x00\x05"
HANDSHAKE_SECONDS = 0.3
"""For a handshake, including that of MQTT."""


class BrokerConnection(asyncio.Protocol):
    """Answers the first packet as the packet itself asks, and takes everything else."""

    def __init__(self, connections: list[BrokerConnection]) -> None:
        self.received = b""
        self.is_lost = False
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.append(self)

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.transport.write(data)
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True


class Port:
    """An open MQTT port, its clients, and the broker behind it."""

    def __init__(self, listener: MqttListener, certificates: Certificates) -> None:
        self.listener = listener
        self.events: list[Event] = []
        self.broker: list[BrokerConnection] = []
        self._certificates = certificates
        self._writers: list[asyncio.StreamWriter] = []
        limits = Limits(handshake_seconds=HANDSHAKE_SECONDS)
        listener.open(server_context(certificates), limits, self.events.append)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=str(self._certificates.authority))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.listener.port, ssl=context, server_hostname="localhost"
        )
        self._writers.append(writer)
        return reader, writer

    async def accepted(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        writer.write(ACCEPTED)
        await reader.readexactly(len(ACCEPTED))
        return reader, writer

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.listener.close()


@contextlib.asynccontextmanager
async def open_port(folder: Path, certificates: Certificates, *, has_broker: bool = True) -> AsyncIterator[Port]:
    path = folder / "socket"
    port = Port(MqttListener("127.0.0.1", 0, path), certificates)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: BrokerConnection(port.broker), str(path)) if has_broker else None
    try:
        yield port
    finally:
        port.close()
        if server is not None:
            server.close()


@pytest.mark.parametrize("answer", [ACCEPTED, ACCEPTED_5])
@in_event_loop
async def test_an_accepted_thing_stays_and_a_rejected_one_is_cut_off(
    tmp_path: Path, certificates: Certificates, answer: bytes
) -> None:
    async with open_port(tmp_path, certificates) as port:
        accepted, writer = await port.connect()
        writer.write(answer)
        await accepted.readexactly(len(answer))
        rejected, writer = await port.connect()
        writer.write(REJECTED)
        await rejected.readexactly(len(REJECTED))
        assert await rejected.read() == b""
        assert port.events == [CutOff("127.0.0.1", "handshake-time")]
        assert not accepted.at_eof()


@in_event_loop
async def test_an_idle_connection_never_reaches_the_broker(tmp_path: Path, certificates: Certificates) -> None:
    async with open_port(tmp_path, certificates) as port:
        reader, _ = await port.connect()
        assert await reader.read() == b""
        assert port.broker == []


@in_event_loop
async def test_the_end_of_either_connection_ends_the_other(tmp_path: Path, certificates: Certificates) -> None:
    async with open_port(tmp_path, certificates) as port:
        _, writer = await port.accepted()
        writer.transport.abort()
        await until(lambda: port.broker[0].is_lost)
        reader, _ = await port.accepted()
        port.broker[1].transport.write(b"last words")
        port.broker[1].transport.close()
        assert await reader.read() == b"last words"


@in_event_loop
async def test_closing_the_port_ends_all_connections(tmp_path: Path, certificates: Certificates) -> None:
    async with open_port(tmp_path, certificates) as port:
        reader, _ = await port.accepted()
        port.listener.close()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until(lambda: port.broker[0].is_lost)


@in_event_loop
async def test_without_a_broker_a_thing_is_cut_off(tmp_path: Path, certificates: Certificates) -> None:
    async with open_port(tmp_path, certificates, has_broker=False) as port:
        reader, writer = await port.connect()
        writer.write(ACCEPTED)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


@in_event_loop
async def test_a_thing_that_reads_slowly_holds_back_the_broker(tmp_path: Path, certificates: Certificates) -> None:
    size = 32 * 1024 * 1024
    async with open_port(tmp_path, certificates) as port:
        reader, writer = await port.accepted()
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        port.broker[0].transport.write(bytes(size))
        (relay,) = port.listener._relays
        assert relay.broker is not None
        await until(lambda: relay.broker is not None and not relay.broker.is_reading())
        writer.transport.resume_reading()
        assert len(await reader.readexactly(size)) == size


@in_event_loop
async def test_a_thing_that_floods_is_held_to_its_rate_however_its_bytes_arrive(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate, size = 2_000_000, 2_500_000
    monkeypatch.setattr("tunnelproxy.service.mqtt.listener._BYTES_PER_SECOND", rate)
    async with open_port(tmp_path, certificates) as port:
        _, writer = await port.accepted()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(100):
            writer.write(bytes(size // 100))
        await until(lambda: len(port.broker[0].received) == len(ACCEPTED) + size)
        # At the rate, this takes 1.25 s; a burst of a quarter of a second, and some reads of 256 KiB, may be ahead.
        assert loop.time() - began > 0.6


def test_a_port_in_use_is_named_with_the_option(tmp_path: Path) -> None:
    listener = MqttListener("127.0.0.1", 0, tmp_path / "socket")
    with pytest.raises(ServiceError, match=f"port {listener.port} of 127.0.0.1 is in use; give --mqtt-port another"):
        MqttListener("127.0.0.1", listener.port, tmp_path / "socket")
    listener.close()
