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
from ..protocol.session import Connection, Mode, Version
from .addresses import Address, TcpAddress, UnixAddress
from .flow_control import STALL_SECONDS
from .link import TunnelCredentials
from .local_socket import LocalSocket
from .multiplexer import Multiplexer, MultiplexerOwner
from .reconnect import PATIENT, RetryPolicy
from .tunnel_end import MAX_CONNECTIONS, Plan, TunnelEnd

__all__ = ["DestinationProxy"]

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 5
CONNECT_PAUSE_SECONDS = 2.5
CONNECT_SECONDS = 3.0
"""How long one attempt may take, over all addresses of a name. The kernel would ask one that drops packets for two
minutes; like this it asks twice, a second apart, and five attempts are over before the hub gives up."""


class DestinationProxy:
    """The device's end: connects to local services for each connection that the source opens.

    Args:
        plan: says what to connect to for each service.
        bind_address: the local address to connect from; None leaves that to the system.
        connect_attempts: how often to try to connect to a service's address; None for ever.
        connect_pause: seconds between two attempts, where the first failed at once; none after one without an answer.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
        permits: whether a service's host may be connected to at one of the addresses that it has now; None permits all.
    """

    def __init__(
        self,
        route: Route,
        access: TunnelCredentials,
        plan: Plan,
        *,
        bind_address: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
        connect_attempts: int | None = CONNECT_ATTEMPTS,
        connect_pause: float = CONNECT_PAUSE_SECONDS,
        retry_policy: RetryPolicy = PATIENT,
        stall_seconds: float = STALL_SECONDS,
        permits: Callable[[TcpAddress, str], bool] | None = None,
    ) -> None:
        self.end = TunnelEnd(route, access, plan, self, max_connections=max_connections, retry_policy=retry_policy)
        self._bind_address = bind_address
        self._permits = permits
        self._connect_attempts = connect_attempts
        self._connect_pause = connect_pause
        self._stall_seconds = stall_seconds
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the tunnel ends; raises what :meth:`~.proxy.TunnelEnd.run` raises."""
        await self.end.run()

    async def start(self) -> None:
        for service_id, state in self.end.services.items():
            log.info("%s: will connect to %s", service_id, state.address, extra={"service": service_id})

    def stop(self) -> None:
        for task in self._connecting:
            task.cancel()

    def linked(self) -> None:
        """Nothing to do: the source opens the connections."""

    def new_multiplexer(self, owner: MultiplexerOwner) -> Multiplexer:
        return Multiplexer(Mode.DESTINATION, owner, stall_seconds=self._stall_seconds)

    def peer_version_found(self, version: Version) -> None:
        """A destination follows its source, stream by stream."""

    def peer_silent(self, service_id: str) -> None:
        """A source need not send anything."""

    def connection_ended(self, local: LocalSocket) -> None:
        """Nothing waits for that."""

    def connection_requested(self, multiplexer: Multiplexer, connection: Connection) -> None:
        state = self.end.services.get(connection.service_id)
        if state is None or state.address is None:
            log.warning("%s: refused, because there is no address for it", connection)
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
                    self._connect_attempts or "as many as it takes",
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
