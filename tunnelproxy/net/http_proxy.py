# SPDX-License-Identifier: Apache-2.0
"""Connect through an HTTP proxy: which one the environment names, and how to ask it for a connection.

The result is a socket, on which TLS with the service starts. If the connection to the proxy itself uses TLS, that
socket is one end of a socket pair: asyncio supports TLS within TLS only since Python 3.11.

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

__all__ = ["HttpProxy", "HttpProxyError", "find_http_proxy", "open_tunnel"]

_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY")
"""The lower-case one wins, as in the reference, even if it is empty: that turns the other one off."""

_EXCEPTION_VARIABLES = ("no_proxy", "NO_PROXY")

_DEFAULT_PORT = 3128
_LONGEST_ANSWER = 16 * 1024
_LOOK_SECONDS = 10.0

_UNAUTHENTICATED = (407, 401)
"""The status of RFC 9110 is 407; tinyproxy 1.11 answers 401 to a wrong password."""

_CHALLENGES = re.compile(rb"^(?:Proxy|WWW)-Authenticate:([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
"""Source: RFC 9110, section 11.7.1: schemes with their parameters, both separated by commas."""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SCHEME = re.compile(r"[A-Za-z0-9-]{1,40}\Z")

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")


class HttpProxyError(Exception):
    """An HTTP proxy did not connect to the service.

    Attributes:
        permanent: whether retrying is useless until somebody changes something.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@dataclass(frozen=True)
class HttpProxy:
    """An HTTP proxy.

    Attributes:
        tls: whether to connect to it with TLS.
        variable: the environment variable that names it.
        credentials: ``user:password``; None if the variable has none.
    """

    host: str
    port: int
    tls: bool
    variable: str
    credentials: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return format_host_port(self.host, self.port)


def find_http_proxy(endpoint: Endpoint, environment: Mapping[str, str]) -> HttpProxy | None:
    """The HTTP proxy that the environment names for an endpoint; None if there is none.

    Raises:
        ConfigurationError: the variable does not name an HTTP proxy. The text has the variable's name but not its
            value, which may contain a password.
    """
    variable = next((name for name in _PROXY_VARIABLES if name in environment), None)
    if variable is None or not environment[variable].strip():
        return None
    exceptions = next((environment[name] for name in _EXCEPTION_VARIABLES if name in environment), "")
    if _is_excepted(endpoint, exceptions):
        return None
    return _parse(environment[variable].strip(), variable)


def _parse(url: str, variable: str) -> HttpProxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, SplitResult("http", "", "", "", "")
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{variable}: {parts.scheme}:// is not supported: give http://… or https://…")
    if not host or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{variable} does not name an HTTP proxy: give http://HOST:PORT or https://HOST:PORT, if needed with "
            "USER:PASSWORD@ before HOST (in these, encode / as %2F, # as %23, ? as %3F, @ as %40)"
        )
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return HttpProxy(host, port or _DEFAULT_PORT, parts.scheme == "https", variable, credentials)


def _is_excepted(endpoint: Endpoint, exceptions: str) -> bool:
    """Whether ``NO_PROXY`` matches an endpoint: by ``*``, a host name, a parent domain, an address, or a network."""
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


