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
from .link import Reconnect, TunnelCredentials
from .local_socket import Guard, LocalSocket
from .multiplexer import OLD_SECONDS, Multiplexer, MultiplexerOwner
from .reconnect import PATIENT, RetryPolicy
from .tunnel_end import MAX_CONNECTIONS, Plan, TunnelEnd

__all__ = ["SourceProxy"]

log = logging.getLogger(__name__)

LINK_WAIT_SECONDS = 30.0
"""How long a local connection waits for a tunnel that is reconnecting, or for the device to show what it speaks."""

BACKLOG = 100
"""Local connections that may wait to be accepted."""

OLD_SERVICES = frozenset(("SSH", "VNC"))
"""What AWS IoT Device Client and Greengrass serve: nothing else. Theirs are the only destinations in the field that
leave messages of a newer version than V1 without an answer, and in both the server speaks first."""


_ATTEMPTS = 10
"""Ports to try where any will do, and the same one of ``::1`` is to be ours too."""


class _Listener:
    """A listening socket, and the task that accepts what connects to it.

    Args:
        sock: is listening.
        reserved: kept as long as it listens.
    """

    def __init__(
        self, sock: socket.socket, reserved: socket.socket | None, admit: Callable[[socket.socket, Any], None]
    ) -> None:
        # No error ends it; a fault of ours does not either.
        self._accepting = supervise("listening for local connections", lambda: accept_connections(sock, admit))
        # Not before: the event loop would forget a reader of whichever socket has its number next.
        self._accepting.add_done_callback(lambda _: sock.close())
        if reserved is not None:
            self._accepting.add_done_callback(lambda _: reserved.close())

    def stop(self) -> None:
        """Close it, in a moment."""
        self._accepting.cancel()

    async def close(self) -> None:
        """Close it."""
        self.stop()
        await asyncio.wait({self._accepting})


