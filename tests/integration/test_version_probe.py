# SPDX-License-Identifier: GPL-3.0-or-later
"""A source detects which version the device speaks: it sends no byte twice, and makes no device exit.

The source runs in this process, with time-outs below a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest

from peers.event_loop import in_event_loop, until
from peers.proxies import OpenTunnel, open_tunnel
from peers.reference import ReferenceDestination
from peers.service import TunnelingService
from tunnelproxy.hub.tunnel import ManagedTunnel
from tunnelproxy.hub.tunnel_record import DataPlaneSettings, TunnelRecord
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.proxy.link import LinkLost, TunnelCredentials
from tunnelproxy.proxy.source import SourceProxy

BANNER = b"SSH-2.0-server\r\n"
HELLO = b"SSH-2.0-client\r\n"
ASK_SECONDS = 0.3
SILENCE_SECONDS = 0.8


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.ASK_SECONDS", ASK_SECONDS)
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.SILENCE_SECONDS", SILENCE_SECONDS)


class SshLikeServer:
    """Sends its banner after a delay, then echoes; records what each client sent."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.received: list[bytes] = []
        received = self.received

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                threading.Event().wait(seconds)
                with suppress(OSError):
                    self.request.sendall(BANNER)
                    while data := self.request.recv(65536):
                        received.append(data)
                        self.request.sendall(data)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> SshLikeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[SshLikeServer]:
    with SshLikeServer() as running:
        yield running


def destination(
    service: TunnelingService, token: str, port: int, version: Version = Version.V3, *, drops_newer: bool = False
) -> ReferenceDestination:
    return ReferenceDestination(service, token, {"SSH": port, "HTTP1": port}, version, drops_newer=drops_newer)


@asynccontextmanager
async def source(service: TunnelingService, tunnel: OpenTunnel, **known: bool) -> AsyncIterator[SourceProxy]:
    """A source that listens on any port for each service."""
    route = Route(Endpoint.parse(service.data), tls_context(service.ca))
    credentials = TunnelCredentials(Mode.SOURCE, tunnel.source_token, f"{tunnel.tunnel_id:a<32}"[:32])
    proxy = SourceProxy(
        route,
        credentials,
        lambda names: {name: TcpAddress("127.0.0.1", 0) for name in names},
        **known,
    )
    running = asyncio.ensure_future(proxy.run())
    try:
        await asyncio.wait_for(proxy.end.ready.wait(), 10)
        yield proxy
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


class Client:
    """A local client of the source."""

    def __init__(self, proxy: SourceProxy, name: str) -> None:
        address = proxy.end.services[name].address
        assert isinstance(address, TcpAddress)
        self._sock = socket.create_connection(("127.0.0.1", address.port))
        self._sock.setblocking(False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def hear(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._sock, 65536), 10)

    async def hears(self, expected: bytes) -> None:
        data = b""
        while len(data) < len(expected):
            piece = await self.hear()
            assert piece, f"the connection ended after {data!r}"
            data += piece
        assert data == expected


@pytest.fixture
def tunnel(service: TunnelingService) -> OpenTunnel:
    return open_tunnel(service, ["SSH"])


def test_a_v1_device_receives_the_clients_data_once(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer
) -> None:
    """Like AWS IoT Device Client. OpenSSH's client sends its version without waiting for the server."""

    @in_event_loop
    async def check() -> None:
        with destination(service, tunnel.destination_token, server.port, Version.V1, drops_newer=True) as device:
            async with source(service, tunnel) as proxy:
                with Client(proxy, "SSH") as client:
                    await client.say(HELLO)
                    await client.hears(BANNER + HELLO)
                assert proxy.answers_v1_only
                for _ in range(3):
                    await until(lambda: not proxy.end.services["SSH"].connections)
                    with Client(proxy, "SSH") as client:
                        await client.hears(BANNER)
            assert device.exited is None
        assert server.received == [HELLO]

    check()


