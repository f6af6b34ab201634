# SPDX-License-Identifier: Apache-2.0
"""A log file of bounded size that never keeps its process from working."""

from __future__ import annotations

import contextlib
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

__all__ = ["LogFile"]

LOG_BYTES = 1024 * 1024


class LogFile(RotatingFileHandler):
    """Writes to a file where that is possible, and to nowhere as long as it is not: the disk is full, or the file gone.

    Args:
        path: the file; its predecessor has ``.1`` at its end.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)

    def move(self, path: Path) -> None:
        """Write to another file from now on."""
        self.acquire()
        try:
            self._let_go()
            self.baseFilename = str(path)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_there():
            self._let_go()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Begin again with the next record: a stream that could not be written or closed is of no use any more."""
        self._let_go()

    def _is_there(self) -> bool:
        if self.stream is None:
            return True
        try:
            ours, there = os.fstat(self.stream.fileno()), os.stat(self.baseFilename)
        except (OSError, ValueError):
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _let_go(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
