# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources and destinations of all versions, joined by the service: working pairs, and the errors of the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from peers.exchange import ExchangeServer, exchange
from peers.process import wait_for
from peers.proxies import ProxyPair, start_proxy
from peers.service import TunnelingService
from tunnelproxy.protocol.framing import Message, frame, parse

SIZE = 5 * 1000 * 1000

ONE_CONNECTION = {"SSH1": 1}
ONE_EACH = {"SSH1": 1, "HTTP1": 1}
SEVERAL_EACH = {"SSH1": 3, "HTTP1": 3}

WORKING = [
    ("V1", "V1", ONE_CONNECTION),
    ("V1", "V2", ONE_CONNECTION),
    ("V1", "V3", ONE_CONNECTION),
    ("V2", "V2", ONE_EACH),
    ("V2", "V3", ONE_EACH),
    ("V3", "V2", ONE_EACH),
    ("V3", "V3", SEVERAL_EACH),
    ("auto", "V1", ONE_CONNECTION),
    ("auto", "V2", ONE_EACH),
    ("auto", "V3", SEVERAL_EACH),
]


@contextmanager
def joined(
    service: TunnelingService,
    folder: Path,
    source: str,
    destination: str,
    services: Mapping[str, int],
    size: int = SIZE,
) -> Iterator[tuple[ProxyPair, ExchangeServer]]:
    """A pair of proxies with these versions, in front of a server that exchanges bytes on every service."""
    with ExitStack() as stack:
        server = stack.enter_context(ExchangeServer(size))
        addresses = dict.fromkeys(services, server.port)
        options = (["-y", source], ["--protocol-version", destination])
        yield stack.enter_context(ProxyPair(service, folder, addresses, *options)), server


def replace_destination(service: TunnelingService, pair: ProxyPair) -> Any:
    """A V1 device that the test itself plays, message by message, in place of the destination proxy."""
    pair.destination.stop()
    rotated = service.boto3_client().rotate_tunnel_access_token(
        tunnelId=pair.tunnel.tunnel_id, clientMode="DESTINATION"
    )
    return service.connect("destination", rotated["destinationAccessToken"], version=1)


