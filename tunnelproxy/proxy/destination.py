# SPDX-License-Identifier: Apache-2.0
"""The destination proxy: the device's end of a tunnel."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from typing import Callable

from ..net import connections
from ..net.background_tasks import spawn
from ..net.happy_eyeballs import AddressRefused, open_socket
from ..net.reasons import reason
from ..net.route import Route
from ..protocol.session import Connection, Mode
from .addresses import Address, TcpAddress, UnixAddress
from .flow_control import STALL_SECONDS
from .link import TunnelCredentials
from .local_socket import LocalSocket
from .multiplexer import Callbacks, Multiplexer
from .reconnect import RETRY_FOREVER, RetryPolicy
from .tunnel_end import MAX_CONNECTIONS, Plan, TunnelEnd

__all__ = ["DestinationProxy"]

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 5
"""How often to try to connect to a service's address; the reference's default."""

CONNECT_PAUSE_SECONDS = 2.5
"""How long to wait after an attempt that failed at once; the reference's default."""

CONNECT_SECONDS = 3.0
"""How long one attempt may take, over all addresses of a name. The kernel would try an address that drops packets for
two minutes. Within this limit it tries twice, a second apart, and five attempts are over before the hub gives up."""


class DestinationProxy:
    """The device's end: connects to a local service for each connection that the source opens.

    Args:
        plan: gives each service the address to connect to.
        bind_address: the local address to connect from; None leaves that to the system.
        max_connections: how many connections each service may have at once.
        connect_attempts: how often to try to connect to a service's address; None for ever.
        connect_pause: seconds between two attempts if the first failed at once. After a timeout there is no pause.
        retry_policy: how long to keep trying to connect to the tunneling service.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
        permits: whether a service's host may be connected to at the IP address that it has now; None permits all.
    """

    def __init__(
        self,
        route: Route,
        credentials: TunnelCredentials,
        plan: Plan,
        *,
        bind_address: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        connect_attempts: int | None = CONNECT_ATTEMPTS,
        connect_pause: float = CONNECT_PAUSE_SECONDS,
        retry_policy: RetryPolicy = RETRY_FOREVER,
        stall_seconds: float = STALL_SECONDS,
        permits: Callable[[TcpAddress, str], bool] | None = None,
    ) -> None:
        self.end = TunnelEnd(
            route,
            credentials,
            plan,
            self._new_multiplexer,
            max_connections=max_connections,
            retry_policy=retry_policy,
        )
        self._bind_address = bind_address
        self._permits = permits
        self._connect_attempts = connect_attempts
        self._connect_pause = connect_pause
        self._stall_seconds = stall_seconds
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the tunnel ends; raises what :meth:`.TunnelEnd.run` raises."""
        try:
            await self.end.run(self._start)
        finally:
            for task in self._connecting:
                task.cancel()

    async def _start(self) -> None:
        for service_id, state in self.end.services.items():
            log.info("%s: will connect to %s", service_id, state.address, extra={"service": service_id})

    def _new_multiplexer(self) -> Multiplexer:
        callbacks = Callbacks(
            services_offered=self.end.services_offered,
            connection_ended=self.end.connection_ended,
            connection_requested=self._connection_requested,
        )
        return Multiplexer(Mode.DESTINATION, callbacks, stall_seconds=self._stall_seconds)

    def _connection_requested(self, connection: Connection) -> None:
        multiplexer = self.end.multiplexer
        if multiplexer is None:
            return
        state = self.end.services.get(connection.service_id)
        if state is None or state.address is None:
            log.warning("%s: rejected, because there is no address for this service", connection)
            multiplexer.refuse(connection)
        elif not self.end.admit(connection.service_id):
            multiplexer.refuse(connection)
        else:
            local = LocalSocket(multiplexer)
            multiplexer.join(connection, local)
            task = spawn(
                f"connecting {connection}",
                self._connect(multiplexer, connection, local, state.address),
                on_failure=lambda _: multiplexer.reset(connection),
            )
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(
        self, multiplexer: Multiplexer, connection: Connection, local: LocalSocket, address: Address
    ) -> None:
        for attempt in itertools.count(1):
            try:
                await self._connect_once(local, address)
            except OSError as error:
                log.warning(
                    "%s: cannot connect to %s (attempt %d of %s): %s",
                    connection,
                    address,
                    attempt,
                    self._connect_attempts or "unlimited",
                    reason(error),
                )
                last = attempt == self._connect_attempts or isinstance(error, AddressRefused)
                if not last and not isinstance(error, TimeoutError):
                    await asyncio.sleep(self._connect_pause)
                if not local.wanted:
                    return
                if last:
                    break
            else:
                log.info("%s: connected to %s", connection, address)
                return
        multiplexer.reset(connection)

    async def _connect_once(self, local: LocalSocket, address: Address) -> None:
        try:
            await asyncio.wait_for(self._join(local, address), CONNECT_SECONDS)
        except asyncio.TimeoutError:
            # Up to Python 3.10 this is no OSError.
            raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s") from None

    async def _join(self, local: LocalSocket, address: Address) -> None:
        if isinstance(address, UnixAddress):
            await connections.connect_unix(lambda: local, address.path)
            return
        permits = None if self._permits is None else functools.partial(self._permits, address)
        sock = await open_socket(
            address.host or "localhost", address.port, bind_address=self._bind_address, permits=permits
        )
        try:
            await connections.connect(lambda: local, sock=sock)
        except BaseException:
            sock.close()
            raise
