# SPDX-License-Identifier: Apache-2.0
"""The source proxy: the operator's end of a tunnel."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl

from .addresses import TcpAddress
from .errors import ConfigurationError
from .protocol.session import Connection
from .proxy import MAX_CONNECTIONS, Plan, TunnelEnd
from .transport.endpoint import Endpoint
from .transport.link import Access
from .transport.local import LocalSocket
from .transport.multiplexer import Multiplexer

__all__ = ["SourceProxy"]

log = logging.getLogger(__name__)

LINK_WAIT_SECONDS = 30.0
"""How long a local connection waits for a tunnel that is reconnecting."""


class SourceProxy:
    """The operator's end: listens on local ports, and sends what connects there through the tunnel.

    Args:
        plan: says where to listen for each service.
        bind_address: the host to listen on where the plan gives none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        access: Access,
        tls: ssl.SSLContext,
        plan: Plan,
        *,
        bind_address: str = "localhost",
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.end = TunnelEnd(endpoint, access, tls, plan, self, max_connections=max_connections)
        self._bind_address = bind_address
        self._servers: list[asyncio.AbstractServer] = []
        self._early: dict[LocalSocket, tuple[str, asyncio.TimerHandle]] = {}

    async def run(self) -> None:
        """Serve until the tunnel ends; raises what :meth:`~.proxy.TunnelEnd.run` raises."""
        await self.end.run()

    async def attach(self, service_id: str, sock: socket.socket) -> LocalSocket:
        """Send what comes from a connected socket through the tunnel, as if it had been accepted.

        Raises:
            ConfigurationError: the tunnel does not carry this service.
        """
        if service_id not in self.end.services:
            offered = ", ".join(self.end.services) or "none"
            raise ConfigurationError(f"the tunnel does not offer {service_id}; it carries {offered}")
        local = self._accept(service_id)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, sock)
        return local

    async def start(self) -> None:
        for service_id, state in self.end.services.items():
            if isinstance(state.address, TcpAddress):
                state.address = await self._listen(service_id, state.address)
                log.info("%s: listening on %s", service_id, state.address)

    def stop(self) -> None:
        for server in self._servers:
            server.close()
        for local in list(self._early):
            self._give_up(local)

    async def _listen(self, service_id: str, address: TcpAddress) -> TcpAddress:
        loop = asyncio.get_running_loop()
        host = address.host or self._bind_address
        try:
            found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, bind_to = min(found, key=lambda entry: entry[0] != socket.AF_INET)
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(bind_to)
                self._servers.append(await loop.create_server(lambda: self._accept(service_id), sock=sock))
            except OSError:
                sock.close()
                raise
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
            remedy = "; give another with -s, or stop what uses it" if error.errno == errno.EADDRINUSE else ""
            raise ConfigurationError(f"{service_id}: cannot listen on {address}: {why}{remedy}") from error
        bound = sock.getsockname()
        return TcpAddress(bound[0], bound[1])

    def connection_requested(self, multiplexer: Multiplexer, connection: Connection) -> None:
        multiplexer.refuse(connection)  # never reached: a source's session takes a start for a broken protocol

    def _accept(self, service_id: str) -> LocalSocket:
        local = LocalSocket()
        if not self.end.admit(service_id):
            local.finish()
        elif self.end.ready.is_set():
            self._open(service_id, local)
        else:
            timer = asyncio.get_running_loop().call_later(LINK_WAIT_SECONDS, self._give_up, local)
            self._early[local] = (service_id, timer)
        return local

    def linked(self) -> None:
        for local, (service_id, timer) in list(self._early.items()):
            timer.cancel()
            del self._early[local]
            if local.ended and not local.pending:
                self.end.services[service_id].connections -= 1
                local.finish()
            else:
                self._open(service_id, local)

    def _open(self, service_id: str, local: LocalSocket) -> None:
        if self.end.multiplexer is not None:
            local.owner = self.end.multiplexer
            log.info("%s: opened", self.end.multiplexer.open(service_id, local))

    def _give_up(self, local: LocalSocket) -> None:
        service_id, timer = self._early.pop(local)
        timer.cancel()
        self.end.services[service_id].connections -= 1
        log.warning("%s: a connection is closed, because the tunnel is down: %s", service_id, self.end.cause)
        local.abort()