def _bind(family: int, address: Any, *, reserves: bool) -> tuple[socket.socket, socket.socket | None]:
    """Listen on an address, and reserve the same port of ``::1`` if that is wanted."""
    attempts = _ATTEMPTS if reserves and not address[1] else 1
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
    """The operator's end: listens on local ports, and sends what connects there through the tunnel.

    Args:
        plan: says where to listen for each service.
        bind_address: the host to listen on where the plan gives none.
        destination_version: the version that the destination speaks; None to find out.
        answers_v1_only: whether it was found, earlier in the life of this tunnel, to answer nothing but V1.
        expects_v1: whether the thing was found so by an earlier tunnel, and may be another device, or a newer one, now.
        speaks_newer: whether it was found to speak V2 or V3: then V1 is never tried, however long it is silent.
        stall_seconds: how long a local peer may read nothing, with its buffer full, before its connection is reset.
        leaves_descriptors: whether to turn local connections away where this process has few descriptors left: any
            local user can have 128 of each service.
        new_guard: makes what looks at each connection to the local port of a service; None where all may pass.
        is_for_browsers: whether nobody else may listen at the same port of ``::1``, which browsers try first.
    """

    def __init__(
        self,
        route: Route,
        access: TunnelCredentials,
        plan: Plan,
        *,
        bind_address: str = "localhost",
        max_connections: int = MAX_CONNECTIONS,
        retry_policy: RetryPolicy = PATIENT,
        destination_version: Version | None = None,
        answers_v1_only: bool = False,
        expects_v1: bool = False,
        speaks_newer: bool = False,
        stall_seconds: float = STALL_SECONDS,
        leaves_descriptors: bool = False,
        new_guard: Callable[[str], Guard | None] = lambda service_id: None,
        is_for_browsers: Callable[[str], bool] = lambda service_id: False,
    ) -> None:
        self.end = TunnelEnd(route, access, plan, self, max_connections=max_connections, retry_policy=retry_policy)
        self.refusal: str | None = None
        """Why the destination cannot be spoken to, where its version does not fit."""
        self._bind_address = bind_address
        self._listeners: dict[str, _Listener] = {}
        self._leaves_descriptors = leaves_descriptors
        self._stall_seconds = stall_seconds
        self._new_guard = new_guard
        self._is_for_browsers = is_for_browsers
        self._told_version = destination_version
        self._found_version: Version | None = None
        self.answers_v1_only = False
        """Whether the destination was found to leave everything but V1 without an answer."""
        self.speaks_newer = speaks_newer
        """Whether it was found to speak V2 or V3."""
        self._trying_v1 = False
        """Whether this link speaks V1 to see if the destination answers that."""
        self._try_v1_next = answers_v1_only
        self._expects_v1 = expects_v1
        self._early: dict[LocalSocket, tuple[str, asyncio.TimerHandle]] = {}

    async def run(self) -> None:
        """Serve until the tunnel ends; raises what :meth:`~.proxy.TunnelEnd.run` raises."""
        await self.end.run()

    async def attach(self, service_id: str, sock: socket.socket, *, awaits_answer: bool = True) -> LocalSocket:
        """Send what comes from a connected socket through the tunnel, as if it had been accepted.

        Args:
            awaits_answer: whether the device is to speak first, as SSH servers do. Nothing is sent before it has while
                it may be one that has to be spoken to in V1.

        Raises:
            ConfigurationError: the tunnel does not carry this service.
        """
        if service_id not in self.end.services:
            offered = ", ".join(self.end.services) or "none"
            raise ConfigurationError(f"the tunnel does not offer {service_id}; it carries {offered}")
        local = self._accept(service_id, LocalSocket(awaits_answer=awaits_answer))
        await connections.accept(lambda: local, sock)
        return local

    async def start(self) -> None:
        for service_id, state in self.end.services.items():
            if isinstance(state.address, TcpAddress):
                await self.listen(service_id, state.address)

    def stop(self) -> None:
        for listener in self._listeners.values():
            listener.stop()
        for local in list(self._early):
            self._give_up(local)

    async def listen(self, service_id: str, address: TcpAddress | None) -> None:
        """Listen there for a service, and nowhere else. Connections that there are stay.

        Raises:
            ConfigurationError: that is not possible; it goes on as before.
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
        """End those of a service at once."""
        for local, (waiting_for, _timer) in list(self._early.items()):
            if waiting_for == service_id:
                self._give_up(local)
        for connection in list(self.end.open_connections()):
            if connection.service_id == service_id and self.end.multiplexer is not None:
                self.end.multiplexer.reset(connection)

    async def _listen(self, service_id: str, address: TcpAddress) -> tuple[_Listener, TcpAddress]:
        loop = asyncio.get_running_loop()
        host = address.host or self._bind_address
        try:
            found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, bind_to = min(found, key=lambda entry: entry[0] != socket.AF_INET)
            sock, reserved = _bind(family, bind_to, reserves=self._is_for_browsers(service_id))
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else reason(error)
            remedy = "; give another with -s, or stop what uses it" if error.errno == errno.EADDRINUSE else ""
            raise ConfigurationError(f"{service_id}: cannot listen on {address}: {why}{remedy}") from error
        bound = sock.getsockname()
        listener = _Listener(sock, reserved, lambda accepted, _: self._admit(service_id, accepted))
        return listener, TcpAddress(bound[0], bound[1])

    def _admit(self, service_id: str, sock: socket.socket) -> None:
        if self._leaves_descriptors and is_reserved(sock.fileno()):
            log.debug("%s: turned a connection away: this process has few descriptors left", service_id)
            sock.close()
            return
        local = self._accept(service_id, self._new_local(service_id))

        def failed(error: Exception) -> None:
            sock.close()
            local.connection_lost(error)

        spawn(f"serving a connection of {service_id}", connections.accept(lambda: local, sock), on_failure=failed)

    def _new_local(self, service_id: str) -> LocalSocket:
        return LocalSocket(awaits_answer=service_id in OLD_SERVICES, guard=self._new_guard(service_id))

    def why_full(self, service_id: str) -> str | None:
        """Why a service takes no further connection just now; None if it does."""
        multiplexer, connections = self.end.multiplexer, self.end.services[service_id].connections
        if connections >= self.end.max_connections:
            return f"carries {connections} connections, and no more are allowed"
        if multiplexer is None or multiplexer.can_open(service_id) or multiplexer.is_undecided(service_id):
            return None
        return f"has a connection already, and the device speaks {self._spoken}, which allows one per service"

    # Versions.

    @property
    def _spoken(self) -> Version:
        return self._found_version or self._told_version or Version.V3

    def new_multiplexer(self, owner: MultiplexerOwner) -> Multiplexer:
        before = self.end.multiplexer
        self._trying_v1, self._try_v1_next = self._try_v1_next, False
        old = self._trying_v1 or self.answers_v1_only
        return Multiplexer(
            Mode.SOURCE,
            owner,
            version=self._told_version or (Version.V1 if old else Version.V3),
            probing=self._told_version is None and not old,
            expects_v1=self._expects_v1,
            first_stream_id=before.next_stream_id if before is not None else 1,
            stall_seconds=self._stall_seconds,
        )

    def peer_version_found(self, version: Version) -> None:
        if version is not self._found_version:
            log.info("the destination speaks %s", version)
        self._found_version = version
        if self._trying_v1:
            # The reference of 2.x answers V1 too, where the tunnel has one service, and shows that it is newer.
            self._trying_v1, self.answers_v1_only = False, version is Version.V1
        self.speaks_newer = version is not Version.V1
        if self.speaks_newer:
            self._expects_v1 = False
        told = self._told_version
        unlike_told = told is not None and told is not version
        if version is Version.V1 and (unlike_told or len(self.end.services) > 1):
            self._refuse_version(version)
        else:
            self.refusal = None
            asyncio.get_running_loop().call_soon(self._open_waiting)

    def peer_silent(self, service_id: str) -> None:
        multiplexer = self.end.multiplexer
        if multiplexer is None or len(self.end.services) > 1:
            return
        waiting = multiplexer.connections.values()
        if any(local.held for local in waiting) and not self.speaks_newer:
            log.info("nothing comes from the destination: trying V1, all that some answer (-y V3 forbids it)")
            self._try_v1_next = True
            self._relink("trying V1")
        elif any(local.bytes_in or local.awaits_answer for local in waiting):
            log.warning(
                "%s: nothing has come from the destination for %.0f s: its server is slow, or it speaks V1 only; if "
                "so, say it with -y V1",
                service_id,
                OLD_SECONDS,
                extra={"service": service_id},
            )

    def _relink(self, why: str) -> None:
        """Take the connections that have sent nothing to a new link: one link may not mix the versions."""
        multiplexer, link = self.end.multiplexer, self.end.link
        if multiplexer is None or link is None:
            return
        for service_id, local in multiplexer.carry_over():
            self._keep(service_id, local)
        self.end.ready.clear()
        self.end.settled.clear()
        link.fail(Reconnect(why), 1000)

    def _may_answer_v1_only(self, service_id: str) -> bool:
        if self._told_version is not None or self.speaks_newer:
            return False
        return service_id in OLD_SERVICES and len(self.end.services) == 1

    def _refuse_version(self, version: Version) -> None:
        services = ", ".join(self.end.services)
        if len(self.end.services) > 1:
            self.refusal = (
                f"the destination speaks {version}, which carries one service, but this tunnel has {services}: open a "
                "tunnel with one service for this device, or give the device a proxy that speaks V3"
            )
        else:
            self.refusal = (
                f"the destination speaks {version}, but this source was told that it speaks {self._told_version}: "
                f"give -y {version}, or leave it out"
            )
        log.error("%s", self.refusal)
        if self.end.multiplexer is not None:
            for connection in list(self.end.multiplexer.connections):
                self.end.multiplexer.reset(connection)

    def connection_requested(self, multiplexer: Multiplexer, connection: Connection) -> None:
        multiplexer.refuse(connection)  # never reached: a source's session takes a start for a broken protocol

    def _accept(self, service_id: str, local: LocalSocket) -> LocalSocket:
        if not self.end.admit(service_id):
            local.finish()
        elif local.awaits_guard:
            local.owner = self
            self._keep(service_id, local)
        elif not self.end.ready.is_set() or not self._open(service_id, local):
            self._keep(service_id, local)
        return local

    # What connections report that the guard has let send nothing yet.

    def local_ready(self, local: LocalSocket) -> None:
        asyncio.get_running_loop().call_soon(self._open_waiting)

    def local_full(self, local: LocalSocket) -> None:
        """Nothing waits to be written but the guard's answer."""

    def local_drained(self, local: LocalSocket) -> None:
        """Likewise."""

    def _keep(self, service_id: str, local: LocalSocket) -> None:
        """Have a connection wait for the link, or for the device."""
        timer = asyncio.get_running_loop().call_later(LINK_WAIT_SECONDS, self._give_up, local)
        self._early[local] = (service_id, timer)

    def linked(self) -> None:
        self._open_waiting()

    def connection_ended(self, local: LocalSocket) -> None:
        if self._trying_v1 and not local.bytes_out:
            # No answer to V1 either. The next device that comes may be one that exits when it is spoken to in V1.
            asyncio.get_running_loop().call_soon(self._stop_trying_v1)
        elif self._speaks_too_old():
            asyncio.get_running_loop().call_soon(self._speak_newer)
        elif self._early:
            asyncio.get_running_loop().call_soon(self._open_waiting)

    def _speaks_too_old(self) -> bool:
        """Whether an idle link speaks V1 to a destination that was found to be newer."""
        multiplexer = self.end.multiplexer
        if multiplexer is None or self._told_version is not None or not self.speaks_newer:
            return False
        return multiplexer.version is Version.V1 and not multiplexer.connections

    def _speak_newer(self) -> None:
        if self._speaks_too_old():
            self._relink("the destination speaks a newer version")

    def _stop_trying_v1(self) -> None:
        if self._trying_v1:
            self._relink("no answer to V1 either")

    def _open_waiting(self) -> None:
        for local, (service_id, timer) in list(self._early.items()):
            if local.ended and not local.pending:
                self.end.services[service_id].connections -= 1
                local.finish()
            elif local.awaits_guard or not self.end.ready.is_set() or not self._open(service_id, local):
                continue
            timer.cancel()
            del self._early[local]

    def _open(self, service_id: str, local: LocalSocket) -> bool:
        """Open a connection, or turn it away; False if it must wait."""
        multiplexer = self.end.multiplexer
        if multiplexer is None or not multiplexer.linked:
            return False
        if multiplexer.can_open(service_id):
            local.owner = multiplexer
            local.held = local.awaits_answer and self._may_answer_v1_only(service_id)
            log.info("%s: opened", multiplexer.open(service_id, local))
            if not multiplexer.is_undecided(service_id) and not self._trying_v1:
                multiplexer.release()
            return True
        if multiplexer.is_undecided(service_id) or self._trying_v1:
            # Only V3 takes a second connection.
            multiplexer.ask_version(service_id)
            return False
        log.warning(
            "%s: turned a connection away: the destination speaks %s, which has one connection per service",
            service_id,
            self._spoken,
            extra={"service": service_id},
        )
        self.end.services[service_id].connections -= 1
        local.abort()
        return True

    def _give_up(self, local: LocalSocket) -> None:
        service_id, timer = self._early.pop(local)
        timer.cancel()
        self.end.services[service_id].connections -= 1
        why, level = f"the tunnel is down: {self.end.cause}", logging.WARNING
        if local.awaits_guard:
            # Browsers open connections before they need them.
            why, level = f"no request has come within {LINK_WAIT_SECONDS:.0f} s", logging.INFO
        elif self.end.ready.is_set():
            why = "there is one already, and the device has not shown yet that it can have more"
        log.log(level, "%s: a connection is closed, because %s", service_id, why, extra={"service": service_id})
        local.abort()
