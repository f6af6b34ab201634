# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's log in a file of its own."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.full_disk import SmallDisk, why_impossible
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.log_file import LogFile


def write(handler: LogFile, text: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))


@pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())
def test_a_full_disk_costs_whole_lines_and_is_said_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SmallDisk(tmp_path / "disk", kib=64) as disk:
        path = disk.path / "log"
        handler = LogFile(path)
        write(handler, "before")
        disk.fill()
        for _ in range(30):
            write(handler, "lost" * 100)
        disk.empty()
        write(handler, "after")
        lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert set(lines[1:-1]) <= {"lost" * 100}
    began, ended = capsys.readouterr().err.splitlines()
    assert began == (
        f"tunnelproxy: cannot write to the log {path}: No space left on device; its lines are lost until it can be "
        "written again"
    )
    assert "can be written again" in ended


def test_a_full_file_is_renamed(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=1)
    for number in range(3):
        write(handler, f"number {number}")
    assert (tmp_path / "log").read_text() == "number 2\n"
    assert (tmp_path / "log.1").read_text() == "number 1\n"
    assert not (tmp_path / "log.2").exists()


def test_a_file_that_somebody_has_renamed_costs_none_that_is_kept(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=2)
    for number in range(3):
        write(handler, f"number {number}")
    (tmp_path / "log").rename(tmp_path / "log.mine")
    for number in range(3, 5):
        write(handler, f"number {number}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log": "number 4\n",
        "log.1": "number 3\n",
        "log.2": "number 1\n",
        "log.mine": "number 2\n",
    }


def test_without_a_descriptor_the_file_grows_on_and_none_that_is_kept_is_lost(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=2)
    for number in range(3):
        write(handler, f"number {number}")
    with no_descriptor_left():
        for number in range(3, 6):
            write(handler, f"number {number}")
    write(handler, "number 6")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log": "number 6\n",
        "log.1": "number 2\nnumber 3\nnumber 4\nnumber 5\n",
        "log.2": "number 1\n",
    }


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="give --log-file another file"):
        LogFile(tmp_path / "none" / "log")
