# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub stays to be found, whatever goes of its folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.hub import location, runtime_folder
from tunnelproxy.hub.runtime_folder import AlreadyRunningError, ReplacedError, RuntimeFolder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    return tmp_path / "hub"


class Hub:
    """A hub's folder, and who connects to it."""

    def __init__(self) -> None:
        self.admitted: list[socket.socket] = []
        self.folder = RuntimeFolder(self._admit)

    def _admit(self, connection: socket.socket, _: Any) -> None:
        self.admitted.append(connection)
        connection.close()

    async def listen(self) -> None:
        await self.folder.take()
        self.folder.listen()

    async def is_found(self) -> bool:
        before = len(self.admitted)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self.folder.path / location.SOCKET_NAME))
            await until(lambda: len(self.admitted) > before)
        return True


def move_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.folder.leave()


@in_event_loop
async def test_what_is_there_is_left_alone(hub: Hub) -> None:
    await hub.listen()
    assert not hub.folder.restore()
    assert await hub.is_found()


@in_event_loop
async def test_a_socket_that_is_gone_is_made_again(hub: Hub, folder: Path) -> None:
    await hub.listen()
    (folder / location.SOCKET_NAME).unlink()
    assert hub.folder.restore()
    assert await hub.is_found()


@pytest.mark.parametrize("replaced", [False, True])
@in_event_loop
async def test_a_folder_that_is_gone_is_made_again(hub: Hub, folder: Path, replaced: bool) -> None:
    await hub.listen()
    move_away(folder)
    if replaced:
        assert location.directory() == str(folder)
    assert hub.folder.restore()
    assert await hub.is_found()
    assert (folder / location.LOCK_NAME).read_text() == f"{os.getpid()}\n"
    assert not hub.folder.restore()


@in_event_loop
async def test_where_its_folder_cannot_be_made_again_it_goes_where_callers_look(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a logout, when the runtime directory goes."""
    await hub.listen()
    shutil.rmtree(folder)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "other"))
    assert hub.folder.restore()
    assert hub.folder.path == tmp_path / "other"
    assert await hub.is_found()


@in_event_loop
async def test_a_hub_whose_place_another_has_says_so(hub: Hub, folder: Path) -> None:
    await hub.listen()
    shutil.rmtree(folder)
    other = Hub()
    await other.listen()
    with pytest.raises(ReplacedError):
        hub.folder.restore()
    hub.folder.leave()
    assert await other.is_found()
    other.folder.leave()


@in_event_loop
async def test_a_hub_whose_place_another_has_elsewhere_knows_where(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a logout, where a task of cron's has started another hub at once: that one is given the tunnels."""
    await hub.listen()
    shutil.rmtree(folder)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "other"))
    other = Hub()
    await other.listen()
    with pytest.raises(ReplacedError):
        hub.folder.restore()
    assert hub.folder.path == tmp_path / "other"
    hub.folder.leave()
    assert await other.is_found()
    other.folder.leave()


@in_event_loop
async def test_whoever_looks_if_there_is_a_hub_is_not_taken_for_one(hub: Hub, folder: Path) -> None:
    await hub.listen()
    move_away(folder)
    assert location.directory() == str(folder)
    looking = os.open(folder / location.LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.02, os.close, [looking]).start()
    assert hub.folder.restore()
    assert await hub.is_found()


@in_event_loop
async def test_a_second_hub_finds_one_that_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_folder, "ENDING_SECONDS", 0.0)
    await hub.listen()
    with pytest.raises(AlreadyRunningError) as caught:
        await Hub().folder.take()
    assert caught.value.answers


@in_event_loop
async def test_a_second_hub_finds_one_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_folder, "LISTEN_SECONDS", 0.0)
    await hub.folder.take()
    with pytest.raises(AlreadyRunningError) as caught:
        await Hub().folder.take()
    assert not caught.value.answers


@in_event_loop
async def test_a_socket_that_cannot_be_removed_keeps_no_hub_from_ending(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    await hub.listen()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        hub.folder.leave()
    assert f"cannot remove {folder}/hub.sock: Permission denied" in caplog.text
    with socket.socket(socket.AF_UNIX) as caller:
        await until(lambda: caller.connect_ex(str(folder / location.SOCKET_NAME)) == errno.ECONNREFUSED)


@in_event_loop
async def test_the_lock_outlasts_the_socket(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the next hub reads what this one wrote last."""
    monkeypatch.setattr(runtime_folder, "LISTEN_SECONDS", 0.0)
    await hub.listen()
    hub.folder.leave()
    assert not (folder / location.SOCKET_NAME).exists()
    with pytest.raises(AlreadyRunningError):
        await Hub().folder.take()
