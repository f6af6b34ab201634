# SPDX-License-Identifier: GPL-3.0-or-later
"""A TLS connection that has ended is freed at once: nothing of it waits for a full garbage collection.

One has buffers of 330 kB. In a process that runs for long, such a collection can be minutes away: 300 connections that
ended in their handshake took 100 MB until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.links import IgnoringReceiver
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.link import Link, TunnelCredentials
from tunnelproxy.proxy.reconnect import keep_linked
from tunnelproxy.service.data_plane.client_connection import ClientConnection
from tunnelproxy.service.data_plane.server import DataPlane
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.listening.listener import Listener, _Connection
from tunnelproxy.service.mqtt.listener import MqttListener, _Relay
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store

ATTEMPTS = 5


@pytest.fixture(autouse=True)
def earlier() -> Iterator[Counter[type]]:
    """With the collector off: what earlier tests have left, such as in an error that pytest keeps."""
    gc.collect()
    gc.disable()
    yield Counter(map(type, gc.get_objects()))
    gc.enable()


async def all_freed(kind: type, earlier: Counter[type], most: int = 0) -> None:
    """Some are freed a few turns of the event loop after their peers see the end."""
    await until(lambda: Counter(map(type, gc.get_objects()))[kind] <= earlier[kind] + most, 2.0)


async def break_off(address: tuple[str, int], first_words: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(first_words)
    if first_words:
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()


@pytest.mark.parametrize("first_words", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01"])
@in_event_loop
async def test_one_that_fails_in_its_tls_handshake(
    certificates: Certificates, earlier: Counter[type], first_words: bytes
) -> None:
    events: list[Any] = []
    context = server_context(certificates)
    listener = Listener(asyncio.Protocol, context, Limits(handshake_seconds=0.2), events.append)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener.open(sock)
        for _ in range(ATTEMPTS):
            await break_off(sock.getsockname(), first_words)
        await until(lambda: len(events) == ATTEMPTS)
        await all_freed(_Connection, earlier)
        listener.close()


@in_event_loop
async def test_a_thing_s_at_the_mqtt_port(certificates: Certificates, earlier: Counter[type], tmp_path: Path) -> None:
    path = tmp_path / "broker"
    broker = await asyncio.start_unix_server(lambda reader, writer: writer.write(b"hello"), str(path))
    listener = MqttListener("127.0.0.1", 0, path)
    listener.open(server_context(certificates), Limits(), lambda _: None)
    context = ssl.create_default_context(cafile=str(certificates.authority))
    for _ in range(ATTEMPTS):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=context, server_hostname="127.0.0.1"
        )
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
    await all_freed(_Relay, earlier)
    listener.close()
    broker.close()


@contextlib.asynccontextmanager
async def data_plane(certificates: Certificates, folder: Path) -> AsyncIterator[tuple[str, int]]:
    store = Store(folder / "service.db")
    serving = DataPlane(store, clock=time.time)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await serving.start(listener, server_context(certificates))
        yield listener.getsockname()
        await serving.stop()
    store.close()


@in_event_loop
async def test_a_client_s_at_the_data_plane(certificates: Certificates, earlier: Counter[type], tmp_path: Path) -> None:
    async with data_plane(certificates, tmp_path) as address:
        context = ssl.create_default_context(cafile=str(certificates.authority))
        for _ in range(ATTEMPTS):
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            writer.write(b"GET /tunnel HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 400 Bad Request\r\n"
            writer.close()
        await all_freed(ClientConnection, earlier)


@contextlib.asynccontextmanager
async def nobody() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    yield port


@contextlib.asynccontextmanager
async def one_that_says(words: bytes, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n" if tls else b"\x00")
        writer.write(words)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("service", ["not there", "no TLS", "hangs up", "503"])
@in_event_loop
async def test_a_proxy_s_that_fails_again_and_again(
    certificates: Certificates, earlier: Counter[type], monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 0.01)
    tls = server_context(certificates)
    peers = {
        "not there": nobody(),
        "no TLS": one_that_says(b"SSH-2.0-x\r\n", None),
        "hangs up": one_that_says(b"", tls),
        "503": one_that_says(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", tls),
    }
    news: list[str] = []
    async with peers[service] as port:
        route = Route(Endpoint("127.0.0.1", port), tls_context(str(certificates.ca)))
        credentials = TunnelCredentials(Mode.SOURCE, "a token", "a client token")
        linking = asyncio.ensure_future(
            keep_linked(route, credentials, IgnoringReceiver, lambda cause: news.append(str(cause)))
        )
        await until(lambda: len(news) >= ATTEMPTS)
        # The one that is being tried.
        await all_freed(Link, earlier, most=1)
        linking.cancel()
