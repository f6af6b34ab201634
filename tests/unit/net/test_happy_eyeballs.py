# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to hosts with several addresses, some of them dead."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from peers.event_loop import in_event_loop
from peers.process import free_port
from tunnelproxy.net.happy_eyeballs import open_socket


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have the running loop's resolver give these addresses for every name."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        found = [socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0] for address in addresses]
        return list(found)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@in_event_loop
async def test_a_second_address_is_tried_where_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "::1", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with await open_socket("two.example", server.getsockname()[1]) as sock:
            assert sock.getpeername() == server.getsockname()
        assert time.monotonic() - began < 0.2


@in_event_loop
async def test_of_addresses_that_fail_in_the_same_way_one_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "::1", "127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        await open_socket("two.example", free_port())


@in_event_loop
async def test_an_address_that_is_not_permitted_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with await open_socket("two.example", port, permits=lambda address: address == "127.0.0.2") as sock:
            assert sock.getpeername() == ("127.0.0.2", port)


@in_event_loop
async def test_where_no_address_is_permitted_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    with pytest.raises(
        PermissionError, match=r"^two.example has the address 127.0.0.1, 127.0.0.2, which is not allowed"
    ):
        await open_socket("two.example", 1, permits=lambda address: False)


@in_event_loop
async def test_the_local_address_is_the_one_that_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = await open_socket("127.0.0.1", server.getsockname()[1], bind_address="127.0.0.3")
        assert sock.getsockname()[0] == "127.0.0.3"
        sock.close()


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example"])
@in_event_loop
async def test_what_is_no_host_name_is_not_known(name: str) -> None:
    with pytest.raises(socket.gaierror):
        await open_socket(name, 1)
