# SPDX-License-Identifier: Apache-2.0
"""Through an HTTP proxy to the service: which one the environment names, and how to ask it for a connection.

The result is a socket, on which TLS with the service comes next. Where TLS with the proxy is underneath, it is one end
of a socket pair: asyncio starts TLS on top of TLS only since Python 3.11.

Source: RFC 9110, section 9.3.6 (CONNECT); RFC 7617 (basic authentication).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import ConfigurationError
from ..names import format_host_port, split_host_port
from . import socket_options
from .certificate_dates import NOT_YET_VALID, explain_dates, is_of_dates, read_validity
from .endpoint import Endpoint
from .happy_eyeballs import open_socket
from .reasons import handshake_reason, reason

__all__ = ["WebProxy", "WebProxyError", "find_web_proxy", "open_tunnel"]

PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY")
"""The lower-case one wins, as in the reference, even where it is empty: that turns the other one off."""

EXCEPTION_VARIABLES = ("no_proxy", "NO_PROXY")

DEFAULT_PORT = 3128
LONGEST_ANSWER = 16 * 1024

_UNAUTHENTICATED = (407, 401)
"""RFC 9110 has 407; tinyproxy 1.11 says 401 to a wrong password."""

_CHALLENGES = re.compile(rb"^(?:Proxy|WWW)-Authenticate:([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
"""Source: RFC 9110, section 11.7.1: schemes with their parameters, several of either with commas between."""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCHEME = re.compile(r"[A-Za-z0-9-]{1,40}\Z")

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")


class WebProxyError(Exception):
    """A web proxy gave no connection.

    Attributes:
        permanent: whether another attempt will fail likewise until somebody changes something.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True)
class WebProxy:
    """An HTTP proxy.

    Attributes:
        tls: whether the connection to it is by TLS.
        variable: the environment variable that named it.
        credentials: ``user:password``, where it wants them.
    """

    host: str
    port: int
    tls: bool
    variable: str
    credentials: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return format_host_port(self.host, self.port)


def find_web_proxy(endpoint: Endpoint, environment: Mapping[str, str]) -> WebProxy | None:
    """The web proxy that the environment names for an endpoint, if any.

    Raises:
        ConfigurationError: what it names is no web proxy; the text names the variable, and not its value, which may
            hold a password.
    """
    variable = next((name for name in PROXY_VARIABLES if name in environment), None)
    if variable is None or not environment[variable].strip():
        return None
    exceptions = next((environment[name] for name in EXCEPTION_VARIABLES if name in environment), "")
    if _is_excepted(endpoint, exceptions):
        return None
    return _parse(environment[variable].strip(), variable)


def _parse(url: str, variable: str) -> WebProxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, SplitResult("http", "", "", "", "")
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{variable}: {parts.scheme}:// is not supported: give http://… or https://…")
    if not host or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{variable} does not name a web proxy: give http://HOST:PORT or https://HOST:PORT, where needed with "
            "USER:PASSWORD@ before HOST (of these, encode / as %2F, # as %23, ? as %3F, @ as %40)"
        )
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return WebProxy(host, port or DEFAULT_PORT, parts.scheme == "https", variable, credentials)


def _is_excepted(endpoint: Endpoint, exceptions: str) -> bool:
    """Whether ``NO_PROXY`` holds an endpoint: by ``*``, a host, the end of its name, an address, or a network."""
    return any(_matches(endpoint, item.strip().lower()) for item in exceptions.split(",") if item.strip())


def _matches(endpoint: Endpoint, item: str) -> bool:
    if item == "*":
        return True
    host = endpoint.host.lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(item.strip("[]"), strict=False)
    except ValueError:
        pass
    item, port = split_host_port(item)
    if port is not None and (not port.isdigit() or int(port) != endpoint.port):
        return False
    item = item.strip("[]").lstrip("*").lstrip(".")
    return host == item or host.endswith(f".{item}")


async def open_tunnel(proxy: WebProxy, tls: ssl.SSLContext | None, endpoint: Endpoint) -> socket.socket:
    """Have a web proxy connect to an endpoint.

    Args:
        tls: for the connection to the proxy; None for one without TLS.

    Returns:
        A socket, in non-blocking mode, that leads to the endpoint.

    Raises:
        WebProxyError: the proxy cannot be reached, or refuses.
    """
    sock = await _connect(proxy)
    try:
        if tls is not None:
            sock = await _wrap(sock, proxy, tls)
        _check(await _ask(sock, proxy, endpoint), proxy, endpoint)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(proxy: WebProxy) -> socket.socket:
    try:
        sock = await open_socket(proxy.host, proxy.port)
    except OSError as error:
        raise WebProxyError(f"cannot reach the web proxy {proxy} ({proxy.variable}): {reason(error)}") from None
    socket_options.tune(sock)
    return sock


class _Splice(asyncio.Protocol):
    """One side of two connections that are joined: what comes here goes out there."""

    def __init__(self) -> None:
        self.other = self
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=socket_options.SEND_BUFFER, low=socket_options.SEND_BUFFER // 4)

    def data_received(self, data: bytes) -> None:
        if self.other._transport is not None:
            self.other._transport.write(data)

    def pause_writing(self) -> None:
        if self.other._transport is not None and not self.other._transport.is_closing():
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other._transport is not None and not self.other._transport.is_closing():
            self.other._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other._transport is not None:
            self.other._transport.close()


