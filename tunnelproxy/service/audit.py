# SPDX-License-Identifier: Apache-2.0
"""The audit log: one line of JSON for every control call, and for every client that comes, leaves, or is refused."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .errors import ServiceError
from .events import Connected, ControlCall, Disconnected, Event, Refused

__all__ = ["AuditLog"]

_NAMES: dict[type[Event], str] = {
    ControlCall: "control",
    Connected: "connected",
    Disconnected: "disconnected",
    Refused: "refused",
}

_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to a file of mode 0600; each line goes to the kernel at once, so a service that is killed loses none.

    A full disk does not stop the service: the line is lost, and the service's own log says so.

    Args:
        path: the file; made when it is not there.
        clock: gives seconds since the epoch.

    Raises:
        ServiceError: the file cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._fd = self._open()
        self._is_failing = False

    def write(self, event: Event) -> None:
        """Add a line, unless the event is one that strangers could fill the disk with."""
        name = _NAMES.get(type(event))
        if name is None:
            return
        moment = dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc)
        content = {"time": moment.isoformat(timespec="milliseconds"), "event": name, **asdict(event)}
        if "seconds" in content:
            content["seconds"] = round(content["seconds"], 6)
        try:
            os.write(self._fd, json.dumps(content, ensure_ascii=False).encode() + b"\n")
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                _log.error("cannot write to the audit log %s: %s; its lines are lost", self._path, error.strerror)
            self._is_failing = True

    def reopen(self) -> None:
        """Go on in a new file, as the old one has been renamed; where that fails, in the old one."""
        try:
            fd = self._open()
        except ServiceError as error:
            _log.error("%s; going on in the old file", error)
            return
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServiceError(
                f"cannot write the audit log {self._path}: {error.strerror}; give --audit-log another file"
            ) from error
