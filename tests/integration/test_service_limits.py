# SPDX-License-Identifier: GPL-3.0-or-later
"""The limits of a running service, tested from outside."""

from __future__ import annotations

import os
import socket
import ssl
import time
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from peers.process import wait_for
from peers.service import TunnelingService
from tunnelproxy.protocol.framing import Message, frame

IDLE = 500


def refusal(call: Any, **params: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(**params)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def both_ends(service: TunnelingService, stack: ExitStack) -> tuple[Any, Any]:
    opened = service.boto3_client().open_tunnel(destinationConfig={"services": ["SSH1"]})
    ends = [
        stack.enter_context(service.connect(mode, opened[f"{mode}AccessToken"])) for mode in ("source", "destination")
    ]
    for end in ends:
        end.recv(timeout=10)
    return ends[0], ends[1]


def data(size: int) -> bytes:
    return frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1, payload=os.urandom(size)))


def test_tunnels_and_services_are_limited_and_closing_a_tunnel_makes_room() -> None:
    with TunnelingService("--max-tunnels", "2", "--max-services", "1") as service:
        client = service.boto3_client()
        first = client.open_tunnel()
        client.open_tunnel()
        assert refusal(client.open_tunnel) == ("LimitExceededException", 400)
        client.close_tunnel(tunnelId=first["tunnelId"])
        assert refusal(client.open_tunnel, destinationConfig={"services": ["A", "B"]}) == (
            "LimitExceededException",
            400,
        )
        client.open_tunnel(destinationConfig={"services": ["A"]})


@pytest.mark.alone
def test_a_tunnels_bandwidth_is_limited_without_loss() -> None:
    pieces = [data(50_000) for _ in range(30)]
    with TunnelingService("--bandwidth-per-tunnel", "1M") as service, ExitStack() as stack:
        source, destination = both_ends(service, stack)
        started = time.monotonic()
        for piece in pieces:
            source.send(piece)
        received = b""
        while len(received) < len(b"".join(pieces)):
            received += destination.recv(timeout=10)
        seconds = time.monotonic() - started
    assert received == b"".join(pieces)
    # 1.5 MB at 1 MB/s; a quarter of a second's worth passes immediately, and there is no wait after the last piece.
    assert 0.9 < seconds < 2.5


def test_queued_data_arrives_after_its_sender_has_disconnected() -> None:
    pieces = [data(50_000) for _ in range(16)]
    with TunnelingService("--bandwidth-per-tunnel", "1M") as service, ExitStack() as stack:
        source, destination = both_ends(service, stack)
        for piece in pieces:
            source.send(piece)
        source.close()
        received = b""
        while len(received) < len(b"".join(pieces)):
            received += destination.recv(timeout=10)
    assert received == b"".join(pieces)


def test_idle_connections_block_neither_tunnels_nor_new_clients() -> None:
    options = ("--max-half-open", "64", "--handshake-time", "2")
    with TunnelingService(*options) as service, ExitStack() as stack:
        source, destination = both_ends(service, stack)
        process = psutil.Process(service.pid)
        quiet = process.num_fds()
        idle = []
        slow = ssl.create_default_context(capath=service.ca)
        for number in range(IDLE):
            address = service.data if number % 2 else service.api.removeprefix("https://")
            host, _, port = address.rpartition(":")
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            if number % 50 == 0:
                # Some send the first bytes of a request.
                sock = stack.enter_context(slow.wrap_socket(sock, server_hostname=host))
                sock.send(b"GET /tunnel")
            idle.append(sock)
            if number % 25 == 0:
                piece = data(1000)
                source.send(piece)
                assert destination.recv(timeout=5) == piece
        both_ends(service, stack)
        # A client that has begun a request to the control API has half a minute for it.
        begun = IDLE // 50
        wait_for(lambda: process.num_fds() <= quiet + 8 + begun, "the idle ones to be cut off", 10)
        source.send(piece)
        assert destination.recv(timeout=5) == piece


def test_a_slow_handshake_is_cut_off_although_bytes_keep_arriving() -> None:
    with TunnelingService("--handshake-time", "1") as service:
        host, _, port = service.data.rpartition(":")
        tls = ssl.create_default_context(capath=service.ca)
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            tls.wrap_socket(plain, server_hostname=host) as slow,
        ):
            began = time.monotonic()
            slow.sendall(b"GET /tunnel?local-proxy-mode=source HTTP/1.1\r\n")
            slow.settimeout(0.1)

            def is_cut_off() -> bool:
                try:
                    # A byte of a header now and then.
                    slow.sendall(b"x")
                    return slow.recv(1) == b""
                except TimeoutError:
                    return False
                except OSError:
                    return True

            wait_for(is_cut_off, "the slow one to be cut off", 8)
            assert time.monotonic() - began >= 0.8


def test_connections_are_limited_per_address() -> None:
    with TunnelingService("--connections-per-address", "2") as service, ExitStack() as stack:
        both_ends(service, stack)
        host, _, port = service.data.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as third:
            assert third.recv(1) == b""
        tls = ssl.create_default_context(capath=service.ca)
        other = socket.create_connection((host, int(port)), timeout=10, source_address=("127.0.0.2", 0))
        with tls.wrap_socket(other, server_hostname=host) as through:
            assert through.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--bandwidth-per-tunnel", "1"), ("--max-tunnels", "-1"), ("--handshake-time", "0"), ("--max-half-open", "x")],
)
def test_an_invalid_limit_is_named(option: str, value: str) -> None:
    with pytest.raises(AssertionError, match="not ready"):
        TunnelingService(option, value).__enter__()
