# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peers.process import REPOSITORY
from tunnelproxy.hub import client

ACCOUNT = "aws:123456789012:eu-central-1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    return path


def test_the_folder_is_made_for_this_user_alone(folder: Path) -> None:
    assert client.directory() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(client.HubError, match=r"nobody else may enter \(mode 0700\)"):
        client.directory()


def test_a_folder_behind_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(client.HubError, match="must be a folder of yours"):
        client.directory()


@pytest.mark.parametrize(
    ("given", "meant"), [("hub", "work/hub"), ("./a/../hub", "work/hub"), ("~/hub", "home/hub"), ("~", "home")]
)
def test_a_path_is_one_in_the_working_or_the_home_directory(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "home"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", given)
    assert client.directory() == str(tmp_path / meant)


def test_a_relative_path_without_a_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", "hub")
    with pytest.raises(client.HubError, match="the working directory is gone"):
        client.directory()


def test_something_that_is_no_folder_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(client.HubError, match="must be a folder of yours"):
        client.directory()


class TestDefault:
    """Without IOTOPS_TUNNEL_DIR."""

    @pytest.fixture(autouse=True)
    def runtime(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("IOTOPS_TUNNEL_DIR")
        path = tmp_path / "runtime"
        path.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        # Of somebody who has no other folder on this machine.
        monkeypatch.setattr(client, "_OTHERS", (str(tmp_path / "run-{user}"), str(tmp_path / "tmp-{user}")))
        return path

    def test_it_is_in_the_runtime_directory(self, runtime: Path) -> None:
        assert client.directory() == str(runtime / "iotops-tunnel")

    @pytest.mark.parametrize("mode", [0o755, 0o710])
    def test_a_runtime_directory_for_others_is_none(self, runtime: Path, tmp_path: Path, mode: int) -> None:
        runtime.chmod(mode)
        assert client.directory() == str(tmp_path / f"tmp-{os.getuid()}")

    def test_one_that_is_relative_or_not_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in ("runtime", "/nowhere"):
            monkeypatch.setenv("XDG_RUNTIME_DIR", path)
            assert client.directory() == str(tmp_path / f"tmp-{os.getuid()}")

    def test_a_process_without_a_session_finds_that_of_its_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        run = tmp_path / f"run-{os.getuid()}"
        run.mkdir(mode=0o700)
        assert client.directory() == str(run / "iotops-tunnel")

    def test_one_that_is_there_already_is_kept_to(self, tmp_path: Path) -> None:
        there = tmp_path / f"tmp-{os.getuid()}"
        there.mkdir(mode=0o700)
        assert client.directory() == str(there)

    def test_one_that_somebody_else_may_enter_is_not(self, runtime: Path, tmp_path: Path) -> None:
        (tmp_path / f"tmp-{os.getuid()}").mkdir(mode=0o755)
        assert client.directory() == str(runtime / "iotops-tunnel")


def test_looking_starts_no_hub() -> None:
    assert client.status() is None
    assert not client.holds("any", ACCOUNT)
    assert not client.release("any", ACCOUNT)
    assert not client.stop()


def test_a_hub_that_is_being_killed_is_none(folder: Path) -> None:
    """For a moment it may still take connections, and then end them."""
    folder.mkdir(mode=0o700)
    path = folder / client.SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as dying, ThreadPoolExecutor(1) as pool:
        dying.bind(str(path))
        dying.listen()
        found = pool.submit(client.status)
        connection, _ = dying.accept()
        path.unlink()
        connection.close()
        assert found.result(10) is None


def test_the_client_needs_the_standard_library_only() -> None:
    """-S leaves out site-packages: whatever is not in the standard library cannot be imported."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tunnelproxy.hub.client; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # What is slow to import: ssh waits for it with each new connection.
    assert {"json", "re", "socket", "typing"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "open", "thing": 'Zähler "7"\n\x00', "timeout": 20.0, "wait": 5, "speaks_first": True, "endpoint": None},
        {"services": ["SSH1", "HTTP1"], "ports": {"HTTP1": 5555, "X": None}, "aws": {}, "statuses": (200, 204)},
    ],
)
def test_requests_are_json(request_: dict[str, object]) -> None:
    assert client._encode(request_) == json.dumps(request_)


def test_the_connector_is_told_no_more_than_is_needed() -> None:
    plain = client.connector_command("thing1", "SSH1", account=ACCOUNT)
    assert plain[-3:] == [ACCOUNT, "thing1", "SSH1"]
    assert client.connector_command("thing1", "SSH1", account=ACCOUNT, timeout=3.0) == [*plain, "3"]
    health_check = client.HealthCheck("HTTP1", "/health?deep=1", [200, 204])
    asking = client.connector_command("thing1", "SSH1", account=ACCOUNT, health_check=health_check)
    assert asking == [*plain, "20", "HTTP1", "/health?deep=1", "200,204"]


def test_the_connector_says_how_it_is_used() -> None:
    connector = client.connector_command("thing1", "SSH1", account=ACCOUNT)[:-3]
    done = subprocess.run([*connector, "thing1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("iotops.tunnel: usage: connector.py ACCOUNT THING SERVICE")


def test_a_hub_that_is_no_more_is_why_a_connection_broke() -> None:
    why = client.explain_break("thing1", "SSH1", hub_pid=1, account=ACCOUNT)
    assert (why.code, str(why)) == ("hub-ended", "the hub (process 1) has ended; it starts again by itself")