async def _wrap(sock: socket.socket, proxy: WebProxy, tls: ssl.SSLContext) -> socket.socket:
    """Put TLS with the proxy around a socket: the plain text is on the one that is returned."""
    loop = asyncio.get_running_loop()
    near, far = _Splice(), _Splice()
    near.other, far.other = far, near
    ours, inner = socket.socketpair()
    for end in (ours, inner):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, socket_options.SEND_BUFFER)
    try:
        joined, _ = await loop.create_unix_connection(lambda: near, sock=inner)
        try:
            await loop.create_connection(lambda: far, sock=sock, ssl=tls, server_hostname=proxy.host)
        except BaseException:
            joined.close()
            raise
    except ssl.SSLCertVerificationError as error:
        ours.close()
        raise await _certificate_refused(error, proxy, tls) from None
    except OSError as error:
        ours.close()
        raise WebProxyError(
            f"no TLS with the web proxy {proxy}: {handshake_reason(error)} (if it wants none, give http:// in "
            f"{proxy.variable})"
        ) from None
    except BaseException:
        ours.close()
        raise
    return ours


async def _certificate_refused(
    error: ssl.SSLCertVerificationError, proxy: WebProxy, tls: ssl.SSLContext
) -> WebProxyError:
    if is_of_dates(error):
        try:
            validity = await asyncio.to_thread(read_validity, await _connect(proxy), proxy.host, tls)
        except WebProxyError:
            validity = None
        words = f"the certificate of the web proxy {proxy} {explain_dates(error.verify_code, validity)}"
        return WebProxyError(words, permanent=error.verify_code != NOT_YET_VALID)
    return WebProxyError(
        f"the certificate of the web proxy {proxy} cannot be verified ({error.verify_message.rstrip('.')}): pass its "
        "CA certificate with -c/--capath or AWSIOT_TUNNEL_CAPATH, or add it to the system's",
        permanent=True,
    )


async def _ask(sock: socket.socket, proxy: WebProxy, endpoint: Endpoint) -> bytes:
    """Send the request; return the head of the answer."""
    loop = asyncio.get_running_loop()
    request = f"CONNECT {endpoint} HTTP/1.1\r\nHost: {endpoint}\r\n"
    if proxy.credentials is not None:
        request += f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}\r\n"
    answer = b""
    try:
        await loop.sock_sendall(sock, f"{request}\r\n".encode())
        while b"\r\n\r\n" not in answer and len(answer) < LONGEST_ANSWER:
            some = await loop.sock_recv(sock, 4096)
            if not some:
                break
            answer += some
    except OSError as error:
        raise WebProxyError(f"the connection to the web proxy {proxy} broke: {reason(error)}") from None
    return answer


def _schemes(answer: bytes) -> list[str]:
    """The ways to authenticate that a refusal offers, by their names."""
    schemes: dict[str, None] = {}
    for line in _CHALLENGES.finditer(answer):
        for challenge in _QUOTED.sub("", line[1].decode("latin-1")).split(","):
            word = challenge.split()[:1]
            if word and _SCHEME.match(word[0]):
                schemes[word[0]] = None
    return list(schemes)


def _check(answer: bytes, proxy: WebProxy, endpoint: Endpoint) -> None:
    if not answer:
        raise WebProxyError(f"the web proxy {proxy} ended the connection without an answer")
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise WebProxyError(
            f"what answers at {proxy} ({proxy.variable}) is no HTTP proxy; if it wants TLS, give https://",
            permanent=True,
        )
    status = int(line[1])
    said = f"{status} {(line[2] or b'').decode('ascii', 'replace')}".strip()[:100]
    if 200 <= status < 300:
        if not answer.endswith(b"\r\n\r\n"):
            raise WebProxyError(f"the web proxy {proxy} sent something of its own into the connection")
    elif status in _UNAUTHENTICATED and (offered := _schemes(answer)) and "basic" not in map(str.lower, offered):
        raise WebProxyError(
            f"the web proxy {proxy} offers only {' and '.join(offered)} to authenticate ({said}), which tunnelproxy "
            f"cannot do: run a local proxy that can, such as cntlm or px, and name that one in {proxy.variable}",
            permanent=True,
        )
    elif status in _UNAUTHENTICATED and proxy.credentials is None:
        raise WebProxyError(
            f"the web proxy {proxy} wants a user and a password ({said}): put USER:PASSWORD@ before its host in "
            f"{proxy.variable}",
            permanent=True,
        )
    elif status in _UNAUTHENTICATED:
        raise WebProxyError(
            f"the web proxy {proxy} does not accept the user and password in {proxy.variable} ({said})", permanent=True
        )
    elif status == 403:
        raise WebProxyError(
            f"the web proxy {proxy} does not allow connections to {endpoint} ({said}): ask who runs it, or put the "
            "host into no_proxy, where there is a way without",
            permanent=True,
        )
    elif status >= 500:
        raise WebProxyError(f"the web proxy {proxy} does not reach {endpoint} ({said})")
    else:
        raise WebProxyError(f"the web proxy {proxy} does not connect to {endpoint} ({said})", permanent=True)
