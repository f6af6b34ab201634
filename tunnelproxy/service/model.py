# SPDX-License-Identifier: Apache-2.0
"""Tunnels, tokens, things and access keys, as data."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..protocol.session import Mode
from .errors import ServiceError

__all__ = [
    "DEFAULT_LIFETIME",
    "AccessKey",
    "AccessToken",
    "Credentials",
    "EndState",
    "Identity",
    "Mode",
    "NewTunnel",
    "Thing",
    "Tunnel",
    "check_key_name",
    "digest",
    "new_access_token",
    "new_key_pair",
]

DEFAULT_LIFETIME = 720
"""The default lifetime of a tunnel, in minutes; also the maximum."""

_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN_BYTES = 48


@dataclass(frozen=True)
class NewTunnel:
    """The parameters of ``OpenTunnel``. ``lifetime`` is in minutes."""

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
    """An enrolled device. ``version`` grows with each change."""

    name: str
    thing_type: str | None
    attributes: dict[str, str]
    version: int


@dataclass(frozen=True)
class EndState:
    """Whether an end of a tunnel is connected, and when that last changed (seconds since the epoch)."""

    connected: bool
    updated_at: float


@dataclass(frozen=True)
class AccessToken:
    """What is stored about an access token: everything except the token itself."""

    tunnel_id: str
    mode: Mode
    used: bool
    revoked: bool
    client_token_digest: bytes | None = field(repr=False)
    issued_to: str | None = None
    """The name of the access key whose request created it."""


@dataclass(frozen=True)
class Credentials:
    """A key pair that signs requests to the control API."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True)
class AccessKey:
    """A key pair, its name and its permissions.

    Attributes:
        name: the operator's name for it, which the audit log records.
        credentials: the pair that signs requests.
        read_only: whether it allows only reading.
        things: shell-style patterns of the things that it may access. If empty, it may access all things, and also
            tunnels without a thing.
    """

    name: str
    credentials: Credentials
    read_only: bool = False
    things: tuple[str, ...] = ()

    def covers(self, thing_name: str | None) -> bool:
        """Whether it may access the tunnels of a thing; None for a tunnel without a thing."""
        if not self.things:
            return True
        return thing_name is not None and any(fnmatchcase(thing_name, pattern) for pattern in self.things)


@dataclass(frozen=True)
class Identity:
    """The account and region in the service's ARNs and signatures."""

    account_id: str
    region: str

    def arn(self, tunnel_id: str) -> str:
        """The Amazon Resource Name of a tunnel."""
        return f"arn:aws:iot:{self.region}:{self.account_id}:tunnel/{tunnel_id}"

    def thing_arn(self, thing_name: str) -> str:
        """The Amazon Resource Name of a thing."""
        return f"arn:aws:iot:{self.region}:{self.account_id}:thing/{thing_name}"

    def tunnel_id(self, arn: str) -> str | None:
        """The ID of the tunnel that an ARN of this service names, or None."""
        prefix = self.arn("")
        return arn[len(prefix) :] if arn.startswith(prefix) and len(arn) > len(prefix) else None


def new_access_token() -> str:
    """A token of 384 random bits, which cannot be guessed: storing a plain SHA-256 of it is enough.

    It starts with a letter, like AWS's: after ``-t``, a token that starts with a hyphen would be parsed as an option.
    """
    return "AQ" + secrets.token_urlsafe(_TOKEN_BYTES)


def new_key_pair() -> Credentials:
    """A key pair with the alphabets and lengths of AWS's key pairs, which some clients check."""
    return Credentials(
        "AKIA" + _random(string.ascii_uppercase + "234567", 16), _random(string.ascii_letters + string.digits, 40)
    )


def check_key_name(name: str) -> None:
    """Check that a name is valid in an ARN and as the name of an AWS profile.

    Raises:
        ServiceError: it cannot.
    """
    if not _KEY_NAME.fullmatch(name):
        raise ServiceError(
            f"{name!r} cannot be the name of an access key: use 1 to 64 letters, digits, dots, hyphens and underscores"
        )


def digest(token: str) -> bytes:
    """The SHA-256 of a token, the only form in which the service stores it."""
    return hashlib.sha256(token.encode()).digest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
