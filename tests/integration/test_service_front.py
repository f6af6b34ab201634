# SPDX-License-Identifier: GPL-3.0-or-later
"""Two tunneling services behind a real HAProxy with the configuration in deploy/."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from peers.exchange import ExchangeServer, exchange
from peers.front import NAMES, Front
from peers.process import wait_for
from peers.proxies import ProxyPair, open_tunnel, start_proxy

SIZE = 1_000_000


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with Front(tmp_path_factory.mktemp("front")) as running:
        yield running


def test_each_service_carries_its_own_tunnel_through_the_ports_of_both(front: Front, tmp_path: Path) -> None:
    with ExchangeServer(SIZE) as server, ExitStack() as stack:
        pairs = []
        for name, service in zip(NAMES, front.services):
            assert (service.api, service.data) == (f"https://{name}:{front.api_port}", f"{name}:{front.data_port}")
            folder = tmp_path / name
            folder.mkdir()
            pairs.append(stack.enter_context(ProxyPair(service, folder, {"HTTP1": server.port})))
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", pair.ports["HTTP1"]))) for pair in pairs]
        for seed, sock in enumerate(sockets):
            outcome = exchange(sock, SIZE, seed)
            far = wait_for(lambda sent=outcome.sent: server.outcomes.get(sent), "the server has everything")
            assert far.sent == outcome.received
        for pair in pairs:
            tunnels = pair.service.boto3_client().list_tunnels()["tunnelSummaries"]
            assert [tunnel["tunnelId"] for tunnel in tunnels] == [pair.tunnel.tunnel_id]


def test_a_token_of_another_service_is_refused_with_the_likely_reason(front: Front, tmp_path: Path) -> None:
    one, two = front.services
    token = open_tunnel(one, ["HTTP1"]).source_token
    with start_proxy(two, token, ["-m", "src"], tmp_path / "log") as proxy:
        assert proxy.wait() == 1
    assert "belongs to another region" in proxy.output()
    assert token not in proxy.output()


def client_hello(name: str | None) -> bytes:
    """A TLS ClientHello. Python's own errors for a server that hangs up after it depend on the Python version."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    client = unverified.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def is_hung_up_on(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_a_client_without_a_known_service_name_reaches_no_service(front: Front) -> None:
    for name in ("three.tunnels.example.com", None):
        with socket.create_connection(("127.0.0.1", front.data_port), timeout=10) as sock:
            sock.sendall(client_hello(name))
            assert is_hung_up_on(sock)
    # A client that names a service gets an answer.
    with socket.create_connection(("127.0.0.1", front.data_port), timeout=10) as sock:
        sock.sendall(client_hello(NAMES[0]))
        assert not is_hung_up_on(sock)
    with socket.create_connection(("127.0.0.1", front.data_port), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(1) == b""
