# SPDX-License-Identifier: Apache-2.0
"""The hub's process: its Unix socket, its requests, and how it begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from ..errors import ConfigurationError
from . import state_file
from .client import SOCKET_NAME, HubError, directory
from .held_tunnel import HeldTunnel, TunnelRecord

__all__ = ["AlreadyRunningError", "Hub", "serve"]

log = logging.getLogger(__name__)

IDLE_CHECK_SECONDS = 5.0
LONGEST_REQUEST = 64 * 1024
REQUEST_SECONDS = 10.0


class AlreadyRunningError(Exception):
    """Another hub serves this folder."""


class Hub:
    """Every tunnel of one user on one controller, by the thing at its far end."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._tunnels: dict[str, HeldTunnel] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.stopping = asyncio.Event()
        self._last_used = asyncio.get_running_loop().time()

    def restore(self) -> None:
        """Take over the tunnels that the hub before this one left."""
        for record in state_file.load(self._state):
            with contextlib.suppress(ConfigurationError):
                self._tunnels[record.thing] = HeldTunnel(record)
                log.info("took over the tunnel of %s (%s)", record.thing, record.tunnel_id)

    def idle_for(self, seconds: float) -> bool:
        """Whether, for so long, nobody asked for anything and no tunnel worked or could work again by itself."""
        now = asyncio.get_running_loop().time()
        if any(tunnel.alive for tunnel in self._tunnels.values()):
            self._last_used = now
        return now - self._last_used >= seconds

    async def stop(self) -> None:
        """Disconnect every tunnel; what is needed to go on stays in the file."""
        self._save()
        await asyncio.gather(*(tunnel.stop() for tunnel in self._tunnels.values()))

    async def answer(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        """Carry out one request: the reply, and for ``open`` the stream to pass along.

        Raises:
            HubError: it cannot be done; the text is for the operator.
        """
        operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "ensure": self._ensure,
            "adopt": self._adopt,
            "describe": self._describe,
            "explain": self._explain,
            "release": self._release,
            "holds": self._holds,
            "status": self._status,
            "open": self._open,
            "stop": self._stop_request,
        }
        operation = operations.get(str(request.get("op")))
        if operation is None:
            raise HubError(f"this hub does not know the request '{request.get('op')}': stop it (tunnelproxy hub stop)")
        self._last_used = asyncio.get_running_loop().time()
        result = await operation(request)
        return result if isinstance(result, tuple) else (result, None)

    async def _ensure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnel = self._find(request)
        await tunnel.wait_linked(request["timeout"])
        tunnel.check_offers(request["service"])
        return tunnel.row()

    async def _adopt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        record = TunnelRecord.from_json({k: v for k, v in request.items() if k not in ("op", "timeout")})
        async with self._locks.setdefault(record.thing, asyncio.Lock()):
            held = self._tunnels.get(record.thing)
            if held is None or not held.alive or held.record.source_token != record.source_token:
                if held is not None:
                    await held.stop()
                try:
                    self._tunnels[record.thing] = HeldTunnel(record)
                except ConfigurationError as error:
                    raise HubError(str(error), code="bad-input") from None
                log.info("holds the tunnel of %s (%s) now", record.thing, record.tunnel_id)
                self._save()
            tunnel = self._tunnels[record.thing]
        await tunnel.wait_linked(request["timeout"])
        self._save()
        return tunnel.row()

    async def _describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnel = self._find(request)
        states = await tunnel.ask_ends()
        row = tunnel.row()
        source = "connected" if row["state"] == "connected" else "disconnected"
        return {**row, "source": source, "destination": states.destination}

    async def _explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        why = await self._find(request).explain(request["service"], refused=request["refused"])
        return {"sentence": str(why), "code": why.code}

    async def _release(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for thing, tunnel in list(self._tunnels.items()):
            if tunnel.record.tunnel_id == request["tunnel_id"]:
                del self._tunnels[thing]
                await tunnel.stop()
                self._save()
                log.info("dropped the tunnel of %s (%s)", thing, request["tunnel_id"])
                return {"released": True}
        return {"released": False}

    async def _holds(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = request["tunnel_id"]
        return {"holds": any(t.alive and t.record.tunnel_id == wanted for t in self._tunnels.values())}

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "tunnels": [self._tunnels[thing].row() for thing in sorted(self._tunnels)]}

    async def _open(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket]:
        tunnel = self._find(request)
        await tunnel.wait_linked(request["timeout"])
        tunnel.check_offers(request["service"])
        return {"opened": True}, await tunnel.open_stream(request["service"], request["timeout"])

    async def _stop_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.stopping.set()
        return {"stopping": True}

    def _find(self, request: Mapping[str, Any]) -> HeldTunnel:
        thing = request["thing"]
        tunnel = self._tunnels.get(thing)
        if tunnel is None:
            raise HubError(
                f"there is no tunnel to {thing}: open one with the module iotops.tunnel.tunnel, or the playbook "
                "iotops.tunnel.open",
                code="no-tunnel",
            )
        tunnel.use_aws(request.get("aws") or {})
        return tunnel

    def _save(self) -> None:
        records = []
        for tunnel in self._tunnels.values():
            known = tunnel.record.to_json()
            records.append(TunnelRecord.from_json({**known, "ports": tunnel.ports or known["ports"]}))
        state_file.save(self._state, records)


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
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunningError from None
    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    hub = Hub(folder / "tunnels.json")
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


async def _until_done(hub: Hub, idle_seconds: float) -> None:
    stopping = asyncio.ensure_future(hub.stopping.wait())
    try:
        while not stopping.done() and not hub.idle_for(idle_seconds):
            await asyncio.wait({stopping}, timeout=min(idle_seconds, IDLE_CHECK_SECONDS))
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
            reply, stream = await hub.answer(json.loads(line))
            keep_open = "stopping" in reply
        except HubError as error:
            reply = {"error": str(error), "code": error.code}
        except (ValueError, KeyError, TypeError) as error:
            reply = {"error": f"the hub does not understand the request ({type(error).__name__})", "code": "bad-input"}
        data = json.dumps(reply).encode() + b"\n"
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


async def _read_line(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, LONGEST_REQUEST)
        if not data or len(line) > LONGEST_REQUEST:
            raise OSError("a request without an end")
        line += data
    return line
