# SPDX-License-Identifier: Apache-2.0
"""What the two proxies share: one end of a tunnel, with its link, its services, and its connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from ..errors import ConfigurationError
from ..net.route import Route
from ..protocol.session import Connection, Version
from .addresses import Address
from .link import Link, TunnelCredentials
from .local_socket import LocalSocket
from .multiplexer import Multiplexer, MultiplexerOwner
from .reconnect import PATIENT, RetryPolicy, keep_linked

__all__ = ["MAX_CONNECTIONS", "Plan", "ServiceState", "Side", "TunnelEnd"]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""Connections that a service carries at once; the reference's default."""

Plan = Callable[[tuple[str, ...]], "dict[str, Address | None]"]
"""Gives each service that the tunnel carries its address, or raises ConfigurationError. A source listens there, and
None means that it listens nowhere; a destination connects there."""


@dataclass
class ServiceState:
    """What one service of a tunnel has carried.

    Attributes:
        address: where a source listens, or what a destination connects to.
        connections: how many there are now.
        opened: how many there have been.
        bytes_in: read from the local sockets, of connections that are over.
        bytes_out: written to the local sockets, likewise.
    """

    address: Address | None
    connections: int = 0
    opened: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Side(Protocol):
    """What a source does differently from a destination."""

    async def start(self) -> None:
        """Begin to serve: the services have their addresses now."""

    def linked(self) -> None:
        """The link is up, for the first time or again."""

    def connection_requested(self, multiplexer: Multiplexer, connection: Connection) -> None:
        """The far end opened a connection."""

    def stop(self) -> None:
        """The tunnel has ended."""

    def new_multiplexer(self, owner: MultiplexerOwner) -> Multiplexer:
        """Make what the next link is joined to the local sockets by."""

    def peer_version_found(self, version: Version) -> None:
        """The far end showed which version it speaks."""

    def peer_silent(self, service_id: str) -> None:
        """Nothing has come for the connection of a service, nor that the far end speaks V3."""

    def connection_ended(self, local: LocalSocket) -> None:
        """A connection is over, whoever ended it."""


class TunnelEnd:
    """One end of a tunnel: holds a link, learns the services, and counts.

    Args:
        side: whether it is a source or a destination.
        plan: gives the services their addresses.
        max_connections: how many connections each service may have at once.
        retry_policy: how long to go on trying to connect.
    """

    def __init__(
        self,
        route: Route,
        access: TunnelCredentials,
        plan: Plan,
        side: Side,
        *,
        max_connections: int = MAX_CONNECTIONS,
        retry_policy: RetryPolicy = PATIENT,
    ) -> None:
        self.endpoint = route.endpoint
        self.services: dict[str, ServiceState] = {}
        self.link: Link | None = None
        self.cause: Exception | None = None
        """Why there is no link, where that is known."""
        self.ready = asyncio.Event()
        """Set while the link is up and the services have their addresses."""
        self.settled = asyncio.Event()
        """Set when :attr:`ready` is, or when the latest attempt to connect has failed; clear while one is to come."""
        self.multiplexer: Multiplexer | None = None
        self._access = access
        self._route = route
        self._retry_policy = retry_policy
        self._plan = plan
        self.max_connections = max_connections
        self._started = False
        self._offered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._side = side

    async def run(self) -> None:
        """Serve until the tunnel ends.

        Raises:
            TunnelRefused, TunnelClosed, LinkLost: as :func:`~.transport.reconnect.keep_linked`.
            ConfigurationError: the tunnel's services do not fit what was configured.
        """
        keeping: asyncio.Future[Any] = asyncio.create_task(
            keep_linked(self._route, self._access, self._new_multiplexer, self._report, self._retry_policy)
        )
        try:
            waited: set[asyncio.Future[Any]] = {keeping, self._offered}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._offered.done():
                self._offered.result()
                await self._side.start()
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
            self._side.stop()

    def open_connections(self) -> dict[Connection, LocalSocket]:
        """The connections that are alive, with their local sockets."""
        return self.multiplexer.connections if self.multiplexer is not None else {}

    # What the link and the multiplexer report.

    def _new_multiplexer(self) -> Multiplexer:
        self.multiplexer = self._side.new_multiplexer(self)
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
            self._side.linked()

    def services_offered(self, service_ids: tuple[str, ...]) -> None:
        if self._offered.done():
            return
        # At once: the next message may ask for a connection already.
        try:
            planned = self._plan(service_ids)
        except ConfigurationError as error:
            self._offered.set_exception(error)
        else:
            self.services.update({name: ServiceState(address) for name, address in planned.items()})
            self._offered.set_result(None)

    def connection_requested(self, connection: Connection) -> None:
        if self.multiplexer is not None:
            self._side.connection_requested(self.multiplexer, connection)

    def peer_version_found(self, version: Version) -> None:
        self._side.peer_version_found(version)

    def peer_silent(self, service_id: str) -> None:
        self._side.peer_silent(service_id)

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        state = self.services[connection.service_id]
        state.connections -= 1
        state.bytes_in += local.bytes_in
        state.bytes_out += local.bytes_out
        log.info("%s: closed after %d bytes in, %d bytes out", connection, local.bytes_in, local.bytes_out)
        self._side.connection_ended(local)

    def admit(self, service_id: str) -> bool:
        """Count a new connection of a service, unless there are too many."""
        state = self.services[service_id]
        if state.connections >= self.max_connections:
            log.warning(
                "%s: turned a connection away: there are %d already",
                service_id,
                state.connections,
                extra={"service": service_id},
            )
            return False
        state.connections += 1
        state.opened += 1
        return True
