# SPDX-License-Identifier: GPL-3.0-or-later
"""How the embedded broker is configured, started and restarted. A real Mosquitto is in the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.backoff import Backoff
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt import mosquitto as module
from tunnelproxy.service.mqtt.mosquitto import Mosquitto
from tunnelproxy.service.mqtt.password_file import PasswordFile


class Child:
    """Stands where the broker's process is: it says what the test feeds it, and ends when the test says."""

    def __init__(self) -> None:
        self.stderr = asyncio.StreamReader()
        self.returncode: int | None = None
        self.signals: list[int] = []
        self.ignores_sigterm = False
        self._ended = asyncio.Event()

    def end(self, status: int, *lines: str) -> None:
        for line in lines:
            self.stderr.feed_data(f"{line}\n".encode())
        self.stderr.feed_eof()
        self.returncode = status
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def terminate(self) -> None:
        self.signals.append(signal.SIGTERM)
        if not self.ignores_sigterm:
            self.end(0)

    def kill(self) -> None:
        self.signals.append(signal.SIGKILL)
        self.end(-9)


class Children:
    """All that were started, with their commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Child] = []
        self.commands: list[tuple[str, ...]] = []
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._start)

    async def _start(self, *command: str, **_: Any) -> Child:
        self.commands.append(command)
        self.started.append(Child())
        return self.started[-1]


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mosquitto is installed, or something of its name; restarts and watches are quick."""
    program = tmp_path / "bin" / "mosquitto"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(module, "Backoff", lambda: Backoff(0.01, 0.01))
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.01)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


@contextlib.asynccontextmanager
async def running(folder: Path, children: Children) -> AsyncIterator[Mosquitto]:
    broker = Mosquitto(folder, "127.0.0.1", 0)
    task = asyncio.ensure_future(broker.run())
    try:
        await until(lambda: children.started)
        yield broker
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        broker.listener.close()


def test_without_mosquitto_the_operator_learns_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ServiceError, match=r"mosquitto is not installed.*apt-get install mosquitto"):
        Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)


def test_a_path_that_is_too_long_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="is too long for a socket; give --state-dir a shorter path"):
        Mosquitto(tmp_path / ("x" * 108), "127.0.0.1", 0)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is in use; give --mqtt-port another one"):
            Mosquitto(tmp_path / "mqtt", "127.0.0.1", port)


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "mqtt" / "passwords.lock").mkdir(parents=True)
    with pytest.raises(ServiceError, match=r"cannot write the MQTT broker's files: .*passwords\.lock: Is a directory"):
        Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)


def test_the_copy_of_the_key_that_earlier_versions_left_is_removed(tmp_path: Path) -> None:
    copy = tmp_path / "mqtt" / "server-key.pem"
    copy.parent.mkdir()
    copy.touch()
    Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0).listener.close()
    assert not copy.exists()


def test_its_configuration_names_its_files_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0).listener.close()
    written = tmp_path / "mqtt" / "mosquitto.conf"
    assert f"password_file {tmp_path}/mqtt/passwords\n" in written.read_text()
    assert "allow_anonymous false\n" in written.read_text()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


@in_event_loop
async def test_it_is_started_with_rules_for_the_things_that_are_enrolled(tmp_path: Path, children: Children) -> None:
    folder = tmp_path / "mqtt"
    folder.mkdir()
    PasswordFile(folder / "passwords").set("pump")
    async with running(folder, children) as broker:
        rules = json.loads((folder / "dynamic-security.json").read_text())
        assert {client["username"] for client in rules["clients"]} == {
            "pump",
            "tunnel.notifier",
            "tunnel.administrator",
        }
        assert children.commands[0][-3:] == (str(tmp_path / "bin/mosquitto"), "-c", str(folder / "mosquitto.conf"))
        assert broker.notifier_login.user == "tunnel.notifier"


@in_event_loop
async def test_a_broker_that_ends_is_restarted_and_its_error_is_logged_once(
    tmp_path: Path, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "mqtt", children):
        for number in range(3):
            await until(lambda wanted=number: len(children.started) > wanted)  # type: ignore[misc]
            children.started[number].end(1, "Error: Address in use", "starting")
        await until(lambda: len(children.started) == 4)
    said = "mosquitto exited with status 1 (Error: Address in use); starting it again until it runs"
    assert said in caplog.text
    assert caplog.text.count("mosquitto: Error: Address in use") >= 1


@in_event_loop
async def test_a_damaged_database_is_renamed(
    tmp_path: Path, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mqtt"
    async with running(folder, children):
        (folder / "mosquitto.db").write_bytes(b"\x00")
        children.started[0].end(1, "Error: Couldn't open database.")
        await until(lambda: len(children.started) == 2)
    assert (folder / "mosquitto.db.damaged").exists()
    assert "notifications for devices that are offline are lost" in caplog.text


@in_event_loop
async def test_a_program_that_cannot_be_started_is_tried_again(
    tmp_path: Path, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path / "mqtt", "127.0.0.1", 0)
    in_the_way = tmp_path / "mqtt" / "dynamic-security.json"
    in_the_way.mkdir()
    task = asyncio.ensure_future(broker.run())
    await until(lambda: "mosquitto cannot be started" in caplog.text)
    in_the_way.rmdir()
    await until(lambda: children.started)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    broker.listener.close()
    assert caplog.text.count("mosquitto cannot be started") == 1


@in_event_loop
async def test_a_broker_that_does_not_start_is_an_error_with_its_own_words(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "mqtt", children) as broker:
        monkeypatch.setattr(module, "_START_SECONDS", 0.05)
        with pytest.raises(
            ServiceError, match=r"mosquitto does not start.*; see what it says: cd .*mqtt && .*mosquitto"
        ):
            await broker.wait_until_it_listens()


@in_event_loop
async def test_a_broker_that_listens_has_started(tmp_path: Path, children: Children) -> None:
    async with running(tmp_path / "mqtt", children) as broker:
        server = await asyncio.start_unix_server(lambda *_: None, tmp_path / "mqtt" / "socket")
        await broker.wait_until_it_listens()
        server.close()


@in_event_loop
async def test_an_enrolled_thing_is_sent_to_the_broker_before_its_password(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mqtt"
    async with running(folder, children) as broker:
        told: list[frozenset[str]] = []

        async def update(things: frozenset[str]) -> bool:
            told.append(things)
            assert children.started[0].signals == []
            return len(told) > 1

        monkeypatch.setattr(broker._administrator, "update", update)
        PasswordFile(folder / "passwords").set("pump")
        await until(lambda: signal.SIGHUP in children.started[0].signals)
        assert told == [frozenset({"pump"})] * 2


@in_event_loop
async def test_a_broker_that_ignores_sigterm_is_killed(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.02)
    async with running(tmp_path / "mqtt", children):
        children.started[0].ignores_sigterm = True
    assert children.started[0].signals == [signal.SIGTERM, signal.SIGKILL]
