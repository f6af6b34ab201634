# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures in the field, with real sockets: of the service, the network, certificates, and the servers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.sync.server import Request, Response, ServerConnection, serve

from peers.device import proxy_environment
from peers.echo import EchoServer
from peers.event_loop import in_event_loop
from peers.namespace import NetworkNamespace, why_impossible
from peers.process import Process, wait_for
from peers.proxies import ProxyPair, open_tunnel, start_proxy
from peers.service import TunnelingService
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.link import LinkTaken, TunnelCredentials
from tunnelproxy.proxy.source import SourceProxy
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.directory import StateDirectory

MEGABYTE = 1000 * 1000
BACK_WITHIN = 10.0
FOUND_DEAD_WITHIN = 60.0


def connect(pair: ProxyPair, service_id: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", pair.ports[service_id]))
    sock.settimeout(30)
    return sock


def echoes(sock: socket.socket) -> bool:
    """Whether data is echoed; False if the connection is closed."""
    with contextlib.suppress(OSError):
        sock.sendall(b"hello")
        return sock.recv(5) == b"hello"
    return False


def carries(pair: ProxyPair, service_id: str) -> bool:
    """Whether a new connection carries data."""
    with connect(pair, service_id) as sock:
        return echoes(sock)


@contextmanager
def pumping(sock: socket.socket) -> Iterator[None]:
    """Send, and read the echo, as fast as possible, until the connection is closed."""

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(bytes(65536))

    def receive() -> None:
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass

    with ThreadPoolExecutor(2) as pool:
        moving = [pool.submit(send), pool.submit(receive)]
        yield
        # Both stop because the connection is closed; result() fails if it is left hanging.
        for future in moving:
            future.result(timeout=20)


def test_proxies_reconnect_after_the_service_was_killed_mid_transfer(tmp_path: Path) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        service = stack.enter_context(TunnelingService())
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": echo.port}))
        shell, bulk = (stack.enter_context(connect(pair, name)) for name in ("SSH1", "HTTP1"))
        assert echoes(shell)
        with pumping(bulk):
            pair.source.wait_for_output("HTTP1 .*: opened")
            service.kill()
        assert shell.recv(1) == b""
        # Until the pauses between attempts have reached their maximum.
        for proxy in (pair.source, pair.destination):
            wait_for(lambda proxy=proxy: proxy.output().count("trying again") >= 5, "it has tried for a while", 40)
        service.start()
        returned = time.monotonic()
        wait_for(lambda: carries(pair, "SSH1"), "a new connection is carried", BACK_WITHIN)
        print(f"carried again {time.monotonic() - returned:.1f} s after the service's return")
        assert carries(pair, "HTTP1")


def test_connections_made_during_an_outage_wait_for_the_service(tmp_path: Path) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        service = stack.enter_context(TunnelingService())
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port}, ["-y", "V3"]))
        service.kill()
        pair.source.wait_for_output("trying again")
        with connect(pair, "SSH1") as early:
            early.sendall(b"hello")
            # The destination is connected first: without it, the service would reset the connection.
            pair.source.popen.send_signal(signal.SIGSTOP)
            service.start()
            wait_for(lambda: pair.destination.output().count("connected to 1") >= 2, "the destination is back", 15)
            pair.source.popen.send_signal(signal.SIGCONT)
            assert early.recv(5) == b"hello"


def tls_of(service: TunnelingService) -> ssl.SSLContext:
    """The certificate that the service itself presents to its clients."""
    state = StateDirectory(service.state_dir)
    return server_context(Certificates(state.keys, state.ca))


@contextmanager
def broken_service(service: TunnelingService) -> Iterator[None]:
    """In place of a service that is not running: a server with its certificate that answers 500."""
    host, port = service.data.rsplit(":", 1)

    def fail(connection: ServerConnection, _: Request) -> Response:
        return connection.respond(http.HTTPStatus.INTERNAL_SERVER_ERROR, "broken\n")

    with serve(lambda _: None, host, int(port), ssl=tls_of(service), process_request=fail) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_a_failing_service_is_retried(tmp_path: Path) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(EchoServer())
        service = stack.enter_context(TunnelingService())
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"SSH1": echo.port}))
        service.stop()
        with broken_service(service):
            for proxy in (pair.source, pair.destination):
                proxy.wait_for_output(r"the service answers 500 Internal Server Error; trying again in")
        service.start()
        wait_for(lambda: carries(pair, "SSH1"), "a new connection is carried", BACK_WITHIN)


