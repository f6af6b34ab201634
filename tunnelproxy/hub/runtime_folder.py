# SPDX-License-Identifier: Apache-2.0
"""The folder in which callers find the hub, with the hub's lock and socket.

Any of these may disappear while the hub runs: a user cleans up, or systemd removes ``/run/user/UID`` when the user logs
out. The hub soon recreates what is missing, so that callers find it and do not start another one.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, Callable

from ..net.accept_loop import accept_connections
from ..net.background_tasks import supervise
from .location import LOCK_NAME, SOCKET_NAME, HubError, cannot_write, directory
from .wire import LISTEN_SECONDS

__all__ = ["AlreadyRunningError", "ReplacedError", "RuntimeFolder"]

log = logging.getLogger(__name__)

BACKLOG = 1024
LOCK_POLL_SECONDS = 0.1
ENDING_SECONDS = 0.5
"""How long a hub that was just asked to stop may still answer."""

LOCK_TRIES = 5
LOCK_TRY_SECONDS = 0.01

Identity = tuple[int, int]


class AlreadyRunningError(Exception):
    """Another hub serves this folder.

    Attributes:
        answers: whether it takes requests.
    """

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.answers = answers


class ReplacedError(Exception):
    """The folder disappeared, and another hub, started before this one noticed, now has :attr:`RuntimeFolder.path`."""


class RuntimeFolder:
    """The folder of this process, which is the hub.

    Args:
        admit: called with each connection to the socket.
    """

    def __init__(self, admit: Callable[[socket.socket, Any], None]) -> None:
        self.path = Path(directory())
        self._admit = admit
        self._lock = _open_lock(self.path / LOCK_NAME)
        self._listens_at: Identity | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Become the only hub here. A hub that is exiting holds its lock a little longer than it listens.

        Raises:
            AlreadyRunningError: another process is the hub.
        """
        since = time.monotonic()
        told = False
        while not _take(self._lock):
            if not told:
                log.info("waiting for another hub to exit")
                told = True
            waited = time.monotonic() - since
            if waited > ENDING_SECONDS and _answers(self.path / SOCKET_NAME):
                raise AlreadyRunningError(answers=True)
            if waited > LISTEN_SECONDS:
                raise AlreadyRunningError(answers=False)
            await asyncio.sleep(LOCK_POLL_SECONDS)
        _sign(self._lock)

    def listen(self) -> None:
        """Listen on the socket, replacing whatever file was there.

        Raises:
            OSError: it cannot listen; the error names the socket.
        """
        path = self.path / SOCKET_NAME
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(BACKLOG)
            self._listens_at = _identity(path)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        self._stop_listening()
        # It survives all errors, even bugs.
        self._accepting = supervise("listening for requests", lambda: accept_connections(listener, self._admit))
        # Not earlier: the event loop would remove the reader of the next socket with the same number.
        self._accepting.add_done_callback(lambda _: listener.close())

    def restore(self) -> bool:
        """Recreate the folder, the lock and the socket, if they are missing.

        Returns:
            whether anything was missing. If so, the other files in the folder have to be rewritten.

        Raises:
            ReplacedError: another hub has the folder now.
            OSError, HubError: they cannot be recreated at the moment.
        """
        if _identity(self.path / LOCK_NAME) != _identity(self._lock):
            self._take_again()
        elif _identity(self.path / SOCKET_NAME) == self._listens_at:
            return False
        self.listen()
        log.warning("%s was removed; this hub listens at %s", SOCKET_NAME, self.path / SOCKET_NAME)
        return True

    def leave(self) -> None:
        """Stop listening. The lock is held until the process exits, so that the next hub reads complete files."""
        path = self.path / SOCKET_NAME
        if self._listens_at is not None and _identity(path) == self._listens_at:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                # Connections to it are refused, as if it did not exist. The rest of the shutdown must not fail.
                log.warning("cannot remove %s: %s", path, error.strerror)
        self._stop_listening()

    def _take_again(self) -> None:
        path = Path(directory())
        lock = _open_lock(path / LOCK_NAME)
        if not _take_soon(lock):
            os.close(lock)
            # It may differ from the folder that disappeared.
            self.path = path
            raise ReplacedError
        _sign(lock)
        os.close(self._lock)
        self._lock, self.path = lock, path

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HubError(cannot_write(path, error)) from None


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_soon(lock: int) -> bool:
    """Acquire the lock, although a caller may hold it briefly to check whether a hub runs."""
    for _ in range(LOCK_TRIES):
        if _take(lock):
            return True
        time.sleep(LOCK_TRY_SECONDS)
    return False


def _sign(lock: int) -> None:
    """Write the process ID into the lock's file, for messages."""
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        log.debug("cannot write the process ID into the lock: %s", error)


def _answers(path: Path) -> bool:
    """Whether a process listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


def _identity(file: Path | int) -> Identity | None:
    """An identifier that distinguishes a file from a later one with the same name."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