async def open_tunnel(proxy: HttpProxy, tls: ssl.SSLContext | None, endpoint: Endpoint) -> socket.socket:
    """Connect to an endpoint through an HTTP proxy, with CONNECT.

    Args:
        tls: for the connection to the proxy; None for plain TCP.

    Returns:
        a non-blocking socket that is connected to the endpoint.

    Raises:
        HttpProxyError: the proxy cannot be reached, or rejects the request.
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


async def _connect(proxy: HttpProxy) -> socket.socket:
    try:
        sock = await open_socket(proxy.host, proxy.port)
    except OSError as error:
        raise HttpProxyError(f"cannot reach the HTTP proxy {proxy} ({proxy.variable}): {reason(error)}") from None
    socket_options.limit_unsent(sock, socket_options.SEND_BUFFER)
    return sock


class _Splice(asyncio.Protocol):
    """One side of two joined connections: what arrives on one is written to the other."""

    def __init__(self) -> None:
        self.other = self
        self._transport: asyncio.Transport | None = None
        self._looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=socket_options.SEND_BUFFER, low=socket_options.SEND_BUFFER // 4)
        self._look_for_lost_proxy(socket_options.UnansweredData(transport.get_extra_info("socket")))

    def _look_for_lost_proxy(self, unanswered: socket_options.UnansweredData) -> None:
        """Regularly check that the peer acknowledges what is sent. The user of the joined connections cannot."""
        if self._transport is None:
            return
        if unanswered.seconds() > socket_options.DEAD_SECONDS:
            self._transport.abort()
            return
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_for_lost_proxy, unanswered)

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
        if self._looking is not None:
            self._looking.cancel()
        if self.other._transport is not None:
            self.other._transport.close()


async def _wrap(sock: socket.socket, proxy: HttpProxy, tls: ssl.SSLContext) -> socket.socket:
    """Start TLS with the proxy on a socket; the returned socket carries the plain text."""
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
        raise HttpProxyError(
            f"no TLS with the HTTP proxy {proxy}: {handshake_reason(error)} (if it does not use TLS, give http:// in "
            f"{proxy.variable})"
        ) from None
    except BaseException:
        ours.close()
        raise
    return ours


async def _certificate_refused(
    error: ssl.SSLCertVerificationError, proxy: HttpProxy, tls: ssl.SSLContext
) -> HttpProxyError:
    if is_of_dates(error):
        try:
            validity = await asyncio.to_thread(read_validity, await _connect(proxy), proxy.host, tls)
        except HttpProxyError:
            validity = None
        words = f"the certificate of the HTTP proxy {proxy} {explain_dates(error.verify_code, validity)}"
        return HttpProxyError(words, permanent=error.verify_code != NOT_YET_VALID)
    return HttpProxyError(
        f"the certificate of the HTTP proxy {proxy} cannot be verified ({error.verify_message.rstrip('.')}): pass its "
        "CA certificate with -c/--capath or AWSIOT_TUNNEL_CAPATH, or add it to the system's",
        permanent=True,
    )


async def _ask(sock: socket.socket, proxy: HttpProxy, endpoint: Endpoint) -> bytes:
    """Send the request, and return the head of the response."""
    loop = asyncio.get_running_loop()
    request = f"CONNECT {endpoint} HTTP/1.1\r\nHost: {endpoint}\r\n"
    if proxy.credentials is not None:
        request += f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}\r\n"
    answer = b""
    try:
        await loop.sock_sendall(sock, f"{request}\r\n".encode())
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
            some = await loop.sock_recv(sock, 4096)
            if not some:
                break
            answer += some
    except OSError as error:
        raise HttpProxyError(f"the connection to the HTTP proxy {proxy} broke: {reason(error)}") from None
    return answer


def _schemes(answer: bytes) -> list[str]:
    """The authentication schemes that a response offers."""
    schemes: dict[str, None] = {}
    for line in _CHALLENGES.finditer(answer):
        for challenge in _QUOTED.sub("", line[1].decode("latin-1")).split(","):
            word = challenge.split()[:1]
            if word and _SCHEME.match(word[0]):
                schemes[word[0]] = None
    return list(schemes)


def _check(answer: bytes, proxy: HttpProxy, endpoint: Endpoint) -> None:
    if not answer:
        raise HttpProxyError(f"the HTTP proxy {proxy} closed the connection without an answer")
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise HttpProxyError(
            f"what answers at {proxy} ({proxy.variable}) is not an HTTP proxy; if it requires TLS, give https://",
            permanent=True,
        )
    status = int(line[1])
    said = f"{status} {(line[2] or b'').decode('ascii', 'replace')}".strip()[:100]
    if 200 <= status < 300:
        if not answer.endswith(b"\r\n\r\n"):
            raise HttpProxyError(f"the HTTP proxy {proxy} added data of its own to the connection")
    elif status in _UNAUTHENTICATED and (offered := _schemes(answer)) and "basic" not in map(str.lower, offered):
        raise HttpProxyError(
            f"the HTTP proxy {proxy} offers only {' and '.join(offered)} to authenticate ({said}), which tunnelproxy "
            f"cannot do: run a local proxy that can, such as cntlm or px, and name that one in {proxy.variable}",
            permanent=True,
        )
    elif status in _UNAUTHENTICATED and proxy.credentials is None:
        raise HttpProxyError(
            f"the HTTP proxy {proxy} requires a user and a password ({said}): put USER:PASSWORD@ before its host in "
            f"{proxy.variable}",
            permanent=True,
        )
    elif status in _UNAUTHENTICATED:
        raise HttpProxyError(
            f"the HTTP proxy {proxy} does not accept the user and password in {proxy.variable} ({said})", permanent=True
        )
    elif status == 403:
        raise HttpProxyError(
            f"the HTTP proxy {proxy} does not allow connections to {endpoint} ({said}): ask whoever runs it, or, if "
            "the host can be reached without it, add it to no_proxy",
            permanent=True,
        )
    elif status >= 500:
        raise HttpProxyError(f"the HTTP proxy {proxy} does not reach {endpoint} ({said})")
    else:
        raise HttpProxyError(f"the HTTP proxy {proxy} does not connect to {endpoint} ({said})", permanent=True)