@pytest.mark.nightly
@pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())
def test_a_dead_network_and_a_frozen_service_are_detected_within_a_minute(tmp_path: Path) -> None:
    """In one test, because each takes a minute.

    No packets pass between one source and its service. The other source's service is stopped: its kernel still
    acknowledges everything, and only the answers to pings are missing.
    """
    with ExitStack() as stack:
        place = stack.enter_context(NetworkNamespace())
        behind_cable = stack.enter_context(TunnelingService("--host", place.here))
        echo = stack.enter_context(EchoServer())
        tunnel = open_tunnel(behind_cable, ["SSH1"])
        destination = stack.enter_context(
            start_proxy(behind_cable, tunnel.destination_token, ["-d", f"SSH1={echo.port}"], tmp_path / "far.log")
        )
        destination.wait_for_output("connected to")
        source = stack.enter_context(start_behind(place, behind_cable, tunnel.source_token, tmp_path / "near.log"))
        source.wait_for_output("listening on 127.0.0.1:5555")
        client = stack.enter_context(start_client(place, tmp_path / "client.log"))
        client.wait_for_output("hello")
        freezing = stack.enter_context(TunnelingService())
        pair = stack.enter_context(ProxyPair(freezing, tmp_path, {"SSH1": echo.port}))
        assert carries(pair, "SSH1")

        began = time.monotonic()
        place.drop_packets()
        with frozen(freezing):
            source.wait_for_output("(has been silent|broke).*trying again", FOUND_DEAD_WITHIN)
            print(f"the dead network was detected after {time.monotonic() - began:.0f} s")
            for proxy in (pair.source, pair.destination):
                proxy.wait_for_output(
                    "has been silent for .*trying again", FOUND_DEAD_WITHIN - (time.monotonic() - began)
                )
            print(f"the frozen service was detected after {time.monotonic() - began:.0f} s")
        assert client.wait() == 0, "the old connection is closed"

        wait_for(lambda: carries(pair, "SSH1"), "a new connection is carried", BACK_WITHIN)
        place.pass_packets()
        wait_for(lambda: source.output().count("connected to") == 2, "it is back", 20)
        destination.wait_for_output("closed after 5 bytes in, 5 bytes out")
        stack.enter_context(start_client(place, tmp_path / "again.log")).wait_for_output("hello")


