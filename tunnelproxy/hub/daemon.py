# SPDX-License-Identifier: Apache-2.0
"""The hub's process: its Unix socket, and how it begins and ends."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, Callable

from .client import PROTOCOL, SOCKET_NAME, HubError, directory
from .hub import Hub
from .ssh_names import SshNames

__all__ = ["AlreadyRunningError", "serve"]

log = logging.getLogger(__name__)

ENDING_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.1
IDLE_CHECK_SECONDS = 5.0
LONGEST_REQUEST = 4 * 1024 * 1024
"""With all of a caller's environment, for which Linux sets a limit of 2 MiB to begin with."""

READ_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0


class AlreadyRunningError(Exception):
    """Another hub serves this folder."""


async def serve(ready: Callable[[], None], *, idle_seconds: float) -> None:
    """Be this user's hub until asked to stop, cancelled, or idle.

    Args:
        ready: called once requests are answered.
        idle_seconds: how long to stay without a tunnel that works or may work again.

    Raises:
        AlreadyRunningError: another process is.
    """
    folder = Path(directory())
    lock = os.open(folder / "hub.lock", os.O_RDWR | os.O_CREAT, 0o600)
    await _take(lock)
    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    hub = Hub(folder, SshNames.of_this_user())
    hub.restore()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    listener.listen(1024)
    accepting = asyncio.ensure_future(_accept(listener, hub))
    ready()
    try:
        await _until_done(hub, idle_seconds)
    finally:
        path.unlink(missing_ok=True)
        accepting.cancel()
        listener.close()
        await hub.stop()
        log.info("the hub ends")


async def _take(lock: int) -> None:
    """Take the lock of the only hub. One that ends holds it a little longer than it listens."""
    if _taken(lock):
        return
    log.info("waiting for another hub to end")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ENDING_SECONDS
    while not _taken(lock):
        if loop.time() > deadline:
            raise AlreadyRunningError
        await asyncio.sleep(LOCK_POLL_SECONDS)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _until_done(hub: Hub, idle_seconds: float) -> None:
    stopping = asyncio.ensure_future(hub.stopping.wait())
    try:
        while not stopping.done() and not hub.idle_for(idle_seconds):
            await asyncio.wait({stopping}, timeout=min(idle_seconds, IDLE_CHECK_SECONDS))
            await hub.tidy()
    finally:
        stopping.cancel()


async def _accept(listener: socket.socket, hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    answering: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        task = loop.create_task(_answer(connection, hub))
        answering.add(task)
        task.add_done_callback(answering.discard)


async def _answer(connection: socket.socket, hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    stream: socket.socket | None = None
    keep_open = False
    try:
        line = await asyncio.wait_for(_read_line(connection), REQUEST_SECONDS)
        try:
            reply, stream = await hub.answer(_checked(json.loads(line)))
            keep_open = "stopping" in reply
        except HubError as error:
            reply = {"error": str(error), "code": error.code}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"error": f"the hub does not understand the request ({type(error).__name__})", "code": "bad-input"}
        data = json.dumps({"protocol": PROTOCOL, **reply}).encode() + b"\n"
        if stream is not None:
            socket.send_fds(connection, [data], [stream.fileno()])
        else:
            await loop.sock_sendall(connection, data)
    except (OSError, asyncio.TimeoutError) as error:
        log.info("a request went unanswered: %s", error)
    finally:
        if stream is not None:
            stream.close()
        if not keep_open:
            # Who asked the hub to stop learns by the end of the connection, and so of the process, that it has.
            connection.close()


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    """The request, unless it is of a release that this hub does not understand; any may have it stop."""
    if request.get("protocol") != PROTOCOL and request.get("op") != "stop":
        raise HubError(
            "the hub that runs is of another release of iotops.tunnel than this request: end it with `tunnelproxy hub "
            "stop`; its connections end, and the next one takes over its tunnels",
            code="other-release",
        )
    return request


async def _read_line(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, READ_BYTES)
        if not data or len(line) > LONGEST_REQUEST:
            raise OSError("a request without an end")
        line += data
    return line
