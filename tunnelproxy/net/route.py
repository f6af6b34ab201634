# SPDX-License-Identifier: Apache-2.0
"""The way to a data plane: directly, or through a web proxy."""

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
from .http_proxy import WebProxy
from .reasons import handshake_reason

__all__ = ["PING_SECONDS", "CertificateRefused", "Route", "find_route"]

PING_SECONDS = 20.0


class CertificateRefused(Exception):
    """The data plane's certificate cannot be verified.

    Attributes:
        error: what OpenSSL says.
        validity: the dates of the certificate, where it was refused for them and they could be read.
    """

    def __init__(self, error: ssl.SSLCertVerificationError, validity: Validity | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.validity = validity


@dataclass(frozen=True)
class Route:
    """The way to a data plane.

    Attributes:
        tls: for the service.
        web_proxy: what to go through, if anything.
        web_proxy_tls: for that.
        ping_seconds: how often to show what is on the way (NAT, proxies) that the connection is in use.
        awaited_capath: authorities that could not be read yet.
    """

    endpoint: Endpoint
    tls: ssl.SSLContext
    web_proxy: WebProxy | None = None
    web_proxy_tls: ssl.SSLContext | None = None
    ping_seconds: float = PING_SECONDS
    awaited_capath: str | None = None

    def __str__(self) -> str:
        through = f" through the web proxy {self.web_proxy}" if self.web_proxy is not None else ""
        return f"{self.endpoint}{through}"

    async def dial(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect a protocol to the data plane, with TLS.

        Raises:
            WebProxyError: the web proxy gave no connection.
            CertificateRefused: the data plane's certificate cannot be verified.
            OSError: there is no way to the data plane, or no TLS with it.
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
        """A connection to the data plane, without TLS."""
        if self.web_proxy is None:
            return await open_socket(self.endpoint.host, self.endpoint.port)
        return await http_proxy.open_tunnel(self.web_proxy, self.web_proxy_tls, self.endpoint)

    async def _validity(self, error: ssl.SSLCertVerificationError) -> Validity | None:
        """The dates of the data plane's certificate, if it was refused for them."""
        if not is_of_dates(error):
            return None
        try:
            sock = await self._open_socket()
        except (OSError, http_proxy.WebProxyError):
            return None
        return await asyncio.to_thread(read_validity, sock, self.endpoint.host, self.tls)

    def _load_authorities(self) -> None:
        """Read the authorities that are still missing."""
        if self.awaited_capath is None:
            return
        try:
            for context in (self.tls, self.web_proxy_tls):
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
    """Find the way to a data plane: through the web proxy that the environment names for it, or directly.

    Args:
        capath: an OpenSSL hashed directory or a PEM file with authorities: the service's must be there; the web
            proxy's may be there or among the system's.
        verify: whether to check the certificates.
        amiss: what to do if ``capath`` has no certificates.

    Raises:
        ConfigurationError: the environment names no proper web proxy.
    """
    found = http_proxy.find_web_proxy(endpoint, environment)
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