@contextmanager
def frozen(service: TunnelingService) -> Iterator[None]:
    """A stopped (SIGSTOP) service."""
    os.kill(service.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


def start_behind(place: NetworkNamespace, service: TunnelingService, token: str, log: Path) -> Process:
    """A source proxy in a namespace."""
    command = [*place.enter, sys.executable, "-m", "tunnelproxy", "-s", "SSH1=5555", "-b", "127.0.0.1"]
    return Process(command, log, proxy_environment(service, token))


def start_client(place: NetworkNamespace, log: Path) -> Process:
    """A client in the namespace that sends hello, prints what it receives, and exits with the connection."""
    program = (
        "import socket; s = socket.create_connection(('127.0.0.1', 5555)); s.sendall(b'hello')\n"
        "while data := s.recv(100): print(data.decode(), flush=True)"
    )
    return Process([*place.enter, sys.executable, "-c", program], log)


def test_the_proxy_exits_with_the_reason_if_the_certificate_has_another_name(
    service: TunnelingService, tmp_path: Path
) -> None:
    tunnel = open_tunnel(service)
    tls = tls_of(service)
    with socket.create_server(("127.0.0.2", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def shake_hands() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                tls.wrap_socket(connection, server_side=True).close()

        shaking = pool.submit(shake_hands)
        port = listener.getsockname()[1]
        environment = proxy_environment(service, tunnel.source_token)
        environment.pop("AWSIOT_TUNNEL_ENDPOINT", None)
        command = [sys.executable, "-m", "tunnelproxy", "-m", "src", "-e", f"127.0.0.2:{port}"]
        with Process(command, tmp_path / "log", environment) as proxy:
            assert proxy.wait() == 1
            assert "is not valid for '127.0.0.2'): connect by a name that the certificate has" in proxy.output()
        shaking.result()


def test_a_replaced_proxy_does_not_reconnect(service: TunnelingService) -> None:
    """If it reconnected, the two would keep replacing each other."""
    tunnel = open_tunnel(service, ["SSH1"])
    access = TunnelCredentials(Mode.SOURCE, tunnel.source_token, client_token=str(uuid.uuid4()))

    @in_event_loop
    async def check() -> None:
        def proxy() -> SourceProxy:
            route = Route(Endpoint.parse(service.data), tls_context(service.ca))
            return SourceProxy(route, access, dict.fromkeys)

        older, newer = proxy(), proxy()
        running = asyncio.ensure_future(older.run())
        await asyncio.wait_for(older.end.ready.wait(), 10)
        taking = asyncio.ensure_future(newer.run())
        with pytest.raises(LinkTaken, match="another proxy has connected as the source of this tunnel"):
            await asyncio.wait_for(running, 10)
        assert newer.end.ready.is_set()
        taking.cancel()
        await asyncio.wait({taking})

    check()


def test_the_proxy_exits_if_its_access_token_was_rotated(service: TunnelingService, tmp_path: Path) -> None:
    with ProxyPair(service, tmp_path, {"SSH1": 1}) as pair:
        service.boto3_client().rotate_tunnel_access_token(tunnelId=pair.tunnel.tunnel_id, clientMode="SOURCE")
        assert pair.source.wait() == 1
        assert "the service refused with 403: the service does not know the access token" in pair.source.output()
        assert pair.destination.popen.poll() is None


def test_a_closed_port_at_the_destination_closes_the_connection(service: TunnelingService, tmp_path: Path) -> None:
    with (
        EchoServer() as echo,
        ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": 1}) as pair,
        connect(pair, "HTTP1") as refused,
    ):
        assert carries(pair, "SSH1")
        assert refused.recv(1) == b""
        pair.destination.wait_for_output(r"cannot connect to localhost:1 \(attempt 5 of 5\)")


def test_an_address_that_drops_packets_fails_within_seconds(service: TunnelingService, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    attempts = {"connection_retry_count": 2, "connection_retry_delay_ms": 60000}
    settings.write_text(json.dumps({"tunneling": {"proxy": {"tcp": attempts}}}))
    with ExitStack() as stack:
        # With a full queue, the kernel answers no further connection.
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))
        addresses = {"HTTP1": full.getsockname()[1]}
        options = ["--settings-json", str(settings)]
        pair = stack.enter_context(ProxyPair(service, tmp_path, addresses, destination_options=options))
        refused = stack.enter_context(connect(pair, "HTTP1"))

        # No pause after an attempt that timed out.
        assert refused.recv(1) == b""
        pair.destination.wait_for_output(r"cannot connect to .* \(attempt 2 of 2\): no answer within 3 s")


def test_a_silent_server_does_not_block_other_connections(service: TunnelingService, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, EchoServer() as echo:
        port = silent.getsockname()[1]
        with (
            ProxyPair(service, tmp_path, {"SSH1": echo.port, "HTTP1": port}) as pair,
            connect(pair, "HTTP1") as waiting,
        ):
            accepted, _ = silent.accept()
            with accepted:
                waiting.sendall(b"anybody there?")
                assert accepted.recv(100) == b"anybody there?"
                assert carries(pair, "SSH1")
                waiting.settimeout(1)
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
            # When it closes, the client's connection closes too.
            waiting.settimeout(10)
            assert waiting.recv(1) == b""


@pytest.mark.parametrize("slowly", [False, True])
def test_a_server_that_closes_right_after_a_megabyte(service: TunnelingService, tmp_path: Path, slowly: bool) -> None:
    """The client receives the whole megabyte, even if it begins to read long after the connection was closed."""
    data = os.urandom(MEGABYTE)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        serving = pool.submit(serve_once)
        options = ["--stall-seconds", "1"]
        port = listener.getsockname()[1]
        with ProxyPair(service, tmp_path, {"HTTP1": port}, options, options) as pair, connect(pair, "HTTP1") as sock:
            serving.result()
            if slowly:
                pair.source.wait_for_output("HTTP1 .*: closed after")
            received = b""
            while piece := sock.recv(65536):
                received += piece
        assert received == data
