# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting the hub: what it is given, and what is said where it fails."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.hub import start
from tunnelproxy.hub.location import LOCK_NAME, HubError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    return path


class Started:
    """What stands in for the process: its output, and what it was started with."""

    def __init__(self, output: bytes = b"ready\n", error: Exception | None = None) -> None:
        self._output, self._error = output, error
        self.command: list[str] = []
        self.settings: dict[str, Any] = {}

    def __call__(self, command: list[str], **settings: Any) -> subprocess.CompletedProcess[bytes]:
        self.command, self.settings = command, settings
        if self._error is not None:
            raise self._error
        return subprocess.CompletedProcess(command, 0, stdout=self._output)


def test_it_is_given_what_is_the_user_s_and_nothing_of_the_caller_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for name, value in {"IOTOPS_TUNNEL_DIR": "hub", "AWS_SECRET_ACCESS_KEY": "s", "LC_ALL": "C", "XDG_X": "x"}.items():
        monkeypatch.setenv(name, value)
    process = Started()
    monkeypatch.setattr(subprocess, "run", process)
    start.start()
    environment = process.settings["env"]
    assert (environment["LC_ALL"], environment["XDG_X"]) == ("C", "x")
    # Its own working directory is another.
    assert (environment["IOTOPS_TUNNEL_DIR"], process.settings["cwd"]) == (str(folder), "/")
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert process.command[2:] == ["hub", "run", "--background"]


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (Started(b"x\ntunnelproxy: error: no protobuf\n"), "cannot start the hub: no protobuf; see "),
        (Started(b""), "cannot start the hub: it said nothing; see "),
        (Started(error=FileNotFoundError(2, "No such file")), "cannot start the hub: [Errno 2] No such file"),
        (Started(error=subprocess.TimeoutExpired("hub", 20)), "cannot start the hub: Command 'hub' timed out"),
    ],
)
def test_why_it_does_not_start_is_told(process: Started, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", process)
    with pytest.raises(HubError) as caught:
        start.start()
    assert str(caught.value).startswith(said)


def test_only_one_caller_starts_a_hub(folder: Path) -> None:
    lock = start.take_start_lock()
    with (folder / start.START_LOCK_NAME).open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / start.START_LOCK_NAME).mkdir()
    with pytest.raises(HubError, match=r"cannot write .*start\.lock: Is a directory: make it writable"):
        start.take_start_lock()


@pytest.mark.parametrize(("content", "named"), [("4711\n", "4711"), ("", "PROCESS")])
def test_the_hub_that_runs_is_named_by_its_lock(folder: Path, content: str, named: str) -> None:
    assert start.lock_holder() is None
    (folder / LOCK_NAME).write_text(content)
    assert start.lock_holder() is None
    with (folder / LOCK_NAME).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert start.lock_holder() == named
