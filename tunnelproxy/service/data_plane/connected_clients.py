# SPDX-License-Identifier: Apache-2.0
"""The account of the data plane's clients: who is connected since when, and how much they have sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ...protocol.session import Mode, Version
from ..events import Connected, Disconnected, EventHandler, Refused
from ..model import Tunnel
from .handshake import HandshakeRejected

__all__ = ["Client", "ConnectedClients"]


@dataclass(eq=False)
class Client:
    """What is on record of a client that has joined a tunnel.

    Attributes:
        channel_id: the name of its connection.
        key: the name of the access key whose request created its access token.
        version: the version of the protocol that it speaks.
        bytes_received: payload of its WebSocket messages.
        bytes_sent: payload of the WebSocket messages sent to it.
    """

    channel_id: str
    address: str | None
    tunnel: Tunnel
    key: str | None
    mode: Mode
    version: Version
    bytes_received: int = 0
    bytes_sent: int = 0


class ConnectedClients:
    """Keeps the account.

    Args:
        notify: called with an event for each client that connects, disconnects, or is rejected.
        clock: returns seconds, monotonic.
    """

    def __init__(self, notify: EventHandler, clock: Callable[[], float]) -> None:
        self._notify = notify
        self._clock = clock
        self._since: dict[Client, float] = {}
        self._relayed: Counter[str] = Counter()
        """Bytes from clients that have disconnected, by mode."""

    def joined(self, client: Client) -> None:
        """A client has joined its tunnel."""
        self._since[client] = self._clock()
        self._notify(
            Connected(
                client.channel_id,
                client.address,
                client.key,
                client.tunnel.thing_name,
                client.tunnel.tunnel_id,
                client.mode.value,
                client.version.value,
            )
        )

    def left(self, client: Client, outcome: str) -> None:
        """A client that had joined has disconnected.

        Args:
            outcome: the code and reason of the WebSocket's end, or that there was none.
        """
        since = self._since.pop(client)
        self._relayed[client.mode.value] += client.bytes_received
        self._notify(
            Disconnected(
                client.channel_id,
                client.address,
                client.key,
                client.tunnel.thing_name,
                client.tunnel.tunnel_id,
                client.mode.value,
                client.version.value,
                outcome,
                client.bytes_received,
                client.bytes_sent,
                self._clock() - since,
            )
        )

    def rejected(self, channel_id: str, address: str | None, rejection: HandshakeRejected) -> None:
        """A client's handshake was rejected."""
        tunnel = rejection.tunnel
        self._notify(
            Refused(
                channel_id,
                address,
                rejection.key,
                None if tunnel is None else tunnel.thing_name,
                None if tunnel is None else tunnel.tunnel_id,
                rejection.cause.value,
                rejection.sentence,
            )
        )

    def ends(self) -> Counter[tuple[str, int]]:
        """How many clients are connected, by mode and version of the protocol."""
        return Counter((client.mode.value, client.version.value) for client in self._since)

    def relayed(self) -> Counter[str]:
        """How many bytes sources and destinations have sent since the start, by mode."""
        total = Counter(self._relayed)
        for client in self._since:
            total[client.mode.value] += client.bytes_received
        return total
