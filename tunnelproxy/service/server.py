# SPDX-License-Identifier: Apache-2.0
"""One process of the tunneling service: puts the parts together, runs them, and takes them apart."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from .certificates import Certificates, server_context
from .control_api import ControlApi
from .data_plane import TUNNEL_CLOSED, TUNNEL_EXPIRED, DataPlane
from .errors import ServiceError
from .notifying import NO_BROKER, BrokerSettings, notifying
from .operations import Operations
from .state_dir import Endpoints, StateDirectory
from .store import Store
from .tunnels import Tunnel

__all__ = ["Settings", "serve"]

_BACKLOG = 128
_CLOSED_TUNNELS_KEPT = 24 * 3600.0
_LONGEST_WAIT = 3600.0
_API_STOP_DEADLINE = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to run the service. A port of 0 means the one of the last run where it is free, else any."""

    state_dir: Path
    host: str
    api_port: int
    data_port: int
    broker: BrokerSettings = NO_BROKER


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run the service until cancelled.

    Args:
        settings: where, and with what state.
        announce: is given the one line that tells that the service is ready.

    Raises:
        ServiceError: it cannot start.
    """
    state = StateDirectory(settings.state_dir)
    state.create()
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.locked())
        store = Store(state.database)
        stack.callback(store.close)
        certificates = Certificates(state.keys, state.ca)
        certificates.ensure(settings.host)
        remembered = state.read_endpoints()
        api = _listen(settings.host, settings.api_port, remembered.api_port if remembered else 0, "--api-port")
        stack.callback(api.close)
        data = _listen(settings.host, settings.data_port, remembered.data_port if remembered else 0, "--data-port")
        stack.callback(data.close)
        endpoints = Endpoints(settings.host, api.getsockname()[1], data.getsockname()[1])
        async with contextlib.AsyncExitStack() as running:
            deliver, words = await running.enter_async_context(
                notifying(settings.broker, settings.host, state, certificates, store.identity())
            )
            await running.enter_async_context(_running(store, certificates, api, data, deliver))
            state.write_endpoints(endpoints)
            announce(f"ready api={endpoints.api} data={endpoints.data} ca={state.ca}{words}")
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _running(
    store: Store,
    certificates: Certificates,
    api: socket.socket,
    data: socket.socket,
    deliver: Callable[[Tunnel, str], None],
) -> AsyncIterator[None]:
    """Both servers and the clock that ends tunnels, for as long as the block runs."""
    context = server_context(certificates)
    store.disconnect_all(time.time())
    data_plane = DataPlane(store, clock=time.time)
    opened = asyncio.Event()
    operations = Operations(
        store,
        data_plane,
        clock=time.time,
        tunnel_opened=opened.set,
        deliver=deliver,
        closed_reason=TUNNEL_CLOSED,
    )
    control = ControlApi(operations, find_secret=store.find_secret, region=store.identity().region, clock=time.time)
    runner = web.AppRunner(control.application(), access_log=None, shutdown_timeout=_API_STOP_DEADLINE)
    await runner.setup()
    expiry = asyncio.get_running_loop().create_task(_close_expired(store, data_plane, opened))
    try:
        await data_plane.start(data, context)
        await web.SockSite(runner, api, ssl_context=context, backlog=_BACKLOG).start()
        yield
    finally:
        _log.info("stopping")
        expiry.cancel()
        await data_plane.stop()
        await runner.cleanup()


async def _close_expired(store: Store, data_plane: DataPlane, opened: asyncio.Event) -> None:
    """Close each tunnel when its time is up, and forget the closed ones after a day."""
    while True:
        opened.clear()
        now = time.time()
        for tunnel_id in store.close_expired(now):
            data_plane.close_tunnel(tunnel_id, TUNNEL_EXPIRED)
            _log.info("tunnel %s expired", tunnel_id, extra={"tunnel": tunnel_id})
        store.delete_closed_before(now - _CLOSED_TUNNELS_KEPT)
        # Not longer than an hour: the wall clock may be set meanwhile.
        wait = min(_LONGEST_WAIT, (store.next_expiry() or now + _LONGEST_WAIT) - now)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(opened.wait(), max(wait, 0.05))


def _listen(host: str, port: int, remembered: int, option: str) -> socket.socket:
    """Bind a port: the one that was asked for, else the one of the last run, else any."""
    if port == 0 and remembered:
        # Proxies and clients look for the service where it was.
        with contextlib.suppress(ServiceError):
            return _bind(host, remembered, option)
        _log.warning("port %d of the last run is taken now; picking another for %s", remembered, option)
    return _bind(host, port, option)


def _bind(host: str, port: int, option: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ServiceError(f"cannot find the address of --host {host}: {error.strerror}") from error
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"port {port} of {host} is in use; give {option} another one, or 0 for any") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServiceError(f"this machine has no address {host}; give --host one that it has") from error
        raise ServiceError(
            f"cannot listen on port {port} of {host} ({option}): {os.strerror(error.errno or 0)}"
        ) from error
