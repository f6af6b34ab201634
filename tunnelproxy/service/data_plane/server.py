# SPDX-License-Identifier: Apache-2.0
"""The data plane: every client's connection, and the relay of every tunnel that has one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable

from websockets.frames import CloseCode

from ..events import EventHandler
from ..limits import DEFAULT_LIMITS, Limits, TokenBucket
from ..listening.listener import Listener
from ..logs.unexpected_errors import UnexpectedErrors
from ..model import Mode, Tunnel
from ..state.store import Store
from .admission import Admission, Admissions
from .client_connection import Connection
from .connected_clients import ConnectedClients
from .handshake import HandshakeRejected
from .relay import Relay

__all__ = [
    "ACCESS_TOKEN_REVOKED",
    "REPLACED",
    "SERVICE_STOPPING",
    "TUNNEL_CLOSED",
    "TUNNEL_EXPIRED",
    "DataPlane",
]

TUNNEL_CLOSED = "Tunnel closed"
"""Close reason, with code 1000: the tunnel was closed. A client is done."""

TUNNEL_EXPIRED = "Tunnel expired"
"""Close reason, with code 1000: the tunnel's lifetime is over. A client is done."""

ACCESS_TOKEN_REVOKED = "Access token revoked"  # noqa: S105  a close reason, not a token
"""Close reason, with code 1008: the access token was rotated. A client needs the new one."""

REPLACED = "Replaced by a newer connection"
"""Close reason, with code 1008: the same access token connected again. A client leaves the tunnel to the newer one."""

SERVICE_STOPPING = "Service is stopping"
"""Close reason, with code 1001: a client connects again later."""

_STOP_DEADLINE = 2.0
_LOOK_SECONDS = 10.0

_log = logging.getLogger(__name__)


class DataPlane:
    """Lets clients in, joins those of one tunnel, and disconnects them when the control API says so.

    Args:
        store: the state.
        clock: gives seconds since the epoch.
        limits: how many connections there may be, and how fast.
        notify: is told of every client that comes, leaves, or is refused.
        failures: logs what should not have happened.
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
        self._store = store
        self._clock = clock
        self._limits = limits
        self._notify = notify
        self._failures = failures or UnexpectedErrors()
        self._admissions = Admissions(store, clock)
        self._connections: set[Connection] = set()
        self._relays: dict[str, Relay] = {}
        self._door: Listener | None = None
        self._some_gone = asyncio.Event()
        self._looking: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Accept clients on a bound socket."""
        self._door = Listener(lambda: Connection(self, self._admissions), context, self._limits, self._notify)
        self._door.open(listener)
        self._look_for_lost()

    async def stop(self) -> None:
        """Accept no more, and say good-bye to those who are there."""
        if self._door is not None:
            self._door.close()
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self._connections):
            connection.disconnect(CloseCode.GOING_AWAY, SERVICE_STOPPING)
        if not await self._are_all_gone():
            for connection in list(self._connections):
                connection.abort()
            await self._are_all_gone()

    def _look_for_lost(self) -> None:
        """Cut off, now and then, those whose machine or network is gone: the kernel would take a quarter of an hour."""
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_for_lost)
        for connection in list(self._connections):
            connection.abort_if_lost()

    # What the operations call

    def close_tunnel(self, tunnel_id: str, reason: str) -> None:
        """Disconnect both ends of a tunnel.

        The close frame alone says that all streams have ended. AWS's reference, when idle, takes a SESSION_RESET before
        it for the end of a session, waits for the next one, and does not exit.
        """
        relay = self._relays.get(tunnel_id)
        if relay is None:
            return
        for mode in Mode:
            self._disconnect(relay, mode, CloseCode.NORMAL_CLOSURE, reason)

    def revoke(self, tunnel_id: str, mode: Mode) -> None:
        """Disconnect the end whose access token has been revoked."""
        relay = self._relays.get(tunnel_id)
        if relay is not None:
            self._disconnect(relay, mode, CloseCode.POLICY_VIOLATION, ACCESS_TOKEN_REVOKED)

    # What connections call

    def opened(self, connection: Connection) -> None:
        """A client's TLS handshake is done."""
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """A client is gone."""
        self._connections.discard(connection)
        self._some_gone.set()

    def refused(self, connection: Connection, refusal: HandshakeRejected) -> None:
        """A client's handshake was refused."""
        self.connected_clients.refused(connection, refusal)

    def failed(self, connection: Connection, error: Exception) -> None:
        """A client's handshake met a fault of ours."""
        self._failures.report(f"channel {connection.channel_id}: the handshake has failed", error)

    def attach(self, connection: Connection, admission: Admission) -> Relay:
        """Join a client to its tunnel; an older connection of the same end gives way."""
        if self._door is not None:
            self._door.settle(connection)
        tunnel = admission.tunnel
        self.connected_clients.joined(connection, tunnel, admission.key)
        relay = self._relays.get(tunnel.tunnel_id)
        if relay is None:
            bandwidth = self._limits.bandwidth
            relay = Relay(TokenBucket.for_bandwidth(bandwidth, time.monotonic) if bandwidth else None)
            self._relays[tunnel.tunnel_id] = relay
        replaced = relay.attach(connection)
        if replaced is not None:
            replaced.disconnect(CloseCode.POLICY_VIOLATION, REPLACED)
        self._store.set_connected(tunnel.tunnel_id, connection.mode, True, self._clock())
        _log.info(
            "tunnel %s: %s connected, protocol V%d, channel %s",
            tunnel.tunnel_id,
            connection.mode.value,
            connection.version,
            connection.channel_id,
            extra={"tunnel": tunnel.tunnel_id, "channel": connection.channel_id},
        )
        return relay

    def detach(self, connection: Connection, tunnel: Tunnel) -> None:
        """Take a client out of its tunnel."""
        _log.info(
            "tunnel %s: %s disconnected, channel %s",
            tunnel.tunnel_id,
            connection.mode.value,
            connection.channel_id,
            extra={"tunnel": tunnel.tunnel_id, "channel": connection.channel_id},
        )
        self.connected_clients.left(connection)
        relay = self._relays.get(tunnel.tunnel_id)
        if relay is None or not relay.detach(connection):
            return
        self._store.set_connected(tunnel.tunnel_id, connection.mode, False, self._clock())
        if relay.is_empty:
            del self._relays[tunnel.tunnel_id]

    async def _are_all_gone(self) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            while self._connections:
                self._some_gone.clear()
                await asyncio.wait_for(self._some_gone.wait(), _STOP_DEADLINE)
        return not self._connections

    @staticmethod
    def _disconnect(relay: Relay, mode: Mode, code: CloseCode, reason: str) -> None:
        end = relay.end(mode)
        if end is not None:
            end.disconnect(code, reason)
