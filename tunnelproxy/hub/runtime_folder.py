# SPDX-License-Identifier: Apache-2.0
"""Where the hub is found: its folder, with the lock of the only hub there and the socket that it listens on.

Any of these may go while the hub runs: somebody tidies up, or systemd removes ``/run/user/UID`` as its user logs out.
What is gone is made again, before long, so that callers find this hub and start no other.
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
from .client import LISTEN_SECONDS, LOCK_NAME, SOCKET_NAME, HubError, cannot_write, directory

__all__ = ["AlreadyRunningError", "ReplacedError", "RuntimeFolder"]

log = logging.getLogger(__name__)

BACKLOG = 1024
LOCK_POLL_SECONDS = 0.1
ENDING_SECONDS = 0.5
"""How long a hub that still answers may be one that has just been told to end."""

LOOKS = 5
LOOK_SECONDS = 0.01

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
    """The folder went, and another hub was started before this one noticed: it has :attr:`RuntimeFolder.folder` now."""


class RuntimeFolder:
    """The folder of the hub that this process is.

    Args:
        admit: is given each connection to the socket.
    """

    def __init__(self, admit: Callable[[socket.socket, Any], None]) -> None:
        self.folder = Path(directory())
        self._admit = admit
        self._lock = _opened(self.folder / LOCK_NAME)
        self._listens_at: Identity | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Become the only hub here. One that ends holds its lock a little longer than it listens.

        Raises:
            AlreadyRunningError: another process is.
        """
        since = time.monotonic()
        told = False
        while not _taken(self._lock):
            if not told:
                log.info("waiting for another hub to end")
                told = True
            waited = time.monotonic() - since
            if waited > ENDING_SECONDS and _answers(self.folder / SOCKET_NAME):
                raise AlreadyRunningError(answers=True)
            if waited > LISTEN_SECONDS:
                raise AlreadyRunningError(answers=False)
            await asyncio.sleep(LOCK_POLL_SECONDS)
        _sign(self._lock)

    def listen(self) -> None:
        """Listen on the socket, in place of whatever was there.

        Raises:
            OSError: that is not possible; it names the socket.
        """
        path = self.folder / SOCKET_NAME
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
        # No error ends it; a fault of ours does not either.
        self._accepting = supervise("listening for requests", lambda: accept_connections(listener, self._admit))
        # Not before: the event loop would forget a reader of whichever socket has its number next.
        self._accepting.add_done_callback(lambda _: listener.close())

    def restore(self) -> bool:
        """Make again what is gone of the folder, the lock and the socket.

        Returns:
            whether anything was: what this process keeps in the folder has to be written again then.

        Raises:
            ReplacedError: another hub has the place now.
            OSError, HubError: it is not possible now.
        """
        if _identity(self.folder / LOCK_NAME) != _identity(self._lock):
            self._take_again()
        elif _identity(self.folder / SOCKET_NAME) == self._listens_at:
            return False
        self.listen()
        log.warning("%s was removed; this hub listens at %s", SOCKET_NAME, self.folder / SOCKET_NAME)
        return True

    def leave(self) -> None:
        """Listen no more. The lock stays until the process ends: what it holds is not yet there for the next."""
        path = self.folder / SOCKET_NAME
        if self._listens_at is not None and _identity(path) == self._listens_at:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                # Whoever connects there is refused, as where nothing is. What is left to do must not wait for it.
                log.warning("%s stays, and nobody listens there: %s", path, error.strerror)
        self._stop_listening()

    def _take_again(self) -> None:
        folder = Path(directory())
        lock = _opened(folder / LOCK_NAME)
        if not _taken_soon(lock):
            os.close(lock)
            # Perhaps not the folder that went.
            self.folder = folder
            raise ReplacedError
        _sign(lock)
        os.close(self._lock)
        self._lock, self.folder = lock, folder

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HubError(cannot_write(path, error)) from None


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _taken_soon(lock: int) -> bool:
    """The same, where a caller may be looking if anybody has the lock: that takes it, for a moment."""
    for _ in range(LOOKS):
        if _taken(lock):
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _sign(lock: int) -> None:
    """Say in the file which process has the lock, for messages."""
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        log.debug("the lock does not say who holds it: %s", error)


def _answers(path: Path) -> bool:
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
    """What tells a file from another of the same name."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
