# SPDX-License-Identifier: Apache-2.0
"""The audit log: one line of JSON for every control call, and for every client that comes, leaves, or is refused."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ...log_file import DEFAULT_KEPT, DEFAULT_SIZE, RotatingFile
from ...outage import Outage
from ..errors import ServiceError
from ..events import Connected, ControlCall, Disconnected, Event, Refused, Suppressed

__all__ = ["AuditLog"]

_NAMES: dict[type[Event], str] = {
    ControlCall: "control",
    Connected: "connected",
    Disconnected: "disconnected",
    Refused: "refused",
    Suppressed: "suppressed",
}

_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to a file; see :class:`rotating_file.RotatingFile`.

    A full disk does not stop the service: the lines are lost and counted, and the service's own log says so once.

    Args:
        path: the file; made when it is not there.
        clock: gives seconds since the epoch.
        size: bytes at which the file is full, and another is begun; 0 for never.
        kept: how many full files to keep.

    Attributes:
        outage: counts the lines that are lost.

    Raises:
        ServiceError: the file cannot be written.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], *, size: int = DEFAULT_SIZE, kept: int = DEFAULT_KEPT
    ) -> None:
        self.outage = Outage(f"the audit log {path}", "its lines are lost until it can be written again")
        self._clock = clock
        self._file = RotatingFile(path, self.outage, size=size, kept=kept)
        try:
            self._file.open()
        except OSError as error:
            raise ServiceError(
                f"cannot write the audit log {path}: {error.strerror}; give --audit-log another file"
            ) from error

    def write(self, event: Event) -> None:
        """Add a line, unless the event is one that is counted only."""
        name = _NAMES.get(type(event))
        if name is None:
            return
        moment = dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc)
        content = {"time": moment.isoformat(timespec="milliseconds"), "event": name, **asdict(event)}
        if "seconds" in content:
            content["seconds"] = round(content["seconds"], 6)
        # What clients send may hold bytes that are no UTF-8; as escapes of JSON they can be written all the same.
        self._file.write(json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def reopen(self) -> None:
        """Go on in a new file, as the old one has been renamed; where that fails, in the old one."""
        try:
            self._file.reopen()
        except OSError as error:
            _log.error("cannot begin a new audit log: %s; going on in the old file", error)

    def close(self) -> None:
        """Write no more."""
        self._file.close()
