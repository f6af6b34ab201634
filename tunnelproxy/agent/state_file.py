# SPDX-License-Identifier: Apache-2.0
"""The file in which an agent saves its tunnels, to reconnect to them after a restart.

An access token can be used once, or repeatedly with the same client token. So an agent that loses its client tokens
cannot reconnect to a tunnel until its access token is rotated.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..files import replace_file
from .notification import Notification

__all__ = ["SavedTunnel", "SavedTunnels", "why_unwritable"]

log = logging.getLogger(__name__)

_NO_DATE_SECONDS = 253_402_300_800.0
"""10000-01-01: later than any clock."""


@dataclass(frozen=True)
class SavedTunnel:
    """A tunnel that the agent serves.

    Attributes:
        client_token: sent with every connect.
        since: when the notification arrived, in seconds since the epoch.
    """

    notification: Notification
    client_token: str = field(repr=False)
    since: float


class SavedTunnels:
    """Reads and writes the file.

    Args:
        directory: where the file is; None to save nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / "tunnels.json"
        self._failing = False

    def prepare(self) -> None:
        """Create the directory. If that fails, the agent works without it: the operator needs the tunnels."""
        if self._path is None:
            return
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            why = why_unwritable(directory)
        except OSError as error:
            why = f"cannot create {directory}: {error.strerror}"
        if why is not None:
            log.warning("state_dir: %s; the agent will lose its tunnels when it restarts", why)

    def read(self) -> list[SavedTunnel]:
        """The tunnels of the last run; none if the file is damaged: their tokens can be rotated."""
        if self._path is None:
            return []
        try:
            saved = json.loads(self._path.read_bytes())
            return [_from_json(tunnel) for tunnel in saved]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Without the text of the error, which may quote the file.
            log.warning("cannot read the tunnels of the last run from %s (%s)", self._path, type(error).__name__)
            return []

    def write(self, tunnels: list[SavedTunnel]) -> bool:
        """Replace the file atomically; only its owner can read it.

        Returns:
            whether it was written; a failure is logged.
        """
        if self._path is None:
            return True
        content = json.dumps([_to_json(tunnel) for tunnel in tunnels]).encode()
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, content)
        except OSError as error:
            # A full disk must not stop the agent.
            level = logging.DEBUG if self._failing else logging.WARNING
            self._failing = True
            log.log(level, "cannot save the tunnels in %s: %s", self._path, error.strerror)
            return False
        if self._failing:
            log.info("the tunnels are saved in %s again", self._path)
        self._failing = False
        return True


def why_unwritable(directory: Path) -> str | None:
    """Why this process cannot write in an existing directory; None if it can."""
    if not directory.is_dir():
        return f"{directory} is not a directory"
    if os.access(directory, os.W_OK | os.X_OK):
        return None
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return f"cannot write in {directory}; its file system is read-only"
    return f"cannot write in {directory}; it belongs to another user"


def _to_json(tunnel: SavedTunnel) -> dict[str, object]:
    return {
        "token": tunnel.notification.token,
        "region": tunnel.notification.region,
        "services": list(tunnel.notification.services),
        "client_token": tunnel.client_token,
        "since": tunnel.since,
    }


def _from_json(saved: dict[str, object]) -> SavedTunnel:
    services = saved["services"]
    if not isinstance(services, list):
        raise TypeError
    since = float(str(saved["since"]))
    if not 0 <= since < _NO_DATE_SECONDS:
        raise ValueError
    notification = Notification(str(saved["token"]), str(saved["region"]), tuple(map(str, services)))
    return SavedTunnel(notification, str(saved["client_token"]), since)
