# SPDX-License-Identifier: Apache-2.0
"""A control process's answers to the hub: :mod:`.aws_api` creates them, and :mod:`.control_process` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EndStates", "FoundTunnel", "Identity"]


@dataclass(frozen=True)
class Identity:
    """The account that a caller's calls go to.

    Attributes:
        key: the account's key.
        known_by: a digest of the access key, region and endpoint that determine it.
        watch: fingerprints of the files that determine it.
        lasts: whether it stays the same as long as these files do.
    """

    key: str
    known_by: str
    watch: Mapping[str, str]
    lasts: bool


@dataclass(frozen=True)
class EndStates:
    """The state of a tunnel according to DescribeTunnel.

    Attributes:
        tunnel: ``OPEN``, ``CLOSED``, ``GONE`` if the service does not know it, or empty if the state is unknown.
        destination: ``connected``, ``disconnected``, or ``unknown``.
        owner: the owner who opened it or took it over.
    """

    tunnel: str = ""
    destination: str = "unknown"
    arn: str = ""
    owner: str = ""


@dataclass(frozen=True)
class FoundTunnel:
    """An open tunnel, with an unused source token.

    Attributes:
        expires_at: when it expires, in seconds since the epoch.
        taken_from: the previous owner, if that was another one.
    """

    tunnel_id: str
    arn: str
    region: str
    services: tuple[str, ...]
    expires_at: float | None
    source_token: str = field(repr=False)
    taken_from: str = ""

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> FoundTunnel:
        """Convert it back from JSON."""
        return cls(**{**answer, "services": tuple(answer["services"])})
