# SPDX-License-Identifier: Apache-2.0
"""The hub's files: one JSON value per line, replaced as a whole, readable only by this user."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

from ..files import replace_file
from .location import cannot_write

__all__ = ["JsonLinesFile", "read", "replace"]

log = logging.getLogger(__name__)


def read(path: Path) -> list[Any]:
    """The values of a file; none if it does not exist. Lines that cannot be read are skipped."""
    values = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return []
    for line in lines:
        try:
            values.append(json.loads(line))
        except ValueError:
            log.warning("skipping a line of %s that cannot be read", path)
    return values


def replace(path: Path, lines: Iterable[str]) -> None:
    """Replace the file atomically: a crash or a full disk leaves either the old or the new one.

    Args:
        lines: the values, as JSON.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    # Line by line: a single string of all lines, a little longer each time, would fragment the memory.
    replace_file(path, (f"{line}\n".encode() for line in lines))


class JsonLinesFile:
    """A file that mirrors the state of this process. If writing it fails, it is retried until it succeeds.

    A full disk must not keep an operator from a device, or lose open tunnels: the values stay in memory.

    Args:
        path: the file; its folder is created if it does not exist.
        lines: returns the file's lines, as JSON.
    """

    def __init__(self, path: Path, lines: Callable[[], Iterable[str]]) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why the file is out of date; None if it is up to date."""
        self._lines = lines

    def save(self) -> None:
        """Write the file. A failure is logged, once for each cause, and left to :meth:`retry`."""
        before, self.error = self.error, None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace(self.path, self._lines())
        except OSError as error:
            self.error = error
            if before is None or before.errno != error.errno:
                log.warning("%s; retrying until it succeeds", cannot_write(self.path, error))
        else:
            if before is not None:
                log.info("%s can be written again", self.path)

    def retry(self) -> None:
        """Write the file, if the last attempt failed."""
        if self.error is not None:
            self.save()
