# SPDX-License-Identifier: Apache-2.0
"""Tunnels, their ends and their tokens, and things, as data."""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass, field

from ..protocol.session import Mode

__all__ = [
    "DEFAULT_LIFETIME",
    "AccessToken",
    "Credentials",
    "EndState",
    "Identity",
    "Mode",
    "NewTunnel",
    "Thing",
    "Tunnel",
    "digest",
    "new_access_token",
    "new_key_pair",
]

DEFAULT_LIFETIME = 720
"""Minutes that a tunnel lives when ``OpenTunnel`` names no lifetime; also the most it may name."""

_TOKEN_BYTES = 48


@dataclass(frozen=True)
class NewTunnel:
    """What ``OpenTunnel`` asks for. ``lifetime`` is in minutes."""

    description: str | None = None
    thing_name: str | None = None
    services: tuple[str, ...] = ()
    lifetime: int = DEFAULT_LIFETIME
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Tunnel:
    """A tunnel in the store. Times are seconds since the epoch, ``lifetime`` is in minutes."""

    number: int
    tunnel_id: str
    description: str | None
    thing_name: str | None
    services: tuple[str, ...]
    lifetime: int
    is_open: bool
    created_at: float
    updated_at: float
    expires_at: float


@dataclass(frozen=True)
class Thing:
    """A device that is enrolled. ``version`` grows with each change."""

    name: str
    thing_type: str | None
    attributes: dict[str, str]
    version: int


@dataclass(frozen=True)
class EndState:
    """Whether an end of a tunnel is connected, and since when that holds (seconds since the epoch)."""

    connected: bool
    updated_at: float


@dataclass(frozen=True)
class AccessToken:
    """What the store knows of an access token: everything but the token."""

    tunnel_id: str
    mode: Mode
    used: bool
    revoked: bool
    client_token_digest: bytes | None = field(repr=False)
    issued_to: str | None = None
    """The name of the access key whose request made it."""


@dataclass(frozen=True)
class Credentials:
    """The key pair that signs control API requests."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """The account and region that the service's ARNs and signatures name."""

    account_id: str
    region: str

    def arn(self, tunnel_id: str) -> str:
        """The Amazon Resource Name of a tunnel."""
        return f"arn:aws:iot:{self.region}:{self.account_id}:tunnel/{tunnel_id}"

    def thing_arn(self, thing_name: str) -> str:
        """The Amazon Resource Name of a thing."""
        return f"arn:aws:iot:{self.region}:{self.account_id}:thing/{thing_name}"

    def tunnel_id(self, arn: str) -> str | None:
        """The tunnel that an ARN of this service names, or None."""
        prefix = self.arn("")
        return arn[len(prefix) :] if arn.startswith(prefix) and len(arn) > len(prefix) else None


def new_access_token() -> str:
    """A token of 384 random bits: nothing to guess, so a plain SHA-256 is enough to keep of it.

    It starts with a letter, as AWS's do: after ``-t``, one that starts with a hyphen would pass for an option.
    """
    return "AQ" + secrets.token_urlsafe(_TOKEN_BYTES)


def new_key_pair() -> Credentials:
    """A key pair with the alphabets and lengths of AWS's own: some clients check them."""
    return Credentials(
        "AKIA" + _random(string.ascii_uppercase + "234567", 16), _random(string.ascii_letters + string.digits, 40)
    )


def digest(token: str) -> bytes:
    """The SHA-256 of a token: the only form in which the service keeps one."""
    return hashlib.sha256(token.encode()).digest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
