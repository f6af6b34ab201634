# SPDX-License-Identifier: Apache-2.0
"""Log files of bounded size that survive a full disk.

``logging.handlers.RotatingFileHandler`` keeps in its buffer what a full disk does not accept, and writes a part of it
later. Here a line is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .outage import Outage

__all__ = ["DEFAULT_KEPT", "DEFAULT_SIZE", "LogFile", "RotatingFile"]

DEFAULT_SIZE = 100_000_000
"""Bytes per file."""

DEFAULT_KEPT = 5
"""How many full files are kept."""


class RotatingFile:
    """Appends lines to a file of mode 0600, which is renamed when it is full.

    Each line is passed to the kernel immediately, so a killed process loses none. The file is opened by :meth:`open`,
    or by the first line.

    Args:
        path: the file, created if missing. Full files are ``path.1`` (the newest), ``path.2`` and so on.
        outage: records lines that could not be written.
        size: bytes at which the file is full; 0 for no limit.
        kept: how many full files to keep.
        follow_path: whether to recreate the file as soon as someone has renamed or removed it, instead of waiting for
            :meth:`reopen`. This costs two system calls per line.
    """

    def __init__(
        self,
        path: Path,
        outage: Outage,
        *,
        size: int = DEFAULT_SIZE,
        kept: int = DEFAULT_KEPT,
        follow_path: bool = False,
    ) -> None:
        self._path = path
        self._outage = outage
        self._limit = size
        self._kept = kept
        self._follow_path = follow_path
        self._fd: int | None = None
        self._size = 0

    def open(self) -> None:
        """Open the file now, not with the first line.

        Raises:
            OSError: the file cannot be opened.
        """
        self._current()

    def write(self, line: bytes) -> None:
        """Append a line, or drop it if it cannot be written."""
        try:
            fd = self._current()
            if 0 < self._limit < self._size + len(line) and self._size:
                fd = self._rotate(fd)
            written = os.write(fd, line)
        except OSError as error:
            self._outage.failed(error.strerror)
            return
        if written < len(line):
            # The disk had space for only a part of the line.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, os.fstat(fd).st_size - written)
            self._outage.failed("No space left on device")
            return
        self._size += written
        self._outage.worked()

    def reopen(self) -> None:
        """Continue in a new file, because the old one was renamed.

        Raises:
            OSError: the new file cannot be opened; the old one stays in use.
        """
        self._use(_open(self._path))

    def move(self, path: Path) -> None:
        """Continue in another file, which the next line opens."""
        self.close()
        self._path = path

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _current(self) -> int:
        """The descriptor of the open file."""
        if self._fd is not None and self._follow_path and not self._is_at_path(self._fd):
            self.close()
        return self._use(_open(self._path)) if self._fd is None else self._fd

    def _use(self, fd: int) -> int:
        self.close()
        self._fd = fd
        self._size = os.fstat(fd).st_size
        return fd

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except OSError:
            return False

    def _rotate(self, current: int) -> int:
        """Start a new file. If that fails, the old one grows: its lines matter more than its size."""
        try:
            # Before the renames: while no file can be opened, each line would otherwise push out one of the kept files.
            new = self._path.with_name(f"{self._path.name}.new")
            fd = _open(new)
            try:
                self._shift()
                new.replace(self._path)
            except OSError:
                os.close(fd)
                raise
        except OSError:
            return current
        return self._use(fd)

    def _shift(self) -> None:
        """Rename each full file to the next number, and the current file to the first."""
        if not self._path.exists():
            # Someone has renamed or removed it.
            return
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._numbered(number), self._numbered(number + 1))
        if self._kept:
            os.replace(self._path, self._numbered(1))
        else:
            self._path.unlink()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class LogFile(logging.Handler):
    """Writes each log record as a line to a :class:`RotatingFile`, and never raises.

    Args:
        path: the file, created if missing.
        size: bytes at which the file is full; 0 for no limit.
        kept: how many full files to keep.
        follow_path: as for :class:`RotatingFile`.
        report: called with a level of ``logging`` and a sentence when lines cannot be written, and when they can be
            written again. By default, lines are dropped silently.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int = DEFAULT_SIZE,
        kept: int = DEFAULT_KEPT,
        follow_path: bool = False,
        report: Callable[[int, str], None] = lambda level, sentence: None,
    ) -> None:
        super().__init__()
        self._report = report
        outage = Outage(f"the log {path}", "its lines are lost until it can be written again", report=report)
        self._file = RotatingFile(path, outage, size=size, kept=kept, follow_path=follow_path)

    def open(self) -> None:
        """Open the file now, not with the first record.

        Raises:
            OSError: the file cannot be opened.
        """
        self._file.open()

    def reopen(self) -> None:
        """Continue in a new file, because the old one was renamed; if that fails, in the old one."""
        with self._locked():
            try:
                self._file.reopen()
            except OSError as error:
                self._report(logging.ERROR, f"cannot start a new log file: {error}; continuing in the old one")

    def move(self, path: Path) -> None:
        """Continue in another file."""
        with self._locked():
            self._file.move(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        with self._locked():
            self._file.close()
        super().close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
