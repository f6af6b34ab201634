# SPDX-License-Identifier: GPL-3.0-or-later
"""What the MQTT port passes on, to a real Mosquitto and to a broker that does what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.mqtt.listener import MqttListener
from tunnelproxy.service.mqtt.mosquitto import Mosquitto
from tunnelproxy.service.mqtt.password_file import PasswordFile
from tunnelproxy.service.state.certificates import Certificates, server_context

LET_IN = b"\x20\x02\x00\x00"
SECONDS = 1.0
"""For a handshake, that of MQTT included."""


class Port:
    """An open MQTT port, and those who come."""

    def __init__(self, listener: MqttListener, certificates: Certificates) -> None:
        self.listener = listener
        self.events: list[Event] = []
        self._certificates = certificates
        self._writers: list[asyncio.StreamWriter] = []
        limits = Limits(handshake_seconds=SECONDS)
        listener.open(server_context(certificates), limits, self.events.append)

    async def come(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=str(self._certificates.authority))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.listener.port, ssl=context, server_hostname="localhost"
        )
        self._writers.append(writer)
        return reader, writer

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.listener.close()


class AnyBroker(asyncio.Protocol):
    """Takes all, and lets in whoever comes."""

    def __init__(self, present: list[AnyBroker]) -> None:
        self.taken = b""
        self.is_lost = False
        self._present = present

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._present.append(self)

    def data_received(self, data: bytes) -> None:
        if not self.taken:
            self.transport.write(LET_IN)
        self.taken += data

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True


@contextlib.asynccontextmanager
async def any_broker(folder: Path, certificates: Certificates) -> AsyncIterator[tuple[Port, list[AnyBroker]]]:
    present: list[AnyBroker] = []
    path = folder / "socket"
    server = await asyncio.get_running_loop().create_unix_server(lambda: AnyBroker(present), str(path))
    port = Port(MqttListener("127.0.0.1", 0, path), certificates)
    try:
        yield port, present
    finally:
        port.close()
        server.close()


@contextlib.asynccontextmanager
async def mosquitto(folder: Path, certificates: Certificates) -> AsyncIterator[tuple[Port, str]]:
    """And the password of the thing ``pump``."""
    password = PasswordFile(folder / "passwords").set("pump")
    broker = Mosquitto(folder, "127.0.0.1", 0)
    running = asyncio.ensure_future(broker.run())
    port = Port(broker.listener, certificates)
    try:
        await broker.wait_until_it_listens()
        yield port, password
    finally:
        port.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def connect(password: str, version: int) -> bytes:
    """The packet by which ``pump`` begins. Source: MQTT 3.1.1 and MQTT 5, section 3.1."""
    texts = [b"id", b"pump", password.encode()]
    properties = b"\x00" if version == 5 else b""
    body = b"\x00\x04MQTT" + bytes((version, 0xC2, 0, 0)) + properties
    body += b"".join(len(text).to_bytes(2, "big") + text for text in texts)
    return bytes((0x10, len(body))) + body


@pytest.mark.parametrize("version", [4, 5])
@in_event_loop
async def test_a_thing_that_is_let_in_stays_and_one_that_is_refused_is_cut_off_with_the_half_open(
    tmp_path: Path, certificates: Certificates, version: int
) -> None:
    async with mosquitto(tmp_path, certificates) as (port, password):
        reader, writer = await port.come()
        writer.write(connect(password, version))
        assert (await reader.readexactly(4))[3] == 0
        # Refused, and does not answer the end of TLS: that would be waited for for 30 s.
        refused, guesser = await port.come()
        guesser.write(connect("guessed", version))
        assert (await refused.readexactly(4))[3] != 0
        assert isinstance(guesser.transport, asyncio.Transport)
        guesser.transport.pause_reading()
        await until(lambda: CutOff("127.0.0.1", "handshake-time") in port.events)
        await until(lambda: len(port.listener._relays) == 1)
        assert not reader.at_eof()


@in_event_loop
async def test_a_thing_that_floods_gets_its_rate_however_its_bytes_come(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.service.mqtt.listener._BYTES_PER_SECOND", 200_000)
    async with any_broker(tmp_path, certificates) as (port, brokers):
        reader, writer = await port.come()
        writer.write(b"begin")
        await reader.readexactly(len(LET_IN))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(50):
            writer.write(b"x" * 12_000)
        await until(lambda: len(brokers[0].taken) == 5 + 600_000)
        # A burst of a quarter of a second, and one read of 256 KiB, may be ahead.
        assert loop.time() - began > (600_000 - 256 * 1024) / 200_000 - 0.3
