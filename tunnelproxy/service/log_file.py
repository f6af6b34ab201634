# SPDX-License-Identifier: Apache-2.0
"""The service's log in a file of its own, which is bounded in size and survives a full disk."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from .errors import ServiceError
from .outage import Outage
from .rotating_file import DEFAULT_KEPT, DEFAULT_SIZE, RotatingFile

__all__ = ["LogFile"]


class LogFile(logging.Handler):
    """Writes each record as a line, and says on stderr when it cannot.

    Args:
        path: the file; made when it is not there. Full ones are ``path.1`` and so on.
        size: bytes at which it is full; 0 for never.
        kept: how many full ones to keep.

    Raises:
        ServiceError: the file cannot be written.
    """

    def __init__(self, path: Path, *, size: int = DEFAULT_SIZE, kept: int = DEFAULT_KEPT) -> None:
        super().__init__()
        outage = Outage(f"the log {path}", "its lines are lost until it can be written again", say=_say)
        try:
            self._file = RotatingFile(path, outage, size=size, kept=kept)
        except OSError as error:
            raise ServiceError(
                f"cannot write the log {path}: {error.strerror}; give --log-file another file"
            ) from error

    def reopen(self) -> None:
        """Go on in a new file, as the old one has been renamed; where that fails, in the old one."""
        try:
            self._file.reopen()
        except OSError as error:
            _say(logging.ERROR, f"cannot begin a new log: {error}; going on in the old file")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)


def _say(_level: int, sentence: str) -> None:
    print(f"tunnelproxy: {sentence}", file=sys.stderr, flush=True)
