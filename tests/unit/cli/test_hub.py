# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy hub``, with a hub in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.cli.main import main
from tunnelproxy.hub import client, location
from tunnelproxy.hub.server import serve

TUNNEL: dict[str, Any] = {
    "thing": "pump",
    "account_name": "production",
    "state": "connected",
    "round_trip_ms": 12,
    "expires_at": None,
    "owner": "joe",
    "tunnel_id": "t-1",
    "endpoint": "data.example.com:443",
    "cause": "",
    "services": {
        "SSH1": {"port": 0, "connections": 1, "bytes_in": 10, "bytes_out": 20},
        "HTTP1": {
            "port": 5555,
            "url": "http://pump.localhost:5555",
            "any_host": True,
            "connections": 0,
            "bytes_in": 0,
            "bytes_out": 0,
        },
        "CAM1": {"port": 0, "connections": 0, "bytes_in": 0, "bytes_out": 0},
        "VNC1": {"port": 5900, "connections": 0, "bytes_in": 0, "bytes_out": 0},
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return path


@pytest.fixture
def hub(folder: Path) -> Iterator[threading.Thread]:
    """A hub that runs."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(serve(ready.set, idle_seconds=60))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    running = threading.Thread(target=run)
    running.start()
    assert ready.wait(20)
    yield running
    loop.call_soon_threadsafe(task.cancel)
    running.join()
    loop.close()


@pytest.fixture
def stopping_hub(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """A process that ends, and with it its connections, at the first request; gives what it was asked."""
    folder.mkdir(mode=0o700)
    asked: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / location.SOCKET_NAME))
        listener.listen()

        def end() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as requests:
                asked.append(json.loads(requests.readline()))

        ending = threading.Thread(target=end)
        ending.start()
        yield asked
        ending.join()


def answers(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have the hub say what a test wants, as one with tunnels to AWS."""
    status = {"pid": 7, "not_saved": "", "tunnels": [TUNNEL], **changes}
    monkeypatch.setattr(client, "status", lambda: status)


@pytest.mark.usefixtures("folder")
def test_without_a_hub_there_is_nothing_to_show_or_stop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hub", "status"]) == 0
    assert main(["hub", "stop"]) == 0
    assert capsys.readouterr().out == "no hub is running\n" * 2
    assert main(["hub", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pid": None, "tunnels": []}


def test_status_shows_the_hub_that_runs(
    hub: threading.Thread, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hub", "status"]) == 0
    assert f", 0 tunnel(s), in {folder}\n" in capsys.readouterr().out
    assert main(["hub", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tunnels"] == []


def test_stop_returns_when_the_hub_has_ended(
    stopping_hub: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hub", "stop", "--force"]) == 0
    assert [request["op"] for request in stopping_hub] == ["stop"]
    assert capsys.readouterr().out == "the hub has stopped\n"


def test_a_second_hub_is_refused(hub: threading.Thread, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hub", "run"]) == 1
    said = f"tunnelproxy: error: a hub is already running in {folder}: tunnelproxy hub status\n"
    assert capsys.readouterr().err.endswith(said)


def test_run_serves_until_sigterm(folder: Path, manager: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ending = manager.stop_when_ready()
    assert main(["hub", "run"]) == 0
    ending.join()
    assert f"the hub is ready in {folder}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_the_hubs_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.touch()
    for command in ("run", "status"):
        assert main(["hub", command]) == 1
        assert f"the hub's folder {folder} must be a folder that belongs to you" in capsys.readouterr().err


def test_a_tunnel_is_shown_with_its_services(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, not_saved="could not save its tunnels: disk full")
    assert main(["hub", "status"]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
hub: pid 7, 1 tunnel(s), in {folder}
could not save its tunnels: disk full

pump in production: connected, round trip 12 ms
  tunnel t-1 at data.example.com:443, of joe
  SERVICE          LISTENS ON                            CONNECTIONS       BYTES IN      BYTES OUT
  SSH1             (through ssh)                                   1             10             20
  HTTP1            http://pump.localhost:5555 (any host)           0              0              0
  CAM1             (no port)                                       0              0              0
  VNC1             127.0.0.1:5900                                  0              0              0
"""
    )


@pytest.mark.usefixtures("folder")
def test_a_tunnel_that_is_lost_is_shown_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {**TUNNEL, "cause": "connection refused", "round_trip_ms": None, "account_name": "", "owner": ""}
    answers(monkeypatch, tunnels=[{**lost, "expires_at": 1.0}])
    assert main(["hub", "status"]) == 0
    shown = capsys.readouterr().out
    assert "pump: connected, round trip -, expires in 0 h 00 min\n" in shown
    assert "  connection refused\n" in shown


def test_a_hub_that_could_not_save_its_tunnels_is_stopped_by_force_only(
    stopping_hub: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, not_saved="could not save its tunnels")
    assert main(["hub", "stop"]) == 1
    assert "the hub was not stopped: it could not save its tunnels, or give --force" in capsys.readouterr().err
    assert stopping_hub == []
    assert main(["hub", "stop", "--force"]) == 0


@pytest.mark.usefixtures("folder")
def test_a_hub_of_another_release_can_be_stopped_nevertheless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses() -> None:
        raise client.HubError("the hub is of another release")

    monkeypatch.setattr(client, "status", refuses)
    assert main(["hub", "stop"]) == 0
    assert main(["hub", "status"]) == 1
    assert "the hub is of another release" in capsys.readouterr().err


class Forked(BaseException):
    """A process has ended with a status."""


@pytest.fixture
def without_forks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Be the process in the background, instead of starting it; gives what it did for its starter."""
    done: list[str] = []

    def end(status: int) -> None:
        raise Forked(status)

    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "setsid", lambda: done.append("session"))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("tunnelproxy.cli.hub._say_ready", lambda: done.append("ready"))
    return done


def test_a_hub_in_the_background_has_a_session_and_a_log_file_of_its_own(
    folder: Path, manager: Any, without_forks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Forked) as ended:
        main(["hub", "run", "--background", "--idle-seconds", "0.01"])
    assert ended.value.args == (0,)
    assert without_forks == ["session", "ready"]
    assert "the hub exits" in (folder / "hub.log").read_text()
    # The service manager supervises the process that started this one.
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.usefixtures("hub")
def test_a_hub_that_runs_already_is_as_good_as_one_in_the_background(without_forks: list[str]) -> None:
    with pytest.raises(Forked) as ended:
        main(["hub", "run", "--background"])
    assert ended.value.args == (0,)
    assert without_forks == ["session", "ready"]


@pytest.mark.usefixtures("folder")
def test_the_process_that_starts_one_in_the_background_returns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: 7)
    assert main(["hub", "run", "--background"]) == 0


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'h11'", name="h11"), "the Python package h11"),
        (PermissionError(13, "Permission denied", "/a/file"), "the hub cannot write /a/file: Permission denied"),
        (client.HubError("no folder"), "no folder"),
    ],
)
def test_a_hub_that_cannot_run_says_why(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tunnelproxy.hub.server.serve", fail)
    assert main(["hub", "run"]) == 1
    assert f"tunnelproxy: error: {said}" in capsys.readouterr().err
