# SPDX-License-Identifier: Apache-2.0
"""What the two proxies share: one end of a tunnel, with its link, its services and its connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Callable

from ..errors import ConfigurationError
from ..net.route import Route
from ..protocol.session import Connection
from .addresses import Address
from .link import Link, Reconnect, TunnelCredentials
from .local_socket import LocalSocket
from .multiplexer import Multiplexer
from .reconnect import RETRY_FOREVER, RetryPolicy, keep_linked

__all__ = ["MAX_CONNECTIONS", "Plan", "ServiceState", "TunnelEnd"]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""Connections that a service carries at once; the reference's default."""

Plan = Callable[[tuple[str, ...]], "dict[str, Address | None]"]
"""Gives each service of the tunnel its address, or raises ConfigurationError. A source listens there, and None means
that it listens nowhere; a destination connects there."""


@dataclass
class ServiceState:
    """The address of one service of a tunnel, and what it has carried.

    Attributes:
        address: where a source listens, or what a destination connects to.
        connections: how many there are now.
        opened: how many there have been.
        bytes_in: read from the local sockets of connections that have ended.
        bytes_out: written to the local sockets of connections that have ended.
    """

    address: Address | None
    connections: int = 0
    opened: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class TunnelEnd:
    """One end of a tunnel: keeps a link up, learns the services, and counts their connections.

    Args:
        plan: gives the services their addresses.
        new_multiplexer: makes the multiplexer for the next link. It reports to :meth:`services_offered` and
            :meth:`connection_ended`.
        on_ready: is called when the link is up and the services have their addresses, for the first time or again.
        max_connections: how many connections each service may have at once.
        retry_policy: how long to keep trying to connect.
    """

    def __init__(
        self,
        route: Route,
        credentials: TunnelCredentials,
        plan: Plan,
        new_multiplexer: Callable[[], Multiplexer],
        *,
        on_ready: Callable[[], None] = lambda: None,
        max_connections: int = MAX_CONNECTIONS,
        retry_policy: RetryPolicy = RETRY_FOREVER,
    ) -> None:
        self.endpoint = route.endpoint
        self.services: dict[str, ServiceState] = {}
        self.link: Link | None = None
        self.cause: Exception | None = None
        """Why there is no link, if that is known."""
        self.ready = asyncio.Event()
        """Set while the link is up and the services have their addresses."""
        self.settled = asyncio.Event()
        """Set with :attr:`ready`, or when the latest attempt to connect has failed; clear while the next is due."""
        self.multiplexer: Multiplexer | None = None
        self.max_connections = max_connections
        self._credentials = credentials
        self._route = route
        self._retry_policy = retry_policy
        self._plan = plan
        self._make_multiplexer = new_multiplexer
        self._on_ready = on_ready
        self._started = False
        self._offered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, start: Callable[[], Awaitable[None]]) -> None:
        """Serve until the tunnel ends.

        Args:
            start: is awaited once the services have their addresses, before :attr:`ready` is set.

        Raises:
            TunnelRefused, TunnelClosed, LinkLost: as :func:`~.reconnect.keep_linked`.
            ConfigurationError: the tunnel's services do not match the configuration.
        """
        keeping: asyncio.Future[Any] = asyncio.create_task(
            keep_linked(self._route, self._credentials, self._new_multiplexer, self._report, self._retry_policy)
        )
        try:
            waited: set[asyncio.Future[Any]] = {keeping, self._offered}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._offered.done():
                self._offered.result()
                await start()
                self._started = True
                self._set_ready()
            await keeping
        except Exception as error:
            self.cause = error
            raise
        finally:
            self.ready.clear()
            self.settled.set()
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await keeping

    def open_connections(self) -> dict[Connection, LocalSocket]:
        """The open connections, with their local sockets."""
        return self.multiplexer.connections if self.multiplexer is not None else {}

    def admit(self, service_id: str) -> bool:
        """Count a new connection of a service, unless there are too many."""
        state = self.services[service_id]
        if state.connections >= self.max_connections:
            log.warning(
                "%s: rejected a connection: there are %d already",
                service_id,
                state.connections,
                extra={"service": service_id},
            )
            return False
        state.connections += 1
        state.opened += 1
        return True

    def reconnect(self, why: str) -> list[tuple[str, LocalSocket]]:
        """Replace the link at once. Its connections are closed, except those that have carried nothing.

        Returns:
            the service ID and the local socket of each of those, for the next link.
        """
        if self.multiplexer is None or self.link is None:
            return []
        carried = self.multiplexer.carry_over()
        self.ready.clear()
        self.settled.clear()
        self.link.fail(Reconnect(why), 1000)
        return carried

    # What the link and the multiplexer report.

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        """Give the services that the tunnel carries their addresses. Later calls have no effect."""
        if self._offered.done():
            return
        # At once: the next message may request a connection already.
        try:
            planned = self._plan(service_ids)
        except ConfigurationError as error:
            self._offered.set_exception(error)
        else:
            self.services.update({name: ServiceState(address) for name, address in planned.items()})
            self._offered.set_result(None)

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        """Count the end of a connection, and its bytes."""
        state = self.services[connection.service_id]
        state.connections -= 1
        state.bytes_in += local.bytes_in
        state.bytes_out += local.bytes_out
        log.info("%s: closed after %d bytes in, %d bytes out", connection, local.bytes_in, local.bytes_out)

    def _new_multiplexer(self) -> Multiplexer:
        self.multiplexer = self._make_multiplexer()
        return self.multiplexer

    def _report(self, news: Link | Exception) -> None:
        if isinstance(news, Link):
            self.link, self.cause = news, None
            if self._started:
                self._set_ready()
        else:
            just_lost = self.link is not None
            self.link, self.cause = None, news
            self.ready.clear()
            if just_lost:
                self.settled.clear()
            else:
                self.settled.set()

    def _set_ready(self) -> None:
        if self.link is not None:
            self.ready.set()
            self.settled.set()
            self._on_ready()
