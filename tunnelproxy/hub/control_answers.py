# SPDX-License-Identifier: Apache-2.0
"""What a control process answers the hub: :mod:`.aws_api` makes these, and :mod:`.control_process` reads them."""

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
        known_by: a digest of the access key, region and endpoint that lead to it.
        watch: fingerprints of the files that determine it.
        lasts: whether it stays the same as long as these files do.
    """

    key: str
    known_by: str
    watch: Mapping[str, str]
    lasts: bool


@dataclass(frozen=True)
class EndStates:
    """What DescribeTunnel says of a tunnel.

    Attributes:
        tunnel: ``OPEN``, ``CLOSED``, ``GONE`` where the service does not know it, or empty where it is not known.
        destination: ``connected``, ``disconnected``, or ``unknown``.
        owner: who opened it, or took it over.
    """

    tunnel: str = ""
    destination: str = "unknown"
    arn: str = ""
    owner: str = ""


@dataclass(frozen=True)
class FoundTunnel:
    """An open tunnel, with a source token that nobody has used.

    Attributes:
        expires_at: when it expires, in seconds since the epoch.
        taken_from: the owner that it had, if that was another.
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
        """Undo what JSON makes of one."""
        return cls(**{**answer, "services": tuple(answer["services"])})
