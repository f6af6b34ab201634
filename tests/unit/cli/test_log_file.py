# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnelproxy.cli import log_file
from tunnelproxy.cli.log_file import LogFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "hub.log"


@pytest.fixture
def log(path: Path) -> Iterator[LogFile]:
    handler = LogFile(path)
    yield handler
    handler.close()


def say(log: LogFile, message: str) -> None:
    log.handle(logging.LogRecord("hub", logging.INFO, "", 0, message, None, None))


def test_a_file_that_cannot_be_opened_is_written_when_it_can(
    log: LogFile, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(log, "lost")
    path.parent.mkdir()
    say(log, "kept")
    assert path.read_text() == "kept\n"
    assert capsys.readouterr().err == ""


def test_a_file_that_was_removed_is_made_again(log: LogFile, path: Path) -> None:
    path.parent.mkdir()
    say(log, "before")
    path.unlink()
    say(log, "after")
    assert path.read_text() == "after\n"


def test_a_full_disk_is_survived(log: LogFile, path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    say(log, "lost")
    path.unlink()
    say(log, "kept")
    assert path.read_text() == "kept\n"


def test_it_moves(log: LogFile, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    say(log, "before")
    log.move(tmp_path / "hub.log")
    say(log, "after")
    assert (path.read_text(), (tmp_path / "hub.log").read_text()) == ("before\n", "after\n")


def test_its_size_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LOG_BYTES", 100)
    path.parent.mkdir()
    log = LogFile(path)
    for _ in range(100):
        say(log, "x" * 40)
    log.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["hub.log", "hub.log.1"]
    assert path.stat().st_size <= 100
