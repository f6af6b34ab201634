# SPDX-License-Identifier: Apache-2.0
"""A file of lines that is renamed when it is full, and survives a disk that is full.

``logging.handlers.RotatingFileHandler`` keeps in its buffer what a full disk does not take, and writes a part of it
later. Here a line is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .outage import Outage

__all__ = ["DEFAULT_KEPT", "DEFAULT_SIZE", "RotatingFile"]

DEFAULT_SIZE = 100_000_000
"""Bytes of one file."""

DEFAULT_KEPT = 5
"""How many full files are kept."""


class RotatingFile:
    """Appends lines to a file of mode 0600; each goes to the kernel at once, so a process that is killed loses none.

    Args:
        path: the file; made when it is not there. Full ones are ``path.1``, the newest, ``path.2`` and so on.
        outage: is told of lines that could not be written.
        size: bytes at which it is full; 0 for never.
        kept: how many full ones to keep.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, outage: Outage, *, size: int = DEFAULT_SIZE, kept: int = DEFAULT_KEPT) -> None:
        self._path = path
        self._outage = outage
        self._limit = size
        self._kept = kept
        self._fd = _open(path)
        self._size = os.fstat(self._fd).st_size

    def write(self, line: bytes) -> None:
        """Add a line, or lose it where the disk takes none."""
        if 0 < self._limit < self._size + len(line) and self._size:
            self._rotate()
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._outage.failed(error.strerror)
            return
        if written < len(line):
            # The rest of the disk was shorter than the line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            self._outage.failed("No space left on device")
            return
        self._size += written
        self._outage.worked()

    def reopen(self) -> None:
        """Go on in a new file, as the old one has been renamed.

        Raises:
            OSError: that is not possible; it goes on in the old one.
        """
        self._go_on_in(_open(self._path))

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)

    def _rotate(self) -> None:
        """Begin a new file. Where that is not possible the old one grows: its lines matter more than its size."""
        with contextlib.suppress(OSError):
            # Before anything is renamed: where no file can be opened, each line would push out one that is kept.
            new = self._path.with_name(f"{self._path.name}.new")
            fd = _open(new)
            try:
                self._rename()
                new.replace(self._path)
            except OSError:
                os.close(fd)
                raise
            self._go_on_in(fd)

    def _rename(self) -> None:
        if not self._path.exists():
            # Somebody has renamed or removed it.
            return
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._numbered(number), self._numbered(number + 1))
        if self._kept:
            os.replace(self._path, self._numbered(1))
        else:
            self._path.unlink()

    def _go_on_in(self, fd: int) -> None:
        os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
