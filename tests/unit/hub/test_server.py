# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub looks after its folder, and gives its tunnels to one that has replaced it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.hub import client, server
from tunnelproxy.hub.hub import Hub
from tunnelproxy.hub.ssh_names import SshNames


class Replaced:
    """A hub with tunnels, of which those of each inner list are free at once."""

    def __init__(self, *free: list[str]) -> None:
        self._free = list(free)

    @property
    def busy(self) -> bool:
        return bool(self._free)

    async def hand_over(self) -> list[str]:
        return [json.dumps(thing) for thing in self._free.pop(0)] if self._free else []


@asynccontextmanager
async def another_hub(folder: Path, reply: dict[str, Any]) -> AsyncIterator[list[Any]]:
    """Gives the tunnels that it was told of."""
    told: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.extend(json.loads(await reader.readline())["tunnels"])
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, str(folder / client.SOCKET_NAME)):
        yield told


def hand_over(hub: Replaced, folder: Path) -> asyncio.Task[None]:
    stopping = asyncio.get_running_loop().create_future()
    return asyncio.ensure_future(server._hand_over(hub, SimpleNamespace(folder=folder), stopping))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.01)


@in_event_loop
async def test_a_hub_that_does_not_listen_yet_is_told_later_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handing = hand_over(Replaced(["a"], ["b"]), tmp_path)
    await until(lambda: "cannot be told of 1 tunnels: No such file or directory" in caplog.text)
    async with another_hub(tmp_path, {"protocol": client.PROTOCOL}) as told:
        await handing
    assert told == ["a", "b"]


@pytest.mark.parametrize("reply", [{"error": "it is of another release"}, None])
@in_event_loop
async def test_one_that_does_not_take_them_is_left_and_that_is_told(
    reply: dict[str, Any] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HAND_OVER_TRIES", 3)
    if reply is None:
        await hand_over(Replaced(["a"]), tmp_path)
    else:
        async with another_hub(tmp_path, reply) as told:
            await hand_over(Replaced(["a"]), tmp_path)
        assert told == ["a", "a", "a"]
    why = "No such file or directory" if reply is None else reply["error"]
    assert caplog.text.count(f"cannot be told of 1 tunnels: {why}") == 2


@in_event_loop
async def test_what_is_not_needed_ends_also_while_the_folder_cannot_be_made_again(tmp_path: Path) -> None:
    tidied: list[None] = []

    def restore() -> bool:
        raise client.HubError("cannot make the hub's folder")

    async def tidy() -> None:
        tidied.append(None)

    with pytest.raises(client.HubError, match="cannot make the hub's folder"):
        await server._look_after(SimpleNamespace(tidy=tidy), SimpleNamespace(restore=restore), print)  # type: ignore[arg-type]
    assert tidied


@in_event_loop
async def test_a_hub_that_is_asked_for_something_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be opening a tunnel, which it has to give to the other, too."""
    hub = Hub(tmp_path, SshNames(tmp_path / "names"))
    opened = asyncio.Event()
    monkeypatch.setattr(hub, "_ensure", lambda request: opened.wait())
    assert not hub.busy
    request = asyncio.ensure_future(hub.answer({"op": "ensure"}))
    await until(lambda: hub.busy)
    opened.set()
    await request
    assert not hub.busy
