# SPDX-License-Identifier: Apache-2.0
"""The audit log: a line of JSON for each control call, and for each client that connects, disconnects or is refused."""

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

log = logging.getLogger(__name__)


class AuditLog:
    """Appends events to a :class:`~tunnelproxy.log_file.RotatingFile`.

    A full disk does not stop the service: lines are dropped and counted, and the service's log reports it once.

    Args:
        path: the file, created if missing.
        clock: returns seconds since the epoch.
        size: bytes at which the file is rotated; 0 for never.
        kept: how many rotated files to keep.

    Attributes:
        outage: counts the dropped lines.

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
        """Append a line, unless the event is only counted."""
        name = _NAMES.get(type(event))
        if name is None:
            return
        moment = dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc)
        content = {"time": moment.isoformat(timespec="milliseconds"), "event": name, **asdict(event)}
        if "seconds" in content:
            content["seconds"] = round(content["seconds"], 6)
        # Data of clients may contain bytes that are not UTF-8; as JSON escapes, they can still be written.
        self._file.write(json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def reopen(self) -> None:
        """Continue in a new file, because the old one was renamed; if that fails, in the old one."""
        try:
            self._file.reopen()
        except OSError as error:
            log.error("cannot start a new audit log: %s; continuing in the old one", error)  # noqa: TRY400  the words are enough

    def close(self) -> None:
        """Close the file."""
        self._file.close()
