# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of clients, with a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tunnelproxy.service.data_plane.connected_clients import ConnectedClients
from tunnelproxy.service.data_plane.handshake import Cause, HandshakeRejected
from tunnelproxy.service.events import Connected, Disconnected, Event, Refused
from tunnelproxy.service.model import Mode, Tunnel

TUNNEL = Tunnel(1, "t-1", None, "pump", ("SSH1",), 720, True, 0.0, 0.0, 43_200.0)


@dataclass(eq=False)
class Someone:
    channel_id: str = "c-1"
    address: str | None = "192.0.2.7"
    mode: Mode = Mode.SOURCE
    version: int = 3
    bytes_received: int = 0
    bytes_sent: int = 0
    ending: str = "1000"


class Books:
    def __init__(self) -> None:
        self.now = 10.0
        self.events: list[Event] = []
        self.connected_clients = ConnectedClients(self.events.append, lambda: self.now)


def test_a_client_is_on_record_from_when_it_comes_to_when_it_leaves() -> None:
    books, client = Books(), Someone()
    books.connected_clients.joined(client, TUNNEL, "ci")
    assert books.connected_clients.ends() == Counter({("source", 3): 1})
    client.bytes_received, client.bytes_sent = 7, 9
    books.now += 2.5
    books.connected_clients.left(client)
    assert books.events == [
        Connected("c-1", "192.0.2.7", "ci", "pump", "t-1", "source", 3),
        Disconnected("c-1", "192.0.2.7", "ci", "pump", "t-1", "source", 3, "1000", 7, 9, 2.5),
    ]
    assert books.connected_clients.ends() == Counter()


def test_what_went_through_is_counted_while_clients_are_there_and_after() -> None:
    books = Books()
    one, other = Someone(bytes_received=10), Someone(mode=Mode.DESTINATION, bytes_received=100)
    books.connected_clients.joined(one, TUNNEL, None)
    books.connected_clients.joined(other, TUNNEL, None)
    books.connected_clients.left(one)
    books.connected_clients.joined(Someone(bytes_received=5), TUNNEL, None)
    assert books.connected_clients.relayed() == Counter({"source": 15, "destination": 100})


def test_a_refusal_names_the_tunnel_where_the_token_is_known() -> None:
    books = Books()
    books.connected_clients.refused(Someone(), HandshakeRejected(Cause.TOKEN_UNKNOWN, "no"))
    known = HandshakeRejected(Cause.TOKEN_USED, "no")
    known.tunnel, known.key = TUNNEL, "ci"
    books.connected_clients.refused(Someone(), known)
    assert books.events == [
        Refused("c-1", "192.0.2.7", None, None, None, "token-unknown", "no"),
        Refused("c-1", "192.0.2.7", "ci", "pump", "t-1", "token-used", "no"),
    ]
