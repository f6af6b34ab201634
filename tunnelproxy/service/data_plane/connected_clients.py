# SPDX-License-Identifier: Apache-2.0
"""Who is connected to the data plane, since when, and how much went through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..events import Connected, Disconnected, EventHandler, Refused
from ..model import Mode, Tunnel
from .handshake import HandshakeRejected

__all__ = ["Client", "ConnectedClients"]


class Client(Protocol):
    """What is on record of a client."""

    channel_id: str
    address: str | None
    mode: Mode
    version: int
    bytes_received: int
    bytes_sent: int

    @property
    def ending(self) -> str:
        """How its connection ended."""


@dataclass(frozen=True)
class _Entry:
    tunnel: Tunnel
    key: str | None
    since: float


class ConnectedClients:
    """Keeps account of clients.

    Args:
        notify: is told of every client that comes, leaves, or is refused.
        clock: gives seconds, and never goes back.
    """

    def __init__(self, notify: EventHandler, clock: Callable[[], float]) -> None:
        self._notify = notify
        self._clock = clock
        self._entries: dict[Client, _Entry] = {}
        self._relayed: Counter[str] = Counter()

    def joined(self, client: Client, tunnel: Tunnel, key: str | None) -> None:
        """A client joined a tunnel, with a token that was made for an access key."""
        self._entries[client] = _Entry(tunnel, key, self._clock())
        self._notify(
            Connected(
                client.channel_id,
                client.address,
                key,
                tunnel.thing_name,
                tunnel.tunnel_id,
                client.mode.value,
                client.version,
            )
        )

    def left(self, client: Client) -> None:
        """A client that had joined is gone."""
        entry = self._entries.pop(client)
        self._relayed[client.mode.value] += client.bytes_received
        self._notify(
            Disconnected(
                client.channel_id,
                client.address,
                entry.key,
                entry.tunnel.thing_name,
                entry.tunnel.tunnel_id,
                client.mode.value,
                client.version,
                client.ending,
                client.bytes_received,
                client.bytes_sent,
                self._clock() - entry.since,
            )
        )

    def refused(self, client: Client, refusal: HandshakeRejected) -> None:
        """A client was refused."""
        tunnel = refusal.tunnel
        self._notify(
            Refused(
                client.channel_id,
                client.address,
                refusal.key,
                None if tunnel is None else tunnel.thing_name,
                None if tunnel is None else tunnel.tunnel_id,
                refusal.cause.value,
                refusal.sentence,
            )
        )

    def ends(self) -> Counter[tuple[str, int]]:
        """How many clients are connected, by mode and version of the protocol."""
        return Counter((client.mode.value, client.version) for client in self._entries)

    def relayed(self) -> Counter[str]:
        """How many bytes have come from sources and from destinations since the start."""
        total = Counter(self._relayed)
        for client in self._entries:
            total[client.mode.value] += client.bytes_received
        return total
