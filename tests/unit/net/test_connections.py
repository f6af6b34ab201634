# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections with aiofastnet and without: the same to their protocols."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import cast

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net import connections
from tunnelproxy.net.accept_loop import accept_connections
from tunnelproxy.net.background_tasks import spawn
from tunnelproxy.net.endpoint import tls_context
from tunnelproxy.service.state.certificates import Certificates, server_context

RECORD = 16 * 1024


@pytest.fixture(params=["aiofastnet", "the event loop"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "aiofastnet":
        pytest.importorskip("aiofastnet")
    else:
        monkeypatch.setattr(connections, "_fast", None)
    return str(request.param)


class Peer(asyncio.BufferedProtocol):
    """Keeps what comes; may pause when the first of it does."""

    def __init__(self, *, pauses: bool = False) -> None:
        self.data = b""
        self.pauses = pauses
        self.ended = False
        self.transport: asyncio.Transport
        self.reading: connections.Reading
        self._buffer = bytearray(RECORD)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.reading = connections.Reading(self.transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self._buffer[:nbytes]
        if self.pauses:
            self.pauses = False
            self.reading.pause()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


async def joined(certificates: Certificates, near: Peer, far: Peer) -> None:
    """Two peers with TLS between them."""
    ours, theirs = socket.socketpair()
    client = tls_context(str(certificates.ca))
    await asyncio.gather(
        connections.accept(lambda: far, theirs, ssl=server_context(certificates)),
        connections.connect_unix(lambda: near, sock=ours, ssl=client, server_hostname="localhost"),
    )


@in_event_loop
async def test_what_is_written_arrives_both_ways(certificates: Certificates) -> None:
    near, far = Peer(), Peer()
    await joined(certificates, near, far)
    near.transport.writelines([b"a" * 100_000, b"b"])
    far.transport.write(b"c" * 300_000)
    await until(lambda: len(far.data) == 100_001 and len(near.data) == 300_000)
    near.transport.close()
    await until(lambda: near.ended and far.ended)


@in_event_loop
async def test_what_one_read_brought_arrives_though_it_was_paused_within_and_nothing_follows(
    certificates: Certificates,
) -> None:
    near, far = Peer(), Peer(pauses=True)
    await joined(certificates, near, far)
    near.transport.write(bytes(6 * RECORD))
    await until(lambda: far.reading.paused)
    far.reading.resume()
    await until(lambda: len(far.data) == 6 * RECORD)


@in_event_loop
async def test_a_paused_transport_brings_no_more_than_its_buffer(certificates: Certificates) -> None:
    near, far = Peer(), Peer(pauses=True)
    await joined(certificates, near, far)
    near.transport.write(bytes(200 * RECORD))
    await until(lambda: far.reading.paused)
    await asyncio.sleep(0)
    held = len(far.data)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert len(far.data) == held
    assert held <= 40 * RECORD
    far.reading.resume()
    await until(lambda: len(far.data) == 200 * RECORD)


@in_event_loop
async def test_pause_and_resume_in_one_turn_is_neither(certificates: Certificates) -> None:
    near, far = Peer(), Peer()
    await joined(certificates, near, far)
    far.reading.pause()
    far.reading.resume()
    near.transport.write(b"x")
    await until(lambda: far.data == b"x")


@in_event_loop
async def test_an_untrusted_certificate_is_the_same_error(certificates: Certificates) -> None:
    ours, theirs = socket.socketpair()
    far = asyncio.ensure_future(connections.accept(Peer, theirs, ssl=server_context(certificates)))
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        await connections.connect_unix(Peer, sock=ours, ssl=ssl.create_default_context(), server_hostname="localhost")
    assert "certificate" in caught.value.verify_message
    await asyncio.wait({far}, timeout=10)
    assert isinstance(far.exception(), OSError)


@in_event_loop
async def test_a_listener_hands_its_connections_to_protocols(kind: str) -> None:
    far, near = Peer(), Peer()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = asyncio.ensure_future(
            accept_connections(sock, lambda accepted, _: spawn("accepting", connections.accept(lambda: far, accepted)))
        )
        await connections.connect(lambda: near, *sock.getsockname())
        near.transport.write(b"hello")
        await until(lambda: far.data == b"hello")
        # What may be changed after a write without a copy, and what not.
        assert connections.keeps_what_is_written(near.transport) is (kind != "aiofastnet")
        near.transport.close()
        await until(lambda: far.ended)
        server.cancel()
