# SPDX-License-Identifier: Apache-2.0
"""Reads what a client asks for in the WebSocket handshake, and says no in a form that people and programs understand.

Source: V3WebSocketProtocolGuide.md of the reference local proxy, "WebSocket handshake".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers

from ...names import CLIENT_TOKEN
from ..model import Mode, Tunnel

__all__ = [
    "CAUSE_HEADER",
    "CHANNEL_HEADER",
    "MAX_REQUEST",
    "SUBPROTOCOLS",
    "Cause",
    "Handshake",
    "HandshakeRejected",
    "read_handshake",
]

CAUSE_HEADER = "x-iotops-cause"
"""Response header of a refusal, with a :class:`Cause`. AWS has no such header; the body is for people there as here."""

CHANNEL_HEADER = "channel-id"
"""Response header that names the connection, in AWS's logs and in ours."""

MAX_REQUEST = 4096
"""Most bytes of a handshake request."""

SUBPROTOCOLS: Mapping[str, int] = {
    "aws.iot.securetunneling-3.0": 3,
    "aws.iot.securetunneling-2.0": 2,
    "aws.iot.securetunneling-1.0": 1,
}
"""Subprotocols by name with their version, the preferred one first."""

_COOKIE = "awsiot-tunnel-token"


class Cause(str, Enum):
    """Why a handshake is refused, in a word that does not change."""

    BAD_REQUEST = "bad-request"
    TOKEN_UNKNOWN = "token-unknown"  # noqa: S105  the name of a cause, not a token
    TOKEN_USED = "token-used"  # noqa: S105  the name of a cause, not a token
    TUNNEL_CLOSED = "tunnel-closed"
    UNAVAILABLE = "unavailable"
    WRONG_MODE = "wrong-mode"


class HandshakeRejected(Exception):
    """The handshake is refused.

    Args:
        cause: the reason, for programs.
        sentence: the reason, for people. It goes to the client, and to the log.
        status: the HTTP status: 4xx, so that clients do not retry unchanged; 5xx for a fault of the service.

    Attributes:
        tunnel: the one that its access token is for, where that is known.
        key: the name of the access key that the token was made for.
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
    """What a client asks for."""

    mode: Mode
    access_token: str = field(repr=False)
    client_token: str | None = field(repr=False)


def read_handshake(target: str, headers: Headers) -> Handshake:
    """Read a handshake request.

    Args:
        target: the request's path and query.
        headers: its headers.

    Raises:
        HandshakeRejected: something is missing, given twice, or malformed. No sentence repeats a token.
    """
    try:
        url = urlsplit(target)
    except ValueError:
        # Such as "//[", where a host's address is begun.
        raise HandshakeRejected(Cause.BAD_REQUEST, "Invalid path: it is no URL.") from None
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
    # http.cookies keeps only the last of several cookies of one name, and they must not pass for one.
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
