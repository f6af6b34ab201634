# SPDX-License-Identifier: Apache-2.0
"""The data plane: the connections of all clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable

from websockets.frames import CloseCode

from ...protocol.session import Mode
from ..events import EventHandler
from ..limits import DEFAULT_LIMITS, Limits
from ..listening.listener import Listener
from ..logs.unexpected_errors import UnexpectedErrors
from ..state.store import Store
from .admission import Admissions
from .client_connection import ClientConnection
from .connected_clients import ConnectedClients
from .relays import REPLACED, Relays

__all__ = [
    "ACCESS_TOKEN_REVOKED",
    "REPLACED",
    "SERVICE_STOPPING",
    "TUNNEL_CLOSED",
    "TUNNEL_EXPIRED",
    "DataPlane",
]

TUNNEL_CLOSED = "Tunnel closed"
"""Close reason, with code 1000: the tunnel was closed. A client exits."""

TUNNEL_EXPIRED = "Tunnel expired"
"""Close reason, with code 1000: the tunnel's lifetime is over. A client exits."""

ACCESS_TOKEN_REVOKED = "Access token revoked"  # noqa: S105  a close reason, not a token
"""Close reason, with code 1008: the access token was rotated. A client needs the new one."""

SERVICE_STOPPING = "Service is stopping"
"""Close reason, with code 1001: a client reconnects later."""

_STOP_SECONDS = 2.0
_LOOK_SECONDS = 10.0


class DataPlane:
    """Accepts clients, joins those of one tunnel, and disconnects them when the control API requests it.

    Args:
        store: the state.
        clock: returns seconds since the epoch.
        limits: limits the number of connections, and their bandwidth.
        notify: called with an event for each client that connects, disconnects, or is rejected.
        failures: logs unexpected errors.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        limits: Limits = DEFAULT_LIMITS,
        notify: EventHandler = lambda event: None,
        failures: UnexpectedErrors | None = None,
    ) -> None:
        self.connected_clients = ConnectedClients(notify, time.monotonic)
        self._limits = limits
        self._notify = notify
        self._failures = failures or UnexpectedErrors()
        self._admissions = Admissions(store, clock)
        self._relays = Relays(store, limits.bandwidth, clock)
        self._connections: set[ClientConnection] = set()
        self._connection_lost = asyncio.Event()
        self._listener: Listener | None = None
        self._look_timer: asyncio.TimerHandle | None = None

    async def start(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        """Accept clients on a listening socket."""
        self._listener = Listener(self.new_connection, context, self._limits, self._notify)
        self._listener.open(listening)
        self._look_for_lost()

    async def stop(self) -> None:
        """Accept no more clients, and disconnect those that are connected."""
        if self._listener is not None:
            self._listener.close()
        if self._look_timer is not None:
            self._look_timer.cancel()
        for connection in list(self._connections):
            connection.disconnect(CloseCode.GOING_AWAY, SERVICE_STOPPING)
        if not await self._all_lost():
            for connection in list(self._connections):
                connection.abort()
            await self._all_lost()

    def new_connection(self) -> ClientConnection:
        """Make the protocol for a connection."""
        return ClientConnection(
            admissions=self._admissions,
            relays=self._relays,
            connected_clients=self.connected_clients,
            failures=self._failures,
            opened=self._connections.add,
            joined=self._joined,
            lost=self._lost,
        )

    # What the control API requests.

    def close_tunnel(self, tunnel_id: str, reason: str) -> None:
        """Disconnect both ends of a tunnel.

        The close frame alone says that all streams have ended. An idle reference of AWS takes a SESSION_RESET before it
        for the end of a session, waits for the next session, and does not exit.
        """
        for mode in Mode:
            self._relays.disconnect(tunnel_id, mode, CloseCode.NORMAL_CLOSURE, reason)

    def revoke(self, tunnel_id: str, mode: Mode) -> None:
        """Disconnect the end whose access token has been revoked."""
        self._relays.disconnect(tunnel_id, mode, CloseCode.POLICY_VIOLATION, ACCESS_TOKEN_REVOKED)

    # What connections report.

    def _joined(self, connection: ClientConnection) -> None:
        if self._listener is not None:
            self._listener.settle(connection)

    def _lost(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        self._connection_lost.set()

    def _look_for_lost(self) -> None:
        """Regularly cut off clients whose machine or network is gone: the kernel would take a quarter of an hour."""
        self._look_timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_for_lost)
        for connection in list(self._connections):
            connection.abort_if_lost()

    async def _all_lost(self) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            while self._connections:
                self._connection_lost.clear()
                await asyncio.wait_for(self._connection_lost.wait(), _STOP_SECONDS)
        return not self._connections
