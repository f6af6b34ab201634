# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub's process: what it replies, how it looks after its folder, and how it gives way to another hub."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.hub_in_process import ACCOUNT, call_hub, device, running_hub, running_service
from tunnelproxy.hub import client, server, wire
from tunnelproxy.hub.hub import Hub
from tunnelproxy.hub.location import PROTOCOL, SOCKET_NAME, HubError
from tunnelproxy.hub.requests import Holds, TunnelName
from tunnelproxy.hub.ssh_names import SshNames


@asynccontextmanager
async def lone_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A hub that needs no service."""
    async with running_hub(None, folder, monkeypatch, **settings) as hub:  # type: ignore[arg-type]
        yield hub


async def replied(folder: Path, line: bytes) -> dict[str, Any]:
    """What a hub replies to a line."""
    reader, writer = await asyncio.open_unix_connection(str(folder / SOCKET_NAME))
    writer.write(line)
    if not line.endswith(b"\n"):
        writer.write_eof()
    reply = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return json.loads(reply) if reply else {}


class TestReplies:
    @pytest.mark.parametrize(
        ("request_", "code", "words"),
        [
            ({"protocol": 1, "op": "status"}, "other-release", "is of another release of iotops.tunnel than this"),
            ({"protocol": 2, "op": "fly"}, "hub-failed", "does not know the request 'fly'"),
            ({"protocol": 2, "op": "holds"}, "bad-input", "does not understand the request (KeyError)"),
            ({"protocol": 2, "op": "holds", "tunnel_id": 1}, "bad-input", "does not understand the request (TypeError"),
            ([], "bad-input", "does not understand the request (AttributeError)"),
            ({"protocol": 2, "op": "open", "thing": "a", "account": "?", "service": "SSH1", "timeout": 1}, "bad-input",
             "'?' does not name an account"),
            ({"protocol": 2, "op": "open", "thing": "a", "account": ACCOUNT, "service": "SSH1", "timeout": 1},
             "no-tunnel", "there is no tunnel to a in 123456789012/eu-central-1"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_done_is_told_with_a_code(
        self, request_: Any, code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def check() -> None:
            async with lone_hub(tmp_path, monkeypatch):
                reply = await replied(tmp_path, json.dumps(request_).encode() + b"\n")
            assert (reply["protocol"], reply["code"]) == (PROTOCOL, code)
            assert words in reply["error"]

        asyncio.run(check())

    @in_event_loop
    async def test_what_is_no_json_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with lone_hub(tmp_path, monkeypatch):
            assert (await replied(tmp_path, b"not json\n"))["code"] == "bad-input"

    @in_event_loop
    async def test_whoever_only_looks_or_breaks_off_is_let_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        async with lone_hub(tmp_path, monkeypatch):
            assert await replied(tmp_path, b"") == {}
            assert "unanswered" not in caplog.text
            assert await replied(tmp_path, b'{"op": ') == {}
            assert "a request went unanswered: a request without an end" in caplog.text

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (OSError(24, "Too many open files"), "the hub failed: Too many open files: raise the limit of open files"),
            (ZeroDivisionError(), "the hub failed (ZeroDivisionError): see hub.log"),
        ],
    )
    def test_a_failure_of_the_hub_itself_is_told_too(
        self, error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(self: Hub, request: Holds) -> None:
            raise error

        async def check() -> None:
            monkeypatch.setattr(Hub, "_holds", fail)
            async with lone_hub(tmp_path, monkeypatch):
                with pytest.raises(HubError) as caught:
                    await call_hub(client.holds, "any", ACCOUNT)
            assert caught.value.message.startswith(words)

        asyncio.run(check())

    @in_event_loop
    async def test_a_hub_of_any_release_can_be_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with lone_hub(tmp_path, monkeypatch) as hub:
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
            writer.write(b'{"protocol": 1, "op": "stop"}\n')
            assert json.loads(await reader.readline()) == {"protocol": PROTOCOL, "stopping": True}
            await hub
            assert not (tmp_path / SOCKET_NAME).exists()
            writer.close()


@in_event_loop
async def test_an_idle_hub_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lone_hub(tmp_path, monkeypatch, idle_seconds=0.05) as hub:
        await asyncio.wait_for(hub, 5)


@in_event_loop
async def test_a_second_hub_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.hub.runtime_folder.ENDING_SECONDS", 0.0)
    async with lone_hub(tmp_path, monkeypatch), lone_hub(tmp_path, monkeypatch) as second:
        assert second.done()
        with pytest.raises(server.AlreadyRunningError):
            second.result()


@in_event_loop
async def test_the_next_hub_takes_over_and_a_stream_is_passed_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path / "service") as service:
        service.open("pump")
        async with device(service, "pump"):
            async with running_hub(service, tmp_path / "hub", monkeypatch):
                row = await call_hub(client.ensure, "pump", open_policy="reuse", owner="me", caller=service.caller)
            async with running_hub(service, tmp_path / "hub", monkeypatch):
                assert (await call_hub(client.ensure, "pump", caller=service.caller))["state"] == "connected"
                stream = await call_hub(wire.open_stream, "pump", "HTTP1", account=row["account"], speaks_first=False)
                with socket.socket(fileno=stream) as connection:
                    assert await call_hub(connection.recv, 4) == b"SSH-"


class ReplacedHub:
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

    async with await asyncio.start_unix_server(answer, str(folder / SOCKET_NAME)):
        yield told


class TestHandover:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "CHECK_SECONDS", 0.01)

    def hand_over(self, hub: ReplacedHub, folder: Path) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        return loop.create_task(server._hand_over(hub, folder, loop.create_future()))  # type: ignore[arg-type]

    @in_event_loop
    async def test_a_hub_that_does_not_listen_yet_is_told_later_and_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        handing = self.hand_over(ReplacedHub(["a"], ["b"]), tmp_path)
        await until(
            lambda: f"cannot hand 1 tunnels over to the hub in {tmp_path}: No such file or directory" in caplog.text
        )
        async with another_hub(tmp_path, {"protocol": PROTOCOL}) as told:
            await handing
        assert told == ["a", "b"]

    @pytest.mark.parametrize("reply", [{"error": "it is of another release"}, None])
    @in_event_loop
    async def test_one_that_does_not_take_them_is_left_and_that_is_told(
        self,
        reply: dict[str, Any] | None,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(server, "HAND_OVER_TRIES", 3)
        if reply is None:
            await self.hand_over(ReplacedHub(["a"]), tmp_path)
        else:
            async with another_hub(tmp_path, reply) as told:
                await self.hand_over(ReplacedHub(["a"]), tmp_path)
            assert told == ["a", "a", "a"]
        why = "No such file or directory" if reply is None else reply["error"]
        assert caplog.text.count(f"cannot hand 1 tunnels over to the hub in {tmp_path}: {why}") == 2

    @in_event_loop
    async def test_a_hub_whose_folder_another_has_gives_it_its_tunnels_and_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running_service(tmp_path / "service") as service:
            tunnel = service.open("pump")
            monkeypatch.setattr(server, "CHECK_SECONDS", 0.5)  # the other hub is there before it is noticed
            async with device(service, "pump"), running_hub(service, tmp_path / "hub", monkeypatch) as replaced:
                await call_hub(client.ensure, "pump", open_policy="reuse", owner="me", caller=service.caller)
                (tmp_path / "hub").rename(tmp_path / "elsewhere")
                async with running_hub(service, tmp_path / "hub", monkeypatch):
                    await asyncio.wait_for(replaced, 10)
                    status = await call_hub(client.status)
                    assert [row["tunnel_id"] for row in status["tunnels"]] == [tunnel.tunnel_id]


class TestFolder:
    @in_event_loop
    async def test_a_folder_that_was_removed_is_made_again_with_its_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "CHECK_SECONDS", 0.01)
        async with running_service(tmp_path / "service") as service:
            service.open("pump")
            async with device(service, "pump"), running_hub(service, tmp_path / "hub", monkeypatch):
                await call_hub(client.ensure, "pump", open_policy="reuse", owner="me", caller=service.caller)
                (tmp_path / "hub").rename(tmp_path / "elsewhere")
                await until((tmp_path / "hub" / "tunnels.jsonl").exists)
                assert [row["thing"] for row in (await call_hub(client.status))["tunnels"]] == ["pump"]

    @in_event_loop
    async def test_what_is_not_needed_ends_also_while_the_folder_cannot_be_made_again(self) -> None:
        tidied: list[None] = []

        def restore() -> bool:
            raise HubError("cannot create the hub's folder")

        async def tidy() -> None:
            tidied.append(None)

        with pytest.raises(HubError, match="cannot create the hub's folder"):
            await server._look_after(SimpleNamespace(tidy=tidy), SimpleNamespace(restore=restore), print)  # type: ignore[arg-type]
        assert tidied

    @in_event_loop
    async def test_a_failure_that_lasts_is_logged_once_and_the_hub_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(server, "CHECK_SECONDS", 0.01)
        tries: list[None] = []

        async def fail(*_: object) -> None:
            tries.append(None)
            raise OSError("the disk is gone")

        monkeypatch.setattr(server, "_look_after", fail)
        async with lone_hub(tmp_path, monkeypatch):
            await until(lambda: len(tries) > 2)
            assert await call_hub(client.status)
        assert caplog.text.count("the hub cannot check its folder and its tunnels: the disk is gone") == 1


@in_event_loop
async def test_a_hub_that_is_asked_for_something_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be opening a tunnel, which it has to give to the other, too."""
    answer = asyncio.Event()

    async def wait(self: Hub, request: Holds) -> dict[str, Any]:
        await answer.wait()
        return {}

    monkeypatch.setattr(Hub, "_holds", wait)
    hub = Hub(tmp_path, SshNames(tmp_path / "names"))
    assert not hub.busy
    request = asyncio.get_running_loop().create_task(hub.answer(Holds(TunnelName("any", ACCOUNT))))
    await until(lambda: hub.busy)
    answer.set()
    await request
    assert not hub.busy
