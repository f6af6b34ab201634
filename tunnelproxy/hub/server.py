# SPDX-License-Identifier: Apache-2.0
"""The hub's process: the requests that come to it, and how it begins and ends."""

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
from .client import PROTOCOL, SOCKET_NAME, HubError, in_words
from .hub import Hub
from .runtime_folder import AlreadyRunningError, ReplacedError, RuntimeFolder
from .ssh_names import SshNames

__all__ = ["AlreadyRunningError", "serve"]

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often to look after what may have gone, and whether there is still something to do."""

LONGEST_REQUEST = 4 * 1024 * 1024
"""With all of a caller's environment, for which Linux sets a limit of 2 MiB to begin with."""

HAND_OVER_TRIES = 20
"""How often, a second apart, to tell the hub that has this one's place of the tunnels here, if it does not answer."""

READ_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0


async def serve(
    ready: Callable[[], None], *, idle_seconds: float, moved: Callable[[Path], None] = lambda folder: None
) -> None:
    """Be this user's hub until asked to stop, cancelled, or idle.

    Args:
        ready: called once requests are answered.
        idle_seconds: how long to stay without a tunnel that works or may work again.
        moved: called with the hub's folder where that had to be made again, perhaps elsewhere.

    Raises:
        AlreadyRunningError: another process is.
        HubError, OSError: the folder cannot be used.
    """
    allow_many_files()
    stopped: list[socket.socket] = []
    """Who asked the hub to stop learns by the end of the connection, and so of the process, that it has."""

    def admit(connection: socket.socket, _: Any) -> None:
        # One that fails is that caller's loss alone.
        spawn("answering a request", _answer(connection, hub, stopped))

    place = RuntimeFolder(admit)
    await place.take()
    hub = Hub(place.folder, SshNames.of_this_user())
    hub.restore()
    place.listen()
    ready()
    try:
        await _until_done(hub, place, idle_seconds, moved)
    finally:
        place.leave()
        await hub.stop()
        log.info("the hub ends")


async def _until_done(hub: Hub, place: RuntimeFolder, idle_seconds: float, moved: Callable[[Path], None]) -> None:
    stopping = asyncio.create_task(hub.stopping.wait())
    trouble = ""
    try:
        while not stopping.done() and not hub.idle_for(idle_seconds):
            await asyncio.wait({stopping}, timeout=min(idle_seconds, CHECK_SECONDS))
            try:
                await _look_after(hub, place, moved)
                trouble = ""
            except ReplacedError:
                log.warning("another hub runs in %s: this one ends when its connections have", place.folder)
                place.leave()
                await _hand_over(hub, place, stopping)
                break
            except Exception as error:  # the tunnels are worth more than what is amiss here; it is tried again
                if str(error) != trouble:
                    trouble = str(error)
                    log.exception("the hub cannot look after its folder and its tunnels now: %s", trouble)
    finally:
        stopping.cancel()


async def _look_after(hub: Hub, place: RuntimeFolder, moved: Callable[[Path], None]) -> None:
    """Make again what is gone of the folder, and disconnect what is not needed any more, also where it stays gone."""
    trouble: Exception | None = None
    try:
        if place.restore():
            moved(place.folder)
            hub.move(place.folder)
    except (OSError, HubError) as error:
        trouble = error
    await hub.tidy()
    if trouble is not None:
        raise trouble


async def _hand_over(hub: Hub, place: RuntimeFolder, stopping: asyncio.Future[Any]) -> None:
    """Let the hub that has this one's place go on with its tunnels, as soon as each carries no connections."""
    untold: list[Any] = []
    failures = 0
    while True:
        untold += [json.loads(line) for line in await hub.hand_over()]
        if untold:
            why = await _tell(place.folder, {"protocol": PROTOCOL, "op": "inherit", "tunnels": untold})
            if not why:
                untold, failures = [], 0
            elif failures < HAND_OVER_TRIES:
                # It may have its place, and not listen yet.
                failures += 1
                if failures in (1, HAND_OVER_TRIES):
                    log.warning("the hub in %s cannot be told of %d tunnels: %s", place.folder, len(untold), why)
        if stopping.done() or not (hub.busy or 0 < failures < HAND_OVER_TRIES):
            return
        await asyncio.wait({stopping}, timeout=CHECK_SECONDS)


async def _tell(folder: Path, request: dict[str, Any]) -> str:
    """Ask another hub for something, and return why it has not done it; empty if it has."""
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_unix_connection(str(folder / SOCKET_NAME))
        writer.write(json.dumps(request).encode() + b"\n")
        reply = json.loads(await asyncio.wait_for(reader.readline(), REQUEST_SECONDS))
        return str(reply.get("error", ""))
    except (OSError, asyncio.TimeoutError, ValueError) as error:
        return reason(error) if not isinstance(error, ValueError) else "it gave no answer"
    finally:
        if writer is not None:
            writer.close()


async def _answer(connection: socket.socket, hub: Hub, stopped: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    stream: socket.socket | None = None
    keep_open = False
    try:
        line = await asyncio.wait_for(_read_line(connection), REQUEST_SECONDS)
        if not line:
            return
        reply, stream = await _reply(line, hub)
        keep_open = "stopping" in reply
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
        if keep_open:
            stopped.append(connection)
        else:
            connection.close()


async def _reply(line: bytes, hub: Hub) -> tuple[dict[str, Any], socket.socket | None]:
    """The answer to a request, whatever goes wrong: to its caller, a hub that does not answer has ended."""
    try:
        request = _checked(json.loads(line))
        return await hub.answer(request)
    except HubError as error:
        return {"error": str(error), "code": error.code}, None
    except OSError as error:
        log.warning("a request failed: %s", error, exc_info=True)
        return {"error": f"the hub failed: {in_words(error)}", "code": "hub-failed"}, None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a request is not understood", exc_info=True)
        words = f"the hub does not understand the request ({type(error).__name__})"
        return {"error": words, "code": "bad-input"}, None
    except Exception as error:
        log.exception("a request failed")
        words = f"the hub failed ({type(error).__name__}): see hub.log"
        return {"error": words, "code": "hub-failed"}, None


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
    """A request; none from who only looks whether anybody listens."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, READ_BYTES)
        if not data and not line:
            break
        if not data or len(line) > LONGEST_REQUEST:
            raise OSError("a request without an end")
        line += data
    return line
