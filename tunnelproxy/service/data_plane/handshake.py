# SPDX-License-Identifier: Apache-2.0
"""Reads a client's WebSocket handshake, and rejects it in words for people and in a cause for programs.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "WebSocket handshake".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers

from ...names import CLIENT_TOKEN
from ...protocol.session import Mode
from ..model import Tunnel

__all__ = [
    "CAUSE_HEADER",
    "CHANNEL_HEADER",
    "MAX_REQUEST",
    "Cause",
    "Handshake",
    "HandshakeRejected",
    "RequestReader",
    "read_handshake",
]

CAUSE_HEADER = "x-iotops-cause"
"""Response header of a rejected handshake, with a :class:`Cause`. AWS has no such header, and also gives the reason for
people in the body."""

CHANNEL_HEADER = "channel-id"
"""Response header that names the connection, as the logs do, AWS's and this service's."""

MAX_REQUEST = 4096
"""Bytes that a handshake request may have."""

_END_OF_REQUEST = b"\r\n\r\n"
_COOKIE = "awsiot-tunnel-token"


class Cause(str, Enum):
    """Why a handshake is rejected, in words that do not change."""

    BAD_REQUEST = "bad-request"
    TOKEN_UNKNOWN = "token-unknown"  # noqa: S105  the name of a cause, not a token
    TOKEN_USED = "token-used"  # noqa: S105  the name of a cause, not a token
    TUNNEL_CLOSED = "tunnel-closed"
    UNAVAILABLE = "unavailable"
    WRONG_MODE = "wrong-mode"


class HandshakeRejected(Exception):
    """The handshake is rejected.

    Args:
        cause: the reason, for programs.
        sentence: the reason, for people: it is sent to the client, and logged.
        status: the HTTP status: 4xx if a client should not retry unchanged, 5xx for an error of the service.

    Attributes:
        tunnel: the tunnel of its access token, if that is known.
        key: the name of the access key whose request created the token.
    """

    def __init__(self, cause: Cause, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence
        self.status = status
        self.tunnel: Tunnel | None = None
        self.key: str | None = None


@dataclass(frozen=True)
class Handshake:
    """A handshake request."""

    mode: Mode
    access_token: str = field(repr=False)
    client_token: str | None = field(repr=False)


class RequestReader:
    """Collects the bytes of a handshake request."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Add received bytes.

        Returns:
            the request and the bytes that follow it, or None while it is incomplete.

        Raises:
            HandshakeRejected: it is larger than :data:`MAX_REQUEST`.
        """
        self._data += data
        end = self._data.find(_END_OF_REQUEST)
        size = len(self._data) if end < 0 else end + len(_END_OF_REQUEST)
        if size > MAX_REQUEST:
            raise HandshakeRejected(Cause.BAD_REQUEST, f"Invalid request: it is larger than {MAX_REQUEST} bytes.")
        return None if end < 0 else (self._data[:size], self._data[size:])


def read_handshake(target: str, headers: Headers) -> Handshake:
    """Read a handshake request.

    Args:
        target: the request's path and query.
        headers: its headers.

    Raises:
        HandshakeRejected: something is missing, given twice, or malformed. The sentence never contains a token.
    """
    try:
        url = urlsplit(target)
    except ValueError:
        # For example "//[", the beginning of an IPv6 address.
        raise HandshakeRejected(Cause.BAD_REQUEST, "Invalid path: it is not a URL.") from None
    if url.path != "/tunnel":
        raise HandshakeRejected(Cause.BAD_REQUEST, "Invalid path: tunnels are at /tunnel.")
    return Handshake(_mode(url.query), _access_token(headers), _client_token(headers))


def _mode(query: str) -> Mode:
    given = parse_qs(query, keep_blank_values=True).get("local-proxy-mode", [])
    try:
        (mode,) = given
        return Mode(mode)
    except ValueError:
        raise HandshakeRejected(
            Cause.BAD_REQUEST, "Invalid local-proxy-mode: give it once, as source or as destination."
        ) from None


def _access_token(headers: Headers) -> str:
    tokens = [*headers.get_all("access-token"), *_cookies(headers)]
    if len(tokens) != 1 or "," in tokens[0]:
        raise HandshakeRejected(
            Cause.BAD_REQUEST,
            f"Invalid access token: give exactly one, as header access-token or as cookie {_COOKIE}.",
        )
    return tokens[0]


def _cookies(headers: Headers) -> list[str]:
    # http.cookies keeps only the last of several cookies of one name, so it would not notice the others.
    pairs = (pair.partition("=") for line in headers.get_all("Cookie") for pair in line.split(";"))
    return [value.strip().strip('"') for name, _, value in pairs if name.strip() == _COOKIE]


def _client_token(headers: Headers) -> str | None:
    tokens = headers.get_all("client-token")
    if not tokens:
        return None
    if len(tokens) > 1:
        raise HandshakeRejected(Cause.BAD_REQUEST, "Invalid client token: give one at most.")
    if not CLIENT_TOKEN.match(tokens[0]):
        raise HandshakeRejected(
            Cause.BAD_REQUEST, "Invalid client token: it is 32 to 128 letters, digits and hyphens; a UUIDv4 is one."
        )
    return tokens[0]
