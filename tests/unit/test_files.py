# SPDX-License-Identifier: GPL-3.0-or-later
"""State and secrets are written whole or not at all, and for their owner only."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunnelproxy.files import replace_file


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond ten bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_file_is_replaced_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_content_may_come_in_parts(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", (b"%d\n" % number for number in range(3)))
    assert (tmp_path / "file").read_bytes() == b"0\n1\n2\n"


def test_a_partial_file_of_a_killed_process_is_never_written_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (tmp_path / "file.partial").symlink_to(elsewhere)
    replace_file(tmp_path / "file", b"secret")
    assert (tmp_path / "file").read_bytes() == b"secret"
    assert elsewhere.read_bytes() == b""


def test_a_full_disk_leaves_the_old_content_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with small_files(), pytest.raises(OSError, match="File too large") as caught:
        replace_file(path, b"new" * 10)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        replace_file(path, b"")
    assert caught.value.filename == str(path)


def test_a_file_is_written_to_the_open_folder_whatever_is_at_its_path_now(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    try:
        replace_file("file", b"secret", dir_fd=descriptor)
    finally:
        os.close(descriptor)
    assert (tmp_path / "moved" / "file").read_bytes() == b"secret"
    assert not list(folder.iterdir())
