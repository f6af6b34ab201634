# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded broker, a real Mosquitto: it starts under difficult conditions, and accepts or rejects things."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.backoff import Backoff
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.mqtt import mosquitto as module
from tunnelproxy.service.mqtt.mosquitto import Mosquitto
from tunnelproxy.service.mqtt.password_file import PasswordFile
from tunnelproxy.service.state.certificates import Certificates, server_context


@contextlib.asynccontextmanager
async def running(broker: Mosquitto) -> AsyncIterator[None]:
    task = asyncio.ensure_future(broker.run())
    try:
        await broker.wait_until_it_listens()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        broker.listener.close()


@in_event_loop
async def test_it_starts_in_a_directory_with_spaces_in_its_path(tmp_path: Path) -> None:
    async with running(Mosquitto(tmp_path / "an odd one", "127.0.0.1", 0)):
        pass


@in_event_loop
async def test_it_starts_and_stops_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)):
        await until(lambda: "as tunnel.administrator" in caplog.text)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@in_event_loop
async def test_it_starts_although_its_database_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mqtt"
    broker = Mosquitto(folder, "127.0.0.1", 0)
    # The first bytes of such a file, as a full disk may leave them.
    (folder / "mosquitto.db").write_bytes(b"\x00\xb5\x00mosq")
    async with running(broker):
        assert (folder / "mosquitto.db.damaged").exists()
        assert "is damaged and was renamed to mosquitto.db.damaged" in caplog.text


@in_event_loop
async def test_it_starts_once_its_files_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Backoff", lambda: Backoff(0.02, 0.02))
    broker = Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)
    in_the_way = tmp_path / "mqtt" / "dynamic-security.json"
    in_the_way.mkdir()
    task = asyncio.ensure_future(broker.run())
    await until(lambda: "mosquitto cannot be started" in caplog.text)
    in_the_way.rmdir()
    task.cancel()
    async with running(broker):
        assert caplog.text.count("mosquitto cannot be started") == 1
        assert "dynamic-security.json: Is a directory; starting it again until it runs" in caplog.text


def connect_packet(password: str, version: int) -> bytes:
    """The first packet of the thing ``pump``. Source: MQTT 3.1.1 and MQTT 5, section 3.1."""
    texts = [b"id", b"pump", password.encode()]
    properties = b"\x00" if version == 5 else b""
    body = b"\x00\x04MQTT" + bytes((version, 0xC2, 0, 0)) + properties
    body += b"".join(len(text).to_bytes(2, "big") + text for text in texts)
    return bytes((0x10, len(body))) + body


@pytest.mark.parametrize("version", [4, 5])
@in_event_loop
async def test_an_accepted_thing_stays_connected_and_a_rejected_one_is_cut_off(tmp_path: Path, version: int) -> None:
    certificates = Certificates(tmp_path / "keys", tmp_path / "ca")
    certificates.ensure("localhost")
    password = PasswordFile(tmp_path / "passwords").set("pump")
    broker = Mosquitto(tmp_path, "127.0.0.1", 0)
    events: list[Event] = []
    async with running(broker):
        broker.listener.open(server_context(certificates), Limits(handshake_seconds=1.0), events.append)
        context = ssl.create_default_context(cafile=str(certificates.authority))

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            port = broker.listener.port
            return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")

        reader, writer = await connect()
        writer.write(connect_packet(password, version))
        assert (await reader.readexactly(4))[3] == 0
        # Rejected, and does not answer the TLS shutdown, for which asyncio would wait for 30 s.
        rejected, guesser = await connect()
        guesser.write(connect_packet("guessed", version))
        assert (await rejected.readexactly(4))[3] != 0
        assert isinstance(guesser.transport, asyncio.Transport)
        guesser.transport.pause_reading()
        await until(lambda: CutOff("127.0.0.1", "handshake-time") in events)
        await until(lambda: len(broker.listener._relays) == 1)
        assert not reader.at_eof()
        writer.transport.abort()
        guesser.transport.abort()
