# SPDX-License-Identifier: Apache-2.0
"""The source proxy: the operator's end of a tunnel."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError
from ..net import connections
from ..net.accept_loop import accept_connections
from ..net.background_tasks import spawn, supervise
from ..net.descriptor_limit import is_reserved
from ..net.ipv6_loopback import reserve
from ..net.reasons import reason
from ..net.route import Route
from ..protocol.session import Connection, Mode, Version
from .addresses import TcpAddress
from .flow_control import STALL_SECONDS
from .link import TunnelCredentials
from .local_socket import Guard, LocalSocket
from .multiplexer import Callbacks, Multiplexer
from .reconnect import RETRY_FOREVER, RetryPolicy
from .tunnel_end import MAX_CONNECTIONS, Plan, TunnelEnd
from .version_probe import V1_ONLY_SERVICES, VersionProbe

__all__ = ["SourceProxy"]

log = logging.getLogger(__name__)

LINK_WAIT_SECONDS = 30.0
"""How long a local connection waits for a tunnel that is reconnecting, or for the device to show its version."""

BACKLOG = 100
"""Local connections that may wait to be accepted."""

_PORT_ATTEMPTS = 10
"""How many free ports to try, where the same port of ``::1`` is needed too."""


class _Listener:
    """A listening socket, and the task that accepts its connections.

    Args:
        sock: the socket, which listens already.
        reserved: another socket, to be kept until this one is closed.
        admit: is given each connection, and its peer's address.
    """

    def __init__(
        self, sock: socket.socket, reserved: socket.socket | None, admit: Callable[[socket.socket, Any], None]
    ) -> None:
        # Neither an error of accept(2) nor a bug ends it.
        self._accepting = supervise("listening for local connections", lambda: accept_connections(sock, admit))
        # Not earlier: the event loop would remove the reader of whichever socket gets the same descriptor next.
        self._accepting.add_done_callback(lambda _: sock.close())
        if reserved is not None:
            self._accepting.add_done_callback(lambda _: reserved.close())

    def stop(self) -> None:
        """Close it soon, without waiting for that."""
        self._accepting.cancel()

    async def close(self) -> None:
        """Close it."""
        self.stop()
        await asyncio.wait({self._accepting})


def _bind(family: int, address: Any, *, reserves: bool) -> tuple[socket.socket, socket.socket | None]:
    """Listen on an address, and reserve the same port of ``::1`` if ``reserves`` says so."""
    attempts = _PORT_ATTEMPTS if reserves and not address[1] else 1
    while True:
        attempts -= 1
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            reserved = reserve(sock.getsockname()[1]) if reserves else None
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or not attempts:
                raise
        else:
            return sock, reserved


class SourceProxy:
    """The operator's end: listens on local ports, and forwards each connection there through the tunnel.

    Args:
        plan: gives each service the address to listen on.
        bind_address: the host to listen on where the plan names none.
        max_connections: how many connections each service may have at once.
        retry_policy: how long to keep trying to connect to the service.
        destination_version: the version that the destination speaks; None to find out.
        answers_v1_only: whether it was found, earlier in this tunnel, to answer nothing but V1.
        expects_v1: whether an earlier tunnel found that of the thing. It may be another device by now, or a newer one.
        speaks_newer: whether it was found to speak V2 or V3. V1 is never tried then, however long it is silent.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
        leaves_descriptors: whether to reject local connections while this process has few descriptors left: any local
            user can open 128 to each service.
        new_guard: makes the guard for a connection to the local port of a service; None where everyone may connect.
        is_for_browsers: whether to keep other programs from listening on the same port of ``::1``, which browsers try
            first.
    """

    def __init__(
        self,
        route: Route,
        credentials: TunnelCredentials,
        plan: Plan,
        *,
        bind_address: str = "localhost",
        max_connections: int = MAX_CONNECTIONS,
        retry_policy: RetryPolicy = RETRY_FOREVER,
        destination_version: Version | None = None,
        answers_v1_only: bool = False,
        expects_v1: bool = False,
        speaks_newer: bool = False,
        stall_seconds: float = STALL_SECONDS,
        leaves_descriptors: bool = False,
        new_guard: Callable[[str], Guard | None] = lambda service_id: None,
        is_for_browsers: Callable[[str], bool] = lambda service_id: False,
    ) -> None:
        self.end = TunnelEnd(
            route,
            credentials,
            plan,
            self._new_multiplexer,
            on_ready=self._open_waiting,
            max_connections=max_connections,
            retry_policy=retry_policy,
        )
        self._probe = VersionProbe(
            self.end.services,
            self._reconnect,
            self._open_waiting,
            told=destination_version,
            answers_v1_only=answers_v1_only,
            expects_v1=expects_v1,
            speaks_newer=speaks_newer,
        )
        self._bind_address = bind_address
        self._listeners: dict[str, _Listener] = {}
        self._leaves_descriptors = leaves_descriptors
        self._stall_seconds = stall_seconds
        self._new_guard = new_guard
        self._is_for_browsers = is_for_browsers
        self._waiting: dict[LocalSocket, tuple[str, asyncio.TimerHandle]] = {}
        """Connections that the far end does not know of yet: their service IDs, and when they are given up."""

    async def run(self) -> None:
        """Serve until the tunnel ends; raises what :meth:`.TunnelEnd.run` raises."""
        try:
            await self.end.run(self._start)
        finally:
            self._stop()

    async def attach(self, service_id: str, sock: socket.socket, *, awaits_answer: bool = True) -> LocalSocket:
        """Forward a connected socket through the tunnel, as if it had been accepted.

        Args:
            awaits_answer: whether the device speaks first, as SSH servers do. While the device may be one that answers
                V1 only, nothing is sent before it has spoken.

        Raises:
            ConfigurationError: the tunnel does not carry this service.
        """
        if service_id not in self.end.services:
            offered = ", ".join(self.end.services) or "none"
            raise ConfigurationError(f"the tunnel does not offer {service_id}; it carries {offered}")
        local = self._accept(service_id, LocalSocket(awaits_answer=awaits_answer))
        await connections.accept(lambda: local, sock)
        return local

    async def listen(self, service_id: str, address: TcpAddress | None) -> None:
        """Listen for a service on this address only, or on none. Existing connections are kept.

        Raises:
            ConfigurationError: it cannot listen there. Nothing has changed then.
        """
        listener, bound = (None, None) if address is None else await self._listen(service_id, address)
        before = self._listeners.pop(service_id, None)
        if listener is not None:
            self._listeners[service_id] = listener
            log.info("%s: listening on %s", service_id, bound, extra={"service": service_id})
        self.end.services[service_id].address = bound
        if before is not None:
            await before.close()

    def reset_connections(self, service_id: str) -> None:
        """Close the connections of a service at once."""
        for local, (waiting_for, _timer) in list(self._waiting.items()):
            if waiting_for == service_id:
                self._give_up(local)
        for connection in list(self.end.open_connections()):
            if connection.service_id == service_id and self.end.multiplexer is not None:
                self.end.multiplexer.reset(connection)

    # What is known of the destination.

    @property
    def answers_v1_only(self) -> bool:
        """Whether the destination was found to ignore everything but V1."""
        return self._probe.answers_v1_only

    @property
    def speaks_newer(self) -> bool:
        """Whether the destination was found to speak V2 or V3."""
        return self._probe.speaks_newer

    @property
    def refusal(self) -> str | None:
        """Why this source cannot talk to the destination, if their versions do not fit."""
        return self._probe.refusal

    def why_full(self, service_id: str) -> str | None:
        """Why a service accepts no further connection at the moment; None if it does."""
        multiplexer, count = self.end.multiplexer, self.end.services[service_id].connections
        if count >= self.end.max_connections:
            return f"carries {count} connections, and no more are allowed"
        if multiplexer is None or multiplexer.can_open(service_id) or multiplexer.is_undecided(service_id):
            return None
        return f"has a connection already, and the device speaks {self._probe.spoken}, which allows one per service"

    # Listening.

    async def _start(self) -> None:
        for service_id, state in self.end.services.items():
            if isinstance(state.address, TcpAddress):
                await self.listen(service_id, state.address)

    def _stop(self) -> None:
        for listener in self._listeners.values():
            listener.stop()
        for local in list(self._waiting):
            self._give_up(local)

    async def _listen(self, service_id: str, address: TcpAddress) -> tuple[_Listener, TcpAddress]:
        loop = asyncio.get_running_loop()
        host = address.host or self._bind_address
        try:
            found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, bind_to = min(found, key=lambda entry: entry[0] != socket.AF_INET)
            sock, reserved = _bind(family, bind_to, reserves=self._is_for_browsers(service_id))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            why = "the port is in use" if in_use else reason(error)
            remedy = "; choose another with -s, or stop the program that uses it" if in_use else ""
            raise ConfigurationError(f"{service_id}: cannot listen on {address}: {why}{remedy}") from error
        bound = sock.getsockname()
        listener = _Listener(sock, reserved, lambda accepted, _: self._admit(service_id, accepted))
        return listener, TcpAddress(bound[0], bound[1])

    def _admit(self, service_id: str, sock: socket.socket) -> None:
        if self._leaves_descriptors and is_reserved(sock.fileno()):
            log.debug("%s: rejected a connection: this process has few descriptors left", service_id)
            sock.close()
            return
        local = LocalSocket(awaits_answer=service_id in V1_ONLY_SERVICES, guard=self._new_guard(service_id))
        self._accept(service_id, local)

        def failed(error: Exception) -> None:
            sock.close()
            local.connection_lost(error)

        spawn(f"serving a connection of {service_id}", connections.accept(lambda: local, sock), on_failure=failed)

    def _accept(self, service_id: str, local: LocalSocket) -> LocalSocket:
        if not self.end.admit(service_id):
            local.finish()
        elif local.awaits_guard:
            local.owner = self
            self._wait(service_id, local)
        elif not self.end.ready.is_set() or not self._open(service_id, local):
            self._wait(service_id, local)
        return local

    # What the sockets of connections report that wait for their guard.

    def local_ready(self, local: LocalSocket) -> None:
        """Open the connection, now that the guard has passed something, or drop it if its peer has gone."""
        asyncio.get_running_loop().call_soon(self._open_waiting)

    def local_full(self, local: LocalSocket) -> None:
        """Never called: only the guard's answer is written to it."""

    def local_drained(self, local: LocalSocket) -> None:
        """Nothing to do: only the guard's answer is written to it."""

    # The link.

    def _new_multiplexer(self) -> Multiplexer:
        before = self.end.multiplexer
        version, probing = self._probe.next_link()
        multiplexer = Multiplexer(
            Mode.SOURCE,
            Callbacks(
                services_offered=self.end.services_offered,
                connection_ended=self._connection_ended,
                peer_version_found=self._probe.version_found,
            ),
            version=version,
            probing=probing,
            first_stream_id=before.next_stream_id if before is not None else 1,
            stall_seconds=self._stall_seconds,
        )
        self._probe.use(multiplexer)
        return multiplexer

    def _reconnect(self, why: str) -> None:
        for service_id, local in self.end.reconnect(why):
            self._wait(service_id, local)

    def _connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        self.end.connection_ended(connection, local)
        self._probe.connection_ended(connection, local)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._open_waiting)

    # Opening connections.

    def _wait(self, service_id: str, local: LocalSocket) -> None:
        """Let a connection wait for its guard, the link or the destination."""
        timer = asyncio.get_running_loop().call_later(LINK_WAIT_SECONDS, self._give_up, local)
        self._waiting[local] = (service_id, timer)

    def _open_waiting(self) -> None:
        for local, (service_id, timer) in list(self._waiting.items()):
            if local.ended and not local.pending:
                self.end.services[service_id].connections -= 1
                local.finish()
            elif local.awaits_guard or not self.end.ready.is_set() or not self._open(service_id, local):
                continue
            timer.cancel()
            del self._waiting[local]

    def _open(self, service_id: str, local: LocalSocket) -> bool:
        """Open a connection, or reject it; False if it must wait."""
        multiplexer = self.end.multiplexer
        if multiplexer is None or not multiplexer.linked:
            return False
        if multiplexer.can_open(service_id):
            log.info("%s: opened", self._probe.open(service_id, local))
            return True
        if self._probe.is_undecided(service_id):
            # Only V3 allows a second connection.
            multiplexer.ask_version(service_id)
            return False
        log.warning(
            "%s: rejected a connection: the destination speaks %s, which has one connection per service",
            service_id,
            self._probe.spoken,
            extra={"service": service_id},
        )
        self.end.services[service_id].connections -= 1
        local.abort()
        return True

    def _give_up(self, local: LocalSocket) -> None:
        service_id, timer = self._waiting.pop(local)
        timer.cancel()
        self.end.services[service_id].connections -= 1
        why, level = f"the tunnel is down: {self.end.cause}", logging.WARNING
        if local.awaits_guard:
            # Browsers open connections before they need them.
            why, level = f"no request came within {LINK_WAIT_SECONDS:.0f} s", logging.INFO
        elif self.end.ready.is_set():
            why = "there is one already, and the device has not shown yet that it accepts more"
        log.log(level, "%s: closed a connection: %s", service_id, why, extra={"service": service_id})
        local.abort()
