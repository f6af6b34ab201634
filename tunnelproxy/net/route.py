# SPDX-License-Identifier: Apache-2.0
"""How to reach a data plane: directly, or through an HTTP proxy."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigurationError, Objection, refuse
from . import connections, http_proxy
from .certificate_dates import Validity, is_of_dates, read_validity
from .endpoint import Endpoint, load_authorities, tls_context
from .happy_eyeballs import open_socket
from .http_proxy import HttpProxy
from .reasons import handshake_reason

__all__ = ["PING_SECONDS", "CertificateRefused", "Route", "find_route"]

PING_SECONDS = 20.0


class CertificateRefused(Exception):
    """The data plane's certificate cannot be verified.

    Attributes:
        error: OpenSSL's error.
        validity: the dates of the certificate, if it was rejected for them and they could be read.
    """

    def __init__(self, error: ssl.SSLCertVerificationError, validity: Validity | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.validity = validity


@dataclass(frozen=True)
class Route:
    """How to reach a data plane.

    Attributes:
        tls: for the connection to the service.
        http_proxy: the HTTP proxy to go through; None to connect directly.
        http_proxy_tls: for the connection to the HTTP proxy; None for plain TCP.
        ping_seconds: time between two pings, which keep NAT and proxies on the path from dropping the connection.
        awaited_capath: CA certificates that could not be read yet; None if all were read.
    """

    endpoint: Endpoint
    tls: ssl.SSLContext
    http_proxy: HttpProxy | None = None
    http_proxy_tls: ssl.SSLContext | None = None
    ping_seconds: float = PING_SECONDS
    awaited_capath: str | None = None

    def __str__(self) -> str:
        through = f" through the HTTP proxy {self.http_proxy}" if self.http_proxy is not None else ""
        return f"{self.endpoint}{through}"

    async def dial(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect a protocol to the data plane, with TLS.

        Raises:
            HttpProxyError: the HTTP proxy did not connect to the data plane.
            CertificateRefused: the data plane's certificate cannot be verified.
            OSError: the data plane cannot be reached, or the TLS handshake failed.
        """
        self._load_authorities()
        sock = await self._open_socket()
        connect = connections.connect_unix if sock.family == socket.AF_UNIX else connections.connect
        try:
            await connect(lambda: protocol, sock=sock, ssl=self.tls, server_hostname=self.endpoint.host)
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise CertificateRefused(error, await self._validity(error)) from None
        except OSError as error:
            sock.close()
            raise OSError(handshake_reason(error)) from None
        except BaseException:
            sock.close()
            raise

    async def _open_socket(self) -> socket.socket:
        """Connect to the data plane, without TLS yet."""
        if self.http_proxy is None:
            return await open_socket(self.endpoint.host, self.endpoint.port)
        return await http_proxy.open_tunnel(self.http_proxy, self.http_proxy_tls, self.endpoint)

    async def _validity(self, error: ssl.SSLCertVerificationError) -> Validity | None:
        """The dates of the data plane's certificate, if it was rejected for them."""
        if not is_of_dates(error):
            return None
        try:
            sock = await self._open_socket()
        except (OSError, http_proxy.HttpProxyError):
            return None
        return await asyncio.to_thread(read_validity, sock, self.endpoint.host, self.tls)

    def _load_authorities(self) -> None:
        """Read the CA certificates that are still missing."""
        if self.awaited_capath is None:
            return
        try:
            for context in (self.tls, self.http_proxy_tls):
                if context is not None:
                    load_authorities(context, self.awaited_capath)
        except ConfigurationError as error:
            raise OSError(str(error)) from None


def find_route(
    endpoint: Endpoint,
    environment: Mapping[str, str],
    *,
    capath: str | None = None,
    verify: bool = True,
    ping_seconds: float = PING_SECONDS,
    amiss: Objection = refuse,
) -> Route:
    """Choose how to reach a data plane: through the HTTP proxy that the environment names for it, or directly.

    Args:
        capath: an OpenSSL hashed directory or a PEM file with CA certificates. The service's must be there; the HTTP
            proxy's may be there or among the system's.
        verify: whether to verify the certificates.
        ping_seconds: time between two pings.
        amiss: what to do if ``capath`` has no certificates.

    Raises:
        ConfigurationError: an environment variable does not name an HTTP proxy, or ``capath`` has no certificates.
    """
    found = http_proxy.find_http_proxy(endpoint, environment)
    missing: list[str] = []

    def object_once(problem: str, instead: str) -> None:
        if not missing:
            amiss(problem, instead)
        missing.append(problem)

    tls = tls_context(capath, verify=verify, amiss=object_once)
    through_tls = found is not None and found.tls
    return Route(
        endpoint,
        tls,
        found,
        tls_context(capath, verify=verify, system_too=True, amiss=object_once) if through_tls else None,
        ping_seconds,
        capath if missing and verify else None,
    )
