# SPDX-License-Identifier: GPL-3.0-or-later
"""Which connections wait, and which is next, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.listening.pending_connections import PendingConnections


class Clients:
    """Makes connections that have arrived, and remembers the far ends."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.events: list[Event] = []

    def come(self, pending: PendingConnections, address: str, words: bytes = b"hello") -> socket.socket:
        client, accepted = socket.socketpair()
        self.stack.enter_context(client)
        self.stack.enter_context(accepted)
        client.setblocking(False)
        accepted.setblocking(False)
        pending.add(accepted, (address, 1))
        client.send(words)
        return client

    def causes(self) -> list[tuple[str, str]]:
        return [(event.address, event.cause) for event in self.events if isinstance(event, CutOff)]


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    with made.stack:
        yield made


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


@in_event_loop
async def test_the_addresses_of_those_who_have_spoken_take_turns(clients: Clients) -> None:
    pending = PendingConnections(10, clients.events.append, limit=100)
    for address in ("a", "a", "a", "b", "c", "b"):
        clients.come(pending, address)
    # The event loop looks once at all of them.
    for _ in range(2):
        await asyncio.sleep(0)
    order = [(await pending.next())[1] for _ in range(6)]
    assert set(order[:3]) == {"a", "b", "c"}
    assert set(order[3:5]) == {"a", "b"}


@in_event_loop
async def test_idle_clients_are_cut_off_in_time_and_block_nobody(clients: Clients) -> None:
    pending = PendingConnections(0.2, clients.events.append, limit=100)
    silent = clients.come(pending, "a", b"")
    clients.come(pending, "b")
    sock, address = await pending.next()
    assert (sock.recv(5), address) == (b"hello", "b")
    await until(lambda: is_closed(silent))
    assert clients.causes() == [("a", "handshake-time")]


@in_event_loop
async def test_where_too_many_wait_the_address_that_has_most_loses_its_oldest(clients: Clients) -> None:
    pending = PendingConnections(10, clients.events.append, limit=3)
    other = clients.come(pending, "b", b"")
    crowd = [clients.come(pending, "a", b"") for _ in range(3)]
    assert [is_closed(client) for client in crowd] == [True, False, False]
    assert not is_closed(other)
    assert clients.causes() == [("a", "half-open")]


@in_event_loop
async def test_all_addresses_of_an_ipv6_network_take_one_turn(clients: Clients) -> None:
    pending = PendingConnections(10, clients.events.append, limit=100)
    for number in range(1, 100):
        clients.come(pending, f"2001:db8::{number:x}")
    clients.come(pending, "2001:db8:0:1::1")
    for _ in range(2):
        await asyncio.sleep(0)
    assert {(await pending.next())[1] for _ in range(2)} == {"2001:db8::/64", "2001:db8:0:1::/64"}
    pending.close()


@in_event_loop
async def test_all_that_wait_are_closed_at_the_end(clients: Clients) -> None:
    pending = PendingConnections(10, clients.events.append, limit=100)
    waiting = [clients.come(pending, "a", words) for words in (b"", b"hello")]
    await asyncio.sleep(0)
    pending.close()
    assert all(map(is_closed, waiting[:1]))
    assert clients.causes() == []
