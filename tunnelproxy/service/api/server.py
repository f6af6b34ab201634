# SPDX-License-Identifier: Apache-2.0
"""The control API's HTTP server: aiohttp behind the service's own listener."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web

from ..events import EventHandler
from ..limits import Limits
from ..listening.listener import Listener
from ..logs.unexpected_errors import UnexpectedErrors
from .http import BODY_DEADLINE
from .request_handler import RequestHandler

__all__ = ["ApiServer"]

_STOP_DEADLINE = 3.0
_KEEPALIVE_SECONDS = 75.0


class ApiServer:
    """Serves an aiohttp application.

    Args:
        context: the TLS context.
        limits: limits the connections.
        notify: called with each connection that is cut off.
        failures: logs unexpected errors.
    """

    def __init__(
        self, context: ssl.SSLContext, limits: Limits, notify: EventHandler, failures: UnexpectedErrors
    ) -> None:
        self._notify = notify
        self._failures = failures
        # A connection counts as half-open until its client has sent a signed request.
        deadline = limits.handshake_seconds + BODY_DEADLINE
        self._listener = Listener(self._make_protocol, context, limits, notify, deadline=deadline)
        self._runner: web.AppRunner | None = None

    async def start(self, application: web.Application, sock: socket.socket) -> None:
        """Answer requests on a listening socket."""
        self._runner = web.AppRunner(application, shutdown_timeout=_STOP_DEADLINE)
        await self._runner.setup()
        self._listener.open(sock)

    def stop_accepting(self) -> None:
        """Stop accepting connections."""
        self._listener.stop_accepting()

    async def stop(self) -> None:
        """Close all connections once their answers are sent."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._listener.close()

    def settle(self, protocol: object) -> None:
        """Count a connection as complete, because its client has an access key."""
        self._listener.settle(protocol)

    def _make_protocol(self) -> asyncio.BaseProtocol:
        assert self._runner is not None  # noqa: S101  start() opens the listener after that
        assert self._runner.server is not None  # noqa: S101  and after its setup
        return RequestHandler(
            self._runner.server, notify=self._notify, failures=self._failures, keepalive_timeout=_KEEPALIVE_SECONDS
        )
