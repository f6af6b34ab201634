# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of clients, with a clock that the test moves."""

from __future__ import annotations

from collections import Counter

from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.service.data_plane.connected_clients import Client, ConnectedClients
from tunnelproxy.service.data_plane.handshake import Cause, HandshakeRejected
from tunnelproxy.service.events import Connected, Disconnected, Event, Refused
from tunnelproxy.service.model import Tunnel

TUNNEL = Tunnel(1, "t-1", None, "pump", ("SSH1",), 720, True, 0.0, 0.0, 43_200.0)


def client(mode: Mode = Mode.SOURCE, key: str | None = None) -> Client:
    return Client("c-1", "192.0.2.7", TUNNEL, key, mode, Version.V3)


class Account:
    def __init__(self) -> None:
        self.now = 10.0
        self.events: list[Event] = []
        self.connected_clients = ConnectedClients(self.events.append, lambda: self.now)


def test_a_client_is_on_record_from_when_it_joins_to_when_it_leaves() -> None:
    account, joined = Account(), client(key="ci")
    account.connected_clients.joined(joined)
    assert account.connected_clients.ends() == Counter({("source", 3): 1})
    joined.bytes_received, joined.bytes_sent = 7, 9
    account.now += 2.5
    account.connected_clients.left(joined, "1000")
    assert account.events == [
        Connected("c-1", "192.0.2.7", "ci", "pump", "t-1", "source", 3),
        Disconnected("c-1", "192.0.2.7", "ci", "pump", "t-1", "source", 3, "1000", 7, 9, 2.5),
    ]
    assert account.connected_clients.ends() == Counter()


def test_bytes_are_counted_while_clients_are_connected_and_after() -> None:
    account = Account()
    one, other, third = client(), client(Mode.DESTINATION), client()
    for each in (one, other, third):
        account.connected_clients.joined(each)
    one.bytes_received, other.bytes_received, third.bytes_received = 10, 100, 5
    account.connected_clients.left(one, "")
    assert account.connected_clients.relayed() == Counter({"source": 15, "destination": 100})


def test_a_rejection_names_the_tunnel_if_the_token_is_known() -> None:
    account = Account()
    account.connected_clients.rejected("c-1", "192.0.2.7", HandshakeRejected(Cause.TOKEN_UNKNOWN, "no"))
    known = HandshakeRejected(Cause.TOKEN_USED, "no")
    known.tunnel, known.key = TUNNEL, "ci"
    account.connected_clients.rejected("c-1", "192.0.2.7", known)
    assert account.events == [
        Refused("c-1", "192.0.2.7", None, None, None, "token-unknown", "no"),
        Refused("c-1", "192.0.2.7", "ci", "pump", "t-1", "token-used", "no"),
    ]