def connect(pair: ProxyPair, service_id: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", pair.ports[service_id]))
    sock.settimeout(60)
    return sock


@pytest.mark.parametrize(("source", "destination", "services"), WORKING)
def test_a_pair_that_works(
    service: TunnelingService, tmp_path: Path, source: str, destination: str, services: Mapping[str, int]
) -> None:
    with joined(service, tmp_path, source, destination, services) as (pair, server):

        def transfer(job: tuple[str, int]) -> tuple[str, str]:
            service_id, seed = job
            with connect(pair, service_id) as sock:
                outcome = exchange(sock, SIZE, seed)
            return outcome.sent, outcome.received

        jobs = [
            (service_id, seed * 10 + n) for n, (service_id, many) in enumerate(services.items()) for seed in range(many)
        ]
        with ThreadPoolExecutor(len(jobs)) as pool:
            seen = dict(pool.map(transfer, jobs))
        noted = wait_for(lambda: len(server.outcomes) == len(jobs) and server.outcomes, "the server has noted all")
        assert seen == {received: outcome.sent for received, outcome in noted.items()}
        if source == "auto":
            assert f"the destination speaks {destination}" in pair.source.output()


def test_consecutive_connections_through_an_old_pair(service: TunnelingService, tmp_path: Path) -> None:
    with joined(service, tmp_path, "auto", "V1", ONE_CONNECTION, size=1000) as (pair, _):
        for seed in range(5):
            with connect(pair, "SSH1") as sock:
                exchange(sock, 1000, seed)
            wait_for(lambda seed=seed: pair.source.output().count("closed after") > seed, "the connection is closed")


@pytest.mark.parametrize("source", ["V2", "V3"])
def test_a_v1_device_is_refused_by_a_source_with_another_version(
    service: TunnelingService, tmp_path: Path, source: str
) -> None:
    with joined(service, tmp_path, source, "V1", ONE_CONNECTION) as (pair, _), connect(pair, "SSH1") as sock:
        # Reset, rather than closed, if the proxy closed before it read this.
        with suppress(ConnectionResetError):
            sock.sendall(b"hello")
            while sock.recv(65536):
                pass
        pair.source.wait_for_output(
            f"the destination speaks V1, but this source was told that it speaks {source}: pass -y V1, or omit -y"
        )


def test_a_v1_device_is_refused_in_a_tunnel_with_several_services(service: TunnelingService, tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(ExchangeServer(1000))
        pair = ProxyPair(service, tmp_path, {"SSH1": server.port, "HTTP1": server.port}, (), ())
        stack.enter_context(pair)
        old = stack.enter_context(replace_destination(service, pair))
        sock = stack.enter_context(connect(pair, "SSH1"))
        start = Message.FromString(old.recv(timeout=10)[2:])
        answer = Message(type=Message.DATA, streamId=start.streamId, payload=b"SSH-2.0-old")
        old.send(frame(answer))
        assert sock.recv(100) == b""
        pair.source.wait_for_output(
            "the destination speaks V1, which carries one service, but this tunnel has SSH1, HTTP1: open a tunnel"
        )


@pytest.mark.parametrize("source", ["V2", "auto"])
def test_a_second_connection_to_a_v2_device_is_rejected(service: TunnelingService, tmp_path: Path, source: str) -> None:
    with (
        joined(service, tmp_path, source, "V2", ONE_CONNECTION, size=1000) as (pair, _),
        connect(pair, "SSH1") as first,
    ):
        assert first.recv(1)
        with connect(pair, "SSH1") as second:
            assert second.recv(1) == b""
        pair.source.wait_for_output("SSH1: rejected a connection: the destination speaks V2")


def test_a_preconnected_idle_client_does_not_make_the_device_count_as_old(
    service: TunnelingService, tmp_path: Path
) -> None:
    """Like browsers, which connect, send nothing, and send their request on another connection."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        addresses = {"HTTP1": listener.getsockname()[1]}
        pair = stack.enter_context(ProxyPair(service, tmp_path, addresses))
        stack.enter_context(connect(pair, "HTTP1"))
        ahead, _ = listener.accept()
        stack.enter_context(ahead)
        sock = stack.enter_context(connect(pair, "HTTP1"))
        sock.sendall(b"question")
        listener.settimeout(20)
        asked, _ = listener.accept()
        stack.enter_context(asked)
        assert asked.recv(100) == b"question"
        asked.sendall(b"answer")
        assert sock.recv(100) == b"answer"
        pair.source.wait_for_output("the destination speaks V3")
        assert "V1" not in pair.source.output()


def test_a_source_with_connection_ids_but_no_service_ids_is_answered_alike(
    service: TunnelingService, tmp_path: Path
) -> None:
    """Like AWS's reference 3.3 in a tunnel that was opened without services, where it offers only V3."""
    opened = service.boto3_client().open_tunnel()
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        arguments = ["-d", str(server.getsockname()[1])]
        destination = stack.enter_context(
            start_proxy(service, opened["destinationAccessToken"], arguments, tmp_path / "log")
        )
        destination.wait_for_output("will connect to")
        source = stack.enter_context(service.connect("source", opened["sourceAccessToken"], version=3))
        assert parse(source.recv(timeout=10)[2:]) == Message(type=Message.SERVICE_IDS)
        for kind, connection_id in ((Message.STREAM_START, 1), (Message.CONNECTION_START, 2)):
            source.send(frame(Message(type=kind, streamId=1, connectionId=connection_id)))
            server.settimeout(20)
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"answer")
                answer = parse(source.recv(timeout=10)[2:])
            assert answer == Message(type=Message.DATA, streamId=1, connectionId=connection_id, payload=b"answer")
            ended = parse(source.recv(timeout=10)[2:])
            assert ended == Message(type=Message.CONNECTION_RESET, streamId=1, connectionId=connection_id)
