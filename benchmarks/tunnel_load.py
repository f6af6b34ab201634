# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients of one tunneling service that use little processor time, to leave most of a small machine to the service.

``python -m benchmarks.tunnel_load join TUNNELS`` or ``bulk TUNNELS SECONDS`` finds the service by its environment
variables (``service env``), prints ``ready``, begins when it reads a line, and prints one line of JSON.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3

from tunnelproxy.net.descriptor_limit import allow_many_files
from tunnelproxy.protocol.framing import MAX_PAYLOAD, MAX_WEBSOCKET_MESSAGE, Message, frame

AT_ONCE = 8


class Service:
    """The service that the environment variables name."""

    def __init__(self) -> None:
        self._client: Any = boto3.client("iotsecuretunneling")
        host, _, port = os.environ["AWSIOT_TUNNEL_ENDPOINT"].rpartition(":")
        self._host, self._port = host, int(port)
        self._tls = ssl.create_default_context(capath=os.environ["AWSIOT_TUNNEL_CAPATH"])
        self._client.list_tunnels()  # the first call loads code and connects

    def join(self) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        """Open a tunnel, and connect both of its ends."""
        opened = self._client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
        return self._end("source", opened), self._end("destination", opened)

    def _end(self, mode: str, opened: dict[str, str]) -> ssl.SSLSocket:
        plain = socket.create_connection((self._host, self._port), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = self._tls.wrap_socket(plain, server_hostname=self._host)
        sock.sendall(
            f"GET /tunnel?local-proxy-mode={mode} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}\r\n"
            "Sec-WebSocket-Protocol: aws.iot.securetunneling-3.0\r\n"
            f"access-token: {opened[f'{mode}AccessToken']}\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            some = sock.recv(4096)
            if not some:
                break
            answer += some
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(f"the service rejected the {mode}: {answer!r}")
        return sock


def join(tunnels: int) -> dict[str, float]:
    """Join a number of tunnels, a few at a time."""
    service = Service()
    began = start()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        joined = list(pool.map(lambda _: service.join(), range(tunnels)))
    return {"number": len(joined), **since(began)}


def bulk(tunnels: int, seconds: float) -> dict[str, float]:
    """Send data from source to destination through a number of tunnels at once, and count what arrives."""
    service = Service()
    ends = [service.join() for _ in range(tunnels)]
    piece = websocket_messages()
    received = [0] * tunnels

    def send(source: ssl.SSLSocket) -> None:
        while True:
            source.sendall(piece)

    def receive(number: int, destination: ssl.SSLSocket) -> None:
        buffer = bytearray(256 * 1024)
        while True:
            received[number] += destination.recv_into(buffer)

    began = start()
    for number, (source, destination) in enumerate(ends):
        threading.Thread(target=send, args=(source,), daemon=True).start()
        threading.Thread(target=receive, args=(number, destination), daemon=True).start()
    time.sleep(seconds)
    result = {"number": sum(received), **since(began)}
    if 0 in received:
        raise ConnectionError("a tunnel carried nothing")
    return result


def websocket_messages() -> bytes:
    """Messages with data of one stream, masked with zeros, because masking would take time from the service."""
    data = frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1, payload=bytes(MAX_PAYLOAD)))
    message = data * (MAX_WEBSOCKET_MESSAGE // len(data))
    head = bytes([0x82, 0x80 | 127]) + len(message).to_bytes(8, "big") + bytes(4)
    return (head + message) * 4


def start() -> tuple[float, float]:
    """Report that this process is ready, wait for the start, and return the clocks at that time."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> dict[str, float]:
    """Seconds since the start, and processor seconds."""
    return {"seconds": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]}


if __name__ == "__main__":
    allow_many_files()
    what, *numbers = sys.argv[1:]
    measured = join(int(numbers[0])) if what == "join" else bulk(int(numbers[0]), float(numbers[1]))
    print(json.dumps(measured), flush=True)
    os._exit(0)  # without waiting for threads that send
