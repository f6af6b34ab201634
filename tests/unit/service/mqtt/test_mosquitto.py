# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a broker from being run, and a real Mosquitto where the path is an odd one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.backoff import Backoff
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt import mosquitto as module
from tunnelproxy.service.mqtt.mosquitto import Mosquitto


def test_a_path_that_is_too_long_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="is too long for a socket; give --state-dir a shorter path"):
        Mosquitto(tmp_path / ("x" * 108), "127.0.0.1", 0)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on port {port} of 127.0.0.1 for MQTT"):
            Mosquitto(tmp_path / "mqtt", "127.0.0.1", port)


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "mqtt" / "passwords.lock").mkdir(parents=True)
    with pytest.raises(ServiceError, match=r"cannot write the MQTT broker's files: .*passwords\.lock: Is a directory"):
        Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)


def test_the_copy_of_the_key_that_earlier_versions_left_goes(tmp_path: Path) -> None:
    copy = tmp_path / "mqtt" / "server-key.pem"
    copy.parent.mkdir()
    copy.touch()
    Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0).listener.close()
    assert not copy.exists()


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
async def test_it_listens_where_the_path_has_spaces(tmp_path: Path) -> None:
    async with running(Mosquitto(tmp_path / "an odd one", "127.0.0.1", 0)):
        pass


@in_event_loop
async def test_half_a_store_does_not_keep_it_from_starting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mqtt"
    broker = Mosquitto(folder, "127.0.0.1", 0)
    # The first bytes of such a file: what a full disk may leave of it.
    (folder / "mosquitto.db").write_bytes(b"\x00\xb5\x00mosq")
    async with running(broker):
        assert (folder / "mosquitto.db.damaged").exists()
        assert "is damaged, and set aside as mosquitto.db.damaged" in caplog.text


@in_event_loop
async def test_what_keeps_it_from_starting_is_said_once_and_tried_again(
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