def test_the_next_source_need_not_detect_the_version_again(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.SILENCE_SECONDS", 60)

    @in_event_loop
    async def check() -> None:
        with destination(service, tunnel.destination_token, server.port, Version.V1, drops_newer=True):
            async with source(service, tunnel, answers_v1_only=True) as proxy:
                with Client(proxy, "SSH") as client:
                    await client.hears(BANNER)

    check()


def test_the_hub_remembers_the_detected_version(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hear_banner(held: ManagedTunnel) -> TunnelRecord:
        try:
            await held.wait_linked(10)
            with await held.open_stream("SSH", 10, speaks_first=True) as stream:
                stream.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(stream, 100) == BANNER
            return held.up_to_date()
        finally:
            await held.stop()

    @in_event_loop
    async def check() -> None:
        record = TunnelRecord(
            "thing",
            tunnel.tunnel_id,
            "us-east-1",
            tunnel.source_token,
            services=("SSH",),
            data_plane=DataPlaneSettings(service.data, service.ca),
        )
        with destination(service, tunnel.destination_token, server.port, Version.V1, drops_newer=True):
            found = await hear_banner(ManagedTunnel(record))
            assert found.destination_version == "V1"
            assert found.known_of_device == {"expects_v1": True}
            monkeypatch.setattr("tunnelproxy.proxy.version_probe.SILENCE_SECONDS", 60)
            assert await hear_banner(ManagedTunnel(TunnelRecord.from_json(json.loads(found.saved)))) == found

    check()


@pytest.mark.parametrize("lost", ["device", "link"])
def test_a_newer_device_in_the_place_of_one_that_answered_v1_only_is_spoken_to_in_v3(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer, lost: str
) -> None:
    """One that exits when it is spoken to in V1, as the reference of 3.1 does."""

    @in_event_loop
    async def check() -> None:
        async with source(service, tunnel) as proxy:
            old = destination(service, tunnel.destination_token, server.port, Version.V1, drops_newer=True)
            with old, Client(proxy, "SSH") as client:
                await client.hears(BANNER)
                assert proxy.answers_v1_only
                if lost == "device":
                    old.stop()
                else:
                    assert proxy.end.link
                    proxy.end.link.fail(LinkLost("cut by the test"))
                assert await client.hear() == b""
            await until(lambda: proxy.end.multiplexer and proxy.end.multiplexer.version is Version.V3)
            await asyncio.wait_for(proxy.end.ready.wait(), 10)
            rotated = service.boto3_client().rotate_tunnel_access_token(
                tunnelId=tunnel.tunnel_id, clientMode="DESTINATION"
            )
            with destination(service, rotated["destinationAccessToken"], server.port) as newer, ExitStack() as stack:
                for _ in range(2):
                    await stack.enter_context(Client(proxy, "SSH")).hears(BANNER)
                assert newer.exited is None
            assert proxy.speaks_newer
            assert not proxy.answers_v1_only

    check()


@pytest.mark.parametrize("answers_v1_only", [False, True])
def test_v1_is_not_assumed_permanently_for_a_silent_device(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer, answers_v1_only: bool
) -> None:
    """It may be off, and be replaced by a device that exits when it receives V1."""

    @in_event_loop
    async def check() -> None:
        with service.connect("destination", tunnel.destination_token):
            async with source(service, tunnel, answers_v1_only=answers_v1_only) as proxy:
                with Client(proxy, "SSH") as client:
                    await client.say(HELLO)
                    await until(lambda: proxy.end.multiplexer and proxy.end.multiplexer.version is Version.V1)
                    await until(proxy.end.open_connections)
                await until(lambda: proxy.end.multiplexer and proxy.end.multiplexer.version is Version.V3)
                await asyncio.wait_for(proxy.end.ready.wait(), 10)
                rotated = service.boto3_client().rotate_tunnel_access_token(
                    tunnelId=tunnel.tunnel_id, clientMode="DESTINATION"
                )
                with destination(service, rotated["destinationAccessToken"], server.port) as device:
                    with Client(proxy, "SSH") as client:
                        await client.hears(BANNER)
                    assert device.exited is None

    check()


def test_a_device_replaced_during_the_v1_attempt_does_not_count_as_v1(
    service: TunnelingService, tunnel: OpenTunnel, server: SshLikeServer
) -> None:
    """The service's own reset, which reports the disconnection, then looks like one of V1."""

    @in_event_loop
    async def check() -> None:
        async with source(service, tunnel) as proxy:
            with service.connect("destination", tunnel.destination_token):
                client = Client(proxy, "SSH")
                await client.say(HELLO)
                await until(lambda: proxy.end.multiplexer and proxy.end.multiplexer.version is Version.V1)
                await until(proxy.end.open_connections)
            # A reboot: the device disconnects while the client still waits.
            await until(lambda: proxy.end.multiplexer and proxy.end.multiplexer.version is Version.V3)
            assert not proxy.answers_v1_only
            with client:
                rotated = service.boto3_client().rotate_tunnel_access_token(
                    tunnelId=tunnel.tunnel_id, clientMode="DESTINATION"
                )
            with destination(service, rotated["destinationAccessToken"], server.port) as device:
                with Client(proxy, "SSH") as another:
                    await another.hears(BANNER)
                assert device.exited is None

    check()


def test_v1_is_never_tried_on_a_device_known_to_be_newer(service: TunnelingService, tunnel: OpenTunnel) -> None:
    """It may be silent for longer than any timeout: its network may be down, or its server's machine."""

    @in_event_loop
    async def check() -> None:
        async with source(service, tunnel, speaks_newer=True) as proxy:
            with service.connect("destination", tunnel.destination_token), Client(proxy, "SSH") as client:
                await client.say(HELLO)
                await until(proxy.end.open_connections)
                await asyncio.sleep(2 * SILENCE_SECONDS)  # nothing must happen during that time
                assert proxy.end.multiplexer
                assert proxy.end.multiplexer.version is Version.V3

    check()


@pytest.mark.parametrize("version", [Version.V1, Version.V3])
def test_a_thing_that_spoke_v1_in_its_last_tunnel_is_tried_in_v1_sooner(
    service: TunnelingService, server: SshLikeServer, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a device that has been upgraded since does not exit."""
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.ASK_SECONDS", 5.0)
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.SILENCE_SECONDS", 15.0)

    @in_event_loop
    async def check() -> None:
        tunnel = open_tunnel(service, ["SSH"])
        drops = version is Version.V1
        with destination(service, tunnel.destination_token, server.port, version, drops_newer=drops) as device:
            async with source(service, tunnel, expects_v1=True) as proxy:
                with Client(proxy, "SSH") as client:
                    await asyncio.wait_for(client.hears(BANNER), 10)
            assert device.exited is None

    check()


@pytest.mark.parametrize("version", list(Version))
def test_a_client_that_speaks_first_waits_for_a_slow_server_and_the_log_names_the_option(
    service: TunnelingService, version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    @in_event_loop
    async def check() -> None:
        tunnel = open_tunnel(service, ["HTTP1"])
        with ExitStack() as stack:
            server = stack.enter_context(SshLikeServer(2 * SILENCE_SECONDS))
            device = stack.enter_context(destination(service, tunnel.destination_token, server.port, version))
            async with source(service, tunnel) as proxy:
                client = stack.enter_context(Client(proxy, "HTTP1"))
                await client.say(b"question")
                await client.hears(BANNER + b"question")
            assert device.exited is None
        assert server.received == [b"question"]
        assert f"the destination speaks {version}" in caplog.text
        # A V3 destination answers the query.
        assert ("pass -y V1" in caplog.text) is (version is not Version.V3)

    with caplog.at_level(logging.INFO):
        check()


def test_nothing_is_sent_twice_to_a_v1_device(
    service: TunnelingService, server: SshLikeServer, caplog: pytest.LogCaptureFixture
) -> None:
    @in_event_loop
    async def check() -> None:
        tunnel = open_tunnel(service, ["HTTP1"])
        with destination(service, tunnel.destination_token, server.port, Version.V1, drops_newer=True):
            async with source(service, tunnel) as proxy:
                with Client(proxy, "HTTP1") as client:
                    await client.say(b"question")
                    await until(lambda: "pass -y V1" in caplog.text)
        assert server.received == []

    with caplog.at_level(logging.INFO):
        check()


@pytest.mark.parametrize("version", [Version.V1, Version.V2])
def test_an_old_device_survives_further_connections(service: TunnelingService, version: Version) -> None:
    """They wait until the device has shown its version, and then the first one is opened."""

    @in_event_loop
    async def check() -> None:
        tunnel = open_tunnel(service, ["HTTP1"])
        with ExitStack() as stack:
            server = stack.enter_context(SshLikeServer(SILENCE_SECONDS))
            device = stack.enter_context(destination(service, tunnel.destination_token, server.port, version))
            async with source(service, tunnel) as proxy:
                first, second = (stack.enter_context(Client(proxy, "HTTP1")) for _ in range(2))
                await first.hears(BANNER)
                with suppress(ConnectionResetError):
                    assert await second.hear() == b""
            assert device.exited is None

    check()


@in_event_loop
async def test_further_connections_do_not_wait_for_the_first_servers_answer(service: TunnelingService) -> None:
    """Browsers open connections in advance, without sending a request yet."""
    tunnel = open_tunnel(service, ["SSH", "HTTP1"])
    with ExitStack() as stack:
        server = stack.enter_context(SshLikeServer())
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ports = {"SSH": server.port, "HTTP1": deaf.getsockname()[1]}
        device = stack.enter_context(ReferenceDestination(service, tunnel.destination_token, ports, Version.V3))
        async with source(service, tunnel) as proxy:
            clients = [stack.enter_context(Client(proxy, "HTTP1")) for _ in range(5)]
            await until(lambda: len(proxy.end.open_connections()) == len(clients), ASK_SECONDS)
        assert device.exited is None
