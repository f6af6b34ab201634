# SPDX-License-Identifier: GPL-3.0-or-later
"""A source that has to detect the version, with destinations of every kind and version.

``REFERENCE_LOCALPROXY=V3:/path/to/localproxy`` (and ``,V2:…,V1:…``) adds AWS's own. Servers answer after 6 s, or after
the values in ``TEST_LATE_SECONDS``, such as ``4,6,20,60``.
"""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from peers.echo import EchoServer
from peers.far_end import FAR_ENDS, REFERENCES, FarEnd, RunningFarEnd, rotated
from peers.process import Process, free_port, wait_for
from peers.proxies import OpenTunnel, ProxyPair, open_tunnel, start_proxy
from peers.service import TunnelingService
from tunnelproxy.protocol.session import Version
from tunnelproxy.proxy.version_probe import SILENCE_SECONDS

IN_A_ROW = 50
AT_ONCE = 10
LATE_SECONDS = [float(word) for word in os.environ.get("TEST_LATE_SECONDS", "6").split(",")]
BACK_WITHIN = 5.0

BANNER = b"SSH-2.0-server\r\n"
HELLO = b"SSH-2.0-client\r\n"
REQUEST = b"POST / HTTP/1.1\r\nHost: device\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server:
    """Answers a request like HTTP, or sends a banner first like SSH and then answers; both after a delay."""

    def __init__(self, seconds: float = 0.0, *, speaks_first: bool = False) -> None:
        self.requests: list[bytes] = []
        requests, late = self.requests, threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    if speaks_first:
                        late.wait(seconds)
                        self.request.sendall(BANNER)
                    request = self._receive(len(HELLO if speaks_first else REQUEST))
                    if request:
                        requests.append(request)
                        if not speaks_first:
                            late.wait(seconds)
                        self.request.sendall(request if speaks_first else ANSWER)

            def _receive(self, size: int) -> bytes:
                data = b""
                while len(data) < size:
                    piece = self.request.recv(65536)
                    if not piece:
                        return b""
                    data += piece
                return data

        class Listener(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.port: int = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()


class Tunnel:
    """A tunnel with a running source, and a far end that can be replaced."""

    def __init__(
        self, service: TunnelingService, folder: Path, far_end: FarEnd, ports: dict[str, int], *options: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._service = service
        self._folder = folder
        self._far_end = far_end
        self._ports = ports
        self._stack = ExitStack()
        self.tunnel: OpenTunnel = open_tunnel(service, list(ports))
        self.far_end = self.start_far_end(self.tunnel.destination_token)
        self.source: Process = self._stack.enter_context(
            start_proxy(service, self.tunnel.source_token, ["-m", "src", *options], folder / "source.log")
        )
        self.ports = {
            name: int(self.source.wait_for_output(rf"{name}: listening on 127.0.0.1:(\d+)")[1]) for name in ports
        }

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_far_end(self, token: str) -> RunningFarEnd:
        starting = self._far_end.start(self._service, token, self._ports, self._folder)
        self.far_end = self._stack.enter_context(starting)
        client = self._service.boto3_client()

        def is_connected() -> bool:
            tunnel = client.describe_tunnel(tunnelId=self.tunnel.tunnel_id)["tunnel"]
            return bool(tunnel["destinationConnectionState"]["status"] == "CONNECTED")

        wait_for(is_connected, "the destination is connected")
        return self.far_end

    def connect(self, name: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[name]), 90)


def ask(tunnel: Tunnel, name: str) -> bytes:
    """Send one request, and return everything received."""
    with tunnel.connect(name) as sock:
        sock.sendall(REQUEST)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def services_of(far_end: FarEnd) -> list[str]:
    return ["HTTP1"] if far_end.version is Version.V1 else ["HTTP1", "HTTP2"]


@pytest.mark.parametrize("far_end", FAR_ENDS, ids=str)
@pytest.mark.parametrize("told", [False, True], ids=["auto", "told"])
def test_fifty_connections_in_a_row_and_ten_at_once_on_each_service(
    service: TunnelingService, tmp_path: Path, far_end: FarEnd, told: bool
) -> None:
    names = services_of(far_end)
    options = ["-y", str(far_end.version)] if told else []
    with Server() as server, Tunnel(service, tmp_path, far_end, dict.fromkeys(names, server.port), *options) as tunnel:
        began = time.monotonic()
        for _ in range(IN_A_ROW):
            assert [ask(tunnel, name) for name in names] == [ANSWER] * len(names)
        in_a_row = time.monotonic() - began
        at_once = AT_ONCE if far_end.version is Version.V3 else 1
        with ThreadPoolExecutor(at_once * len(names)) as pool:
            answers = list(pool.map(lambda name: ask(tunnel, name), names * at_once))
        assert answers == [ANSWER] * at_once * len(names)
        assert len(server.requests) == (IN_A_ROW + at_once) * len(names)
        assert tunnel.far_end.exited is None
        print(f"{far_end}: {IN_A_ROW} in a row on each of {names} in {in_a_row:.1f} s, {at_once} at once on each")


@pytest.mark.parametrize("reference", [each for each in REFERENCES if each.version is Version.V3], ids=str)
def test_fifty_connections_in_a_row_and_ten_at_once_from_the_reference_to_this_package(
    service: TunnelingService, tmp_path: Path, reference: FarEnd
) -> None:
    names = ["HTTP1", "HTTP2"]
    tunnel = open_tunnel(service, names)
    ports = {name: free_port() for name in names}
    listening = ",".join(f"{name}={port}" for name, port in ports.items())
    environment = {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": tunnel.source_token}
    command = [reference.make, "-e", f"localhost:{service.data.rpartition(':')[2]}", "-s", listening, "-c", service.ca]

    def answer(name: str) -> bytes:
        with socket.create_connection(("127.0.0.1", ports[name]), 10) as sock:
            sock.sendall(REQUEST)
            return read_all(sock)

    def listens(name: str) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", ports[name])) == 0

    with ExitStack() as stack:
        server = stack.enter_context(Server())
        mapping = ",".join(f"{name}=127.0.0.1:{server.port}" for name in names)
        ours = start_proxy(service, tunnel.destination_token, ["-d", mapping], tmp_path / "destination.log")
        stack.enter_context(ours).wait_for_output("connected to")
        stack.enter_context(Process([*command, "-b", "127.0.0.1"], tmp_path / "source.log", environment))
        for name in names:
            wait_for(lambda name=name: listens(name), f"{name} has a port")
        for _ in range(IN_A_ROW):
            assert [answer(name) for name in names] == [ANSWER] * 2
        with ThreadPoolExecutor(2 * AT_ONCE) as pool:
            assert list(pool.map(answer, names * AT_ONCE)) == [ANSWER] * 2 * AT_ONCE


@contextmanager
def late_pairs(
    service: TunnelingService, folder: Path, seconds: float, *, speaks_first: bool
) -> Iterator[list[tuple[FarEnd, Tunnel, Server]]]:
    """A slow server behind each far end, in a tunnel with one service, where a wrong guess would do the most harm."""
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:

        def start(far_end: FarEnd) -> tuple[FarEnd, Tunnel, Server]:
            server = Server(seconds, speaks_first=speaks_first)
            ports = {"SSH" if speaks_first else "HTTP1": server.port}
            return far_end, Tunnel(service, folder / f"{far_end}", far_end, ports), server

        started = list(pool.map(start, FAR_ENDS))
        for _, tunnel, server in started:
            stack.enter_context(server)
            stack.enter_context(tunnel)
        yield started


@pytest.mark.parametrize("seconds", LATE_SECONDS)
def test_a_slow_http_server_receives_one_request_and_its_answer_arrives(
    service: TunnelingService, tmp_path: Path, seconds: float
) -> None:
    with late_pairs(service, tmp_path, seconds, speaks_first=False) as pairs:
        check_late(pairs, lambda tunnel: ask(tunnel, "HTTP1"), [REQUEST], ANSWER, seconds)


@pytest.mark.parametrize("seconds", LATE_SECONDS)
def test_a_slow_ssh_server_receives_one_hello_and_its_answer_arrives(
    service: TunnelingService, tmp_path: Path, seconds: float
) -> None:
    def talk(tunnel: Tunnel) -> bytes:
        with tunnel.connect("SSH") as sock:
            # Without waiting for the server, like OpenSSH.
            sock.sendall(HELLO)
            return read_all(sock)

    with late_pairs(service, tmp_path, seconds, speaks_first=True) as pairs:
        check_late(pairs, talk, [HELLO], BANNER + HELLO, seconds)


def check_late(
    pairs: Sequence[tuple[FarEnd, Tunnel, Server]],
    talk: Callable[[Tunnel], bytes],
    requests: list[bytes],
    answer: bytes,
    seconds: float,
) -> None:
    def timed(pair: tuple[FarEnd, Tunnel, Server]) -> tuple[bytes, float]:
        began = time.monotonic()
        return talk(pair[1]), time.monotonic() - began

    with ThreadPoolExecutor(len(pairs)) as pool:
        outcomes = list(pool.map(timed, pairs))
    for (far_end, tunnel, server), (answered, took) in zip(pairs, outcomes):
        print(f"{far_end}: late by {seconds:.0f} s, answered after {took:.2f} s")
        assert answered == answer, far_end
        assert server.requests == requests, far_end
        assert tunnel.far_end.exited is None, far_end
        # A destination that has not shown that it speaks V3 is then tried in V1, and its server is connected to again.
        tried_v1 = far_end.version is not Version.V3 and list(tunnel.ports) == ["SSH"] and seconds >= SILENCE_SECONDS
        assert took < seconds + 3 + (SILENCE_SECONDS if tried_v1 else 0), far_end


def echoing(connect: Callable[[], socket.socket]) -> socket.socket:
    """Connect until a connection gets an answer; one made during the replacement may be closed."""
    deadline = time.monotonic() + BACK_WITHIN
    while True:
        sock = connect()
        with suppress(ConnectionError):
            sock.sendall(b"hello")
            answer = sock.recv(100)
            if answer:
                assert answer == b"hello"
                return sock
        sock.close()
        assert time.monotonic() < deadline, "connections are still closed"


@pytest.mark.parametrize("far_end", FAR_ENDS, ids=str)
def test_the_next_connection_works_after_the_destination_was_replaced(
    service: TunnelingService, tmp_path: Path, far_end: FarEnd
) -> None:
    """Between two connections, during one, and after a kill during one."""
    names = services_of(far_end)
    with EchoServer() as server, Tunnel(service, tmp_path, far_end, dict.fromkeys(names, server.port)) as tunnel:
        times: list[float] = []

        def echoes(name: str) -> socket.socket:
            began = time.monotonic()
            sock = echoing(lambda: tunnel.connect(name))
            times.append(time.monotonic() - began)
            return sock

        def replace(*, kill: bool) -> None:
            if kill:
                tunnel.far_end.stop()
            tunnel.start_far_end(rotated(service, tunnel.tunnel))

        for kill in (False, True):
            for name in names:
                echoes(name).close()
            replace(kill=kill)
            in_the_middle = [echoes(name) for name in names]
            replace(kill=kill)
            for sock in in_the_middle:
                with suppress(ConnectionResetError):
                    assert sock.recv(100) == b""
                sock.close()
        for name in names:
            echoes(name).close()
        assert tunnel.far_end.exited is None
        print(f"{far_end}: answered after {max(times):.2f} s at most")
        assert max(times) < BACK_WITHIN


@pytest.mark.parametrize("version", list(Version), ids=str)
def test_the_next_connection_works_after_the_destination_was_restarted(
    service: TunnelingService, tmp_path: Path, version: Version
) -> None:
    """With the same access token and client token, as when it reconnects."""
    again = ["--protocol-version", str(version), "-i", str(uuid.uuid4())]
    with ProxyPair(service, tmp_path, {"HTTP1": 1}, (), again) as pair, EchoServer() as server:

        def echoes() -> socket.socket:
            return echoing(lambda: socket.create_connection(("127.0.0.1", pair.ports["HTTP1"]), BACK_WITHIN))

        pair.destination.stop(signal.SIGKILL)
        for number, in_the_middle in enumerate((False, True, False)):
            options = ["-d", f"HTTP1=127.0.0.1:{server.port}", *again]
            with start_proxy(service, pair.tunnel.destination_token, options, tmp_path / f"{number}.log") as process:
                process.wait_for_output("connected to 127")
                echoes().close()
                sock = echoes()
                if not in_the_middle:
                    sock.close()
                process.stop(signal.SIGKILL)
            if in_the_middle:
                assert sock.recv(100) == b""
                sock.close()
