# SPDX-License-Identifier: Apache-2.0
"""The hub's process: it starts, answers requests on a Unix socket, maintains its folder, and exits."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any, Callable

from ..net.background_tasks import spawn
from ..net.descriptor_limit import allow_many_files
from ..net.reasons import reason
from .hub import Hub
from .location import PROTOCOL, SOCKET_NAME, HubError, describe_os_error
from .requests import parse
from .runtime_folder import AlreadyRunningError, ReplacedError, RuntimeFolder
from .ssh_names import SshNames

__all__ = ["AlreadyRunningError", "serve"]

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often to check the folder, and whether the hub is idle."""

LONGEST_REQUEST = 4 * 1024 * 1024
"""A request includes the caller's whole environment, which Linux limits to 2 MiB by default."""

HAND_OVER_TRIES = 20
"""How often to offer the tunnels to the hub that has taken the folder, once a second, if it does not answer."""

READ_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0


async def serve(
    ready: Callable[[], None], *, idle_seconds: float, moved: Callable[[Path], None] = lambda folder: None
) -> None:
    """Run as this user's hub until asked to stop, cancelled, or idle.

    Args:
        ready: called once requests are answered.
        idle_seconds: how long to keep running without a tunnel that works or may recover.
        moved: called with the hub's folder after it had to be recreated, perhaps elsewhere.

    Raises:
        AlreadyRunningError: another process is the hub.
        HubError, OSError: the folder cannot be used.
    """
    allow_many_files()
    stoppers: list[socket.socket] = []
    """Connections of callers that asked the hub to stop: they wait until these close, when the process exits."""

    def admit(client: socket.socket, _: Any) -> None:
        # A request that fails affects only its caller.
        spawn("answering a request", _answer(client, hub, stoppers))

    folder = RuntimeFolder(admit)
    await folder.take()
    hub = Hub(folder.path, SshNames.of_this_user())
    hub.restore()
    folder.listen()
    ready()
    try:
        await _until_done(hub, folder, idle_seconds, moved)
    finally:
        folder.leave()
        await hub.stop()
        log.info("the hub exits")


async def _until_done(hub: Hub, folder: RuntimeFolder, idle_seconds: float, moved: Callable[[Path], None]) -> None:
    stopping = asyncio.get_running_loop().create_task(hub.stopping.wait())
    failure = ""
    try:
        while not stopping.done() and not hub.idle_for(idle_seconds):
            await asyncio.wait({stopping}, timeout=min(idle_seconds, CHECK_SECONDS))
            try:
                await _look_after(hub, folder, moved)
                failure = ""
            except ReplacedError:
                log.warning("another hub runs in %s: this one exits when its connections are closed", folder.path)
                folder.leave()
                await _hand_over(hub, folder.path, stopping)
                break
            except Exception as error:  # the tunnels matter more than the folder, which is soon checked again
                if str(error) != failure:
                    failure = str(error)
                    log.exception("the hub cannot check its folder and its tunnels: %s", failure)
    finally:
        stopping.cancel()


async def _look_after(hub: Hub, folder: RuntimeFolder, moved: Callable[[Path], None]) -> None:
    """Recreate what is missing in the folder, and disconnect unused tunnels, even if the former fails."""
    failure: Exception | None = None
    try:
        if folder.restore():
            moved(folder.path)
            hub.move(folder.path)
    except (OSError, HubError) as error:
        failure = error
    await hub.tidy()
    if failure is not None:
        raise failure


async def _hand_over(hub: Hub, folder: Path, stopping: asyncio.Future[Any]) -> None:
    """Hand each tunnel over to the hub that has taken the folder, as soon as it carries no connections."""
    pending: list[Any] = []
    failures = 0
    while True:
        pending += [json.loads(line) for line in await hub.hand_over()]
        if pending:
            why = await _send(folder, {"protocol": PROTOCOL, "op": "inherit", "tunnels": pending})
            if not why:
                pending, failures = [], 0
            elif failures < HAND_OVER_TRIES:
                # The other hub may already have the lock, but not listen yet.
                failures += 1
                if failures in (1, HAND_OVER_TRIES):
                    log.warning("cannot hand %d tunnels over to the hub in %s: %s", len(pending), folder, why)
        if stopping.done() or not (hub.busy or 0 < failures < HAND_OVER_TRIES):
            return
        await asyncio.wait({stopping}, timeout=CHECK_SECONDS)


async def _send(folder: Path, request: dict[str, Any]) -> str:
    """Send a request to another hub, and return why it has not been carried out; empty if it has."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_unix_connection(str(folder / SOCKET_NAME))
        writer.write(json.dumps(request).encode() + b"\n")
        reply = json.loads(await asyncio.wait_for(reader.readline(), REQUEST_SECONDS))
        return str(reply.get("error", ""))
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        return reason(error) if not isinstance(error, ValueError) else "it did not answer"
    finally:
        if writer is not None:
            writer.close()


async def _answer(client: socket.socket, hub: Hub, stoppers: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    stream: socket.socket | None = None
    keep_open = False
    try:
        line = await asyncio.wait_for(_read_line(client), REQUEST_SECONDS)
        if not line:
            return
        reply, stream = await _reply(line, hub)
        keep_open = "stopping" in reply
        data = json.dumps({"protocol": PROTOCOL, **reply}).encode() + b"\n"
        if stream is not None:
            socket.send_fds(client, [data], [stream.fileno()])
        else:
            await loop.sock_sendall(client, data)
    except (OSError, asyncio.TimeoutError) as error:
        log.info("a request went unanswered: %s", error)
    finally:
        if stream is not None:
            stream.close()
        if keep_open:
            stoppers.append(client)
        else:
            client.close()


async def _reply(line: bytes, hub: Hub) -> tuple[dict[str, Any], socket.socket | None]:
    """The reply to a request, whatever goes wrong: without one, the caller would assume that the hub has exited."""
    try:
        request = parse(_checked(json.loads(line)))
    except HubError as error:
        return _error(error.message, error.code)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("invalid request", exc_info=True)
        return _error(f"the hub does not understand the request ({type(error).__name__})", "bad-input")
    try:
        return await hub.answer(request)
    except HubError as error:
        return _error(error.message, error.code)
    except OSError as error:
        log.warning("a request failed: %s", error, exc_info=True)
        return _error(f"the hub failed: {describe_os_error(error)}", "hub-failed")
    except Exception as error:
        log.exception("a request failed")
        return _error(f"the hub failed ({type(error).__name__}): see hub.log", "hub-failed")


def _error(words: str, code: str) -> tuple[dict[str, Any], None]:
    return {"error": words, "code": code}, None


def _checked(request: dict[str, Any]) -> dict[str, Any]:
    """Parse a request, unless it is of another protocol version; a hub of any version can be stopped.

    Raises:
        HubError: it is.
    """
    if request.get("protocol") != PROTOCOL and request.get("op") != "stop":
        raise HubError(
            "the running hub is of another release of iotops.tunnel than this request: stop it with `tunnelproxy hub "
            "stop`; its connections close, and the next hub takes over its tunnels",
            code="other-release",
        )
    return request


async def _read_line(client: socket.socket) -> bytes:
    """Read a request; empty from a caller that only checks whether the hub listens."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(client, READ_BYTES)
        if not data and not line:
            break
        if not data or len(line) > LONGEST_REQUEST:
            raise OSError("a request without an end")
        line += data
    return line
