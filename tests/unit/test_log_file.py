# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files of bounded size, on disks that are full and at paths that someone changes."""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnelproxy.log_file import LogFile


def write(handler: LogFile, text: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))


@pytest.fixture
def reports() -> list[str]:
    return []


def test_a_line_for_which_there_is_no_space_is_dropped_completely_and_reported_twice(
    tmp_path: Path, reports: list[str]
) -> None:
    path = tmp_path / "log"
    handler = LogFile(path, report=lambda level, sentence: reports.append(sentence))
    write(handler, "before")
    with at_most_bytes_per_file(20):
        for _ in range(3):
            write(handler, "longer than what is left")
    write(handler, "after")
    assert path.read_text() == "before\nafter\n"
    began, ended = reports
    assert began == (
        f"cannot write to the log {path}: No space left on device; its lines are lost until it can be written again"
    )
    assert ended == f"the log {path} can be written again; writing failed 3 times within 0 s"


@contextlib.contextmanager
def at_most_bytes_per_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_file_is_renamed(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=1)
    for number in range(3):
        write(handler, f"number {number}")
    assert (tmp_path / "log").read_text() == "number 2\n"
    assert (tmp_path / "log.1").read_text() == "number 1\n"
    assert not (tmp_path / "log.2").exists()


def test_without_kept_files_a_full_file_is_removed(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=0)
    for number in range(3):
        write(handler, f"number {number}")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("log", "number 2\n")]


def test_a_file_that_someone_has_renamed_does_not_push_out_a_kept_one(tmp_path: Path) -> None:
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


def test_without_a_free_descriptor_the_file_grows_and_no_kept_file_is_lost(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log", size=10, kept=2)
    for number in range(3):
        write(handler, f"number {number}")
    with no_free_descriptor():
        for number in range(3, 6):
            write(handler, f"number {number}")
    write(handler, "number 6")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log": "number 6\n",
        "log.1": "number 2\nnumber 3\nnumber 4\nnumber 5\n",
        "log.2": "number 1\n",
    }


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_renamed_file_stays_in_use_until_it_is_reopened(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log")
    write(handler, "first")
    (tmp_path / "log").rename(tmp_path / "log.old")
    write(handler, "second")
    handler.reopen()
    write(handler, "third")
    assert (tmp_path / "log.old").read_text() == "first\nsecond\n"
    assert (tmp_path / "log").read_text() == "third\n"


def test_a_file_that_cannot_be_reopened_stays_in_use(tmp_path: Path, reports: list[str]) -> None:
    path = tmp_path / "log"
    handler = LogFile(path, report=lambda level, sentence: reports.append(sentence))
    write(handler, "first")
    path.rename(tmp_path / "log.old")
    path.mkdir()
    handler.reopen()
    write(handler, "second")
    assert (tmp_path / "log.old").read_text() == "first\nsecond\n"
    assert reports == [
        f"cannot start a new log file: [Errno 21] Is a directory: '{path}'; continuing in the old one",
    ]


def test_opening_a_file_that_cannot_be_created_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogFile(tmp_path / "none" / "log").open()


def test_a_file_that_cannot_be_opened_is_written_as_soon_as_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "log"
    handler = LogFile(path)
    write(handler, "lost")
    path.parent.mkdir()
    write(handler, "kept")
    assert path.read_text() == "kept\n"
    assert capsys.readouterr().err == ""


def test_a_file_whose_path_is_followed_is_created_again_when_it_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = LogFile(path, follow_path=True)
    write(handler, "before")
    path.unlink()
    write(handler, "after")
    assert path.read_text() == "after\n"


def test_a_full_device_is_left_for_the_file_that_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    handler = LogFile(path, follow_path=True)
    write(handler, "lost")
    path.unlink()
    write(handler, "kept")
    assert path.read_text() == "kept\n"


def test_it_moves_to_another_path(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "log")
    write(handler, "before")
    handler.move(tmp_path / "moved")
    write(handler, "after")
    assert ((tmp_path / "log").read_text(), (tmp_path / "moved").read_text()) == ("before\n", "after\n")


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    write(LogFile(tmp_path / "log"), "x")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_record_that_cannot_be_formatted_does_not_raise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = LogFile(tmp_path / "log")
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d", ("word",), None))
    assert "Logging error" in capsys.readouterr().err
    write(handler, "next")
    assert (tmp_path / "log").read_text() == "next\n"
