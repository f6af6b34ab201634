# SPDX-License-Identifier: Apache-2.0
"""The way to a data plane: directly, or through a web proxy."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from . import streams, web_proxy
from .endpoint import Endpoint, tls_context
from .web_proxy import WebProxy

__all__ = ["PING_SECONDS", "Route", "find_route"]

PING_SECONDS = 20.0


@dataclass(frozen=True)
class Route:
    """The way to a data plane.

    Attributes:
        tls: for the service.
        web_proxy: what to go through, if anything.
        web_proxy_tls: for that.
        ping_seconds: how often to show what is on the way (NAT, proxies) that the connection is in use.
    """

    endpoint: Endpoint
    tls: ssl.SSLContext
    web_proxy: WebProxy | None = None
    web_proxy_tls: ssl.SSLContext | None = None
    ping_seconds: float = PING_SECONDS

    def __str__(self) -> str:
        through = f" through the web proxy {self.web_proxy}" if self.web_proxy is not None else ""
        return f"{self.endpoint}{through}"

    async def dial(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect a protocol to the data plane, with TLS.

        Raises:
            WebProxyError: the web proxy gave no connection.
            OSError: there is no way to the data plane, or no TLS with it.
        """
        host = self.endpoint.host
        if self.web_proxy is None:
            await streams.connect(lambda: protocol, host, self.endpoint.port, ssl=self.tls, server_hostname=host)
            return
        sock = await web_proxy.open_tunnel(self.web_proxy, self.web_proxy_tls, self.endpoint)
        try:
            if sock.family == socket.AF_UNIX:
                await streams.connect_unix(lambda: protocol, sock=sock, ssl=self.tls, server_hostname=host)
            else:
                await streams.connect(lambda: protocol, sock=sock, ssl=self.tls, server_hostname=host)
        except BaseException:
            sock.close()
            raise


def find_route(
    endpoint: Endpoint,
    environment: Mapping[str, str],
    *,
    capath: str | None = None,
    verify: bool = True,
    ping_seconds: float = PING_SECONDS,
) -> Route:
    """Find the way to a data plane: through the web proxy that the environment names for it, or directly.

    Args:
        capath: an OpenSSL hashed directory or a PEM file with authorities: the service's must be there; the web
            proxy's may be there or among the system's.
        verify: whether to check the certificates.

    Raises:
        ConfigurationError: the environment names no proper web proxy, or ``capath`` has no certificates.
    """
    found = web_proxy.find_web_proxy(endpoint, environment)
    return Route(
        endpoint,
        tls_context(capath, verify=verify),
        found,
        tls_context(capath, verify=verify, system_too=True) if found is not None and found.tls else None,
        ping_seconds,
    )
