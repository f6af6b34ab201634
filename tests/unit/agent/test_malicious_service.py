# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent never connects to, whatever a tunneling service asks: its own file says where services lead."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from peers.event_loop import in_event_loop, until
from tunnelproxy.agent.allow_list import AllowList
from tunnelproxy.agent.config import AgentConfig
from tunnelproxy.agent.state_file import SavedTunnels
from tunnelproxy.agent.tunnels import Tunnels
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.mqtt import BrokerLogin
from tunnelproxy.protocol.framing import FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import SUBPROTOCOLS, Version
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.service.state.certificates import Certificates, server_context

HOSTS = (
    *("localhost", "LOCALHOST", "localhost.", "ip6-localhost", "127.0.0.1", "127.0.0.2", "127.1", "0.0.0.0", "0"),
    *("2130706433", "0x7f000001", "017700000001", "[::1]", "::1", "[::]", "[::ffff:127.0.0.1]", "::ffff:7f00:1"),
)
"""Names of the loopback."""


class Canary:
    """A port and a Unix socket of the device, of which the agent's file knows nothing; nobody may come."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary.sock"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.path))
        self.unix.listen()
        self.port = self.tcp.getsockname()[1]

    def visitors(self) -> int:
        found = 0
        for listener in (self.tcp, self.unix):
            listener.setblocking(False)
            with suppress(BlockingIOError):
                listener.accept()[0].close()
                found += 1
        return found

    def asked_for(self) -> list[str]:
        """Service IDs by which a service may hope to get there."""
        port, path = self.port, str(self.path)
        return [
            *(f"{host}:{port}" for host in HOSTS),
            *(f"SSH1=127.0.0.1:{port}", f"SSH1,HTTP1={port}", f"SSH1:{port}", str(port), f":{port}", f"SSH1\n{port}"),
            *(path, f"unix:{path}", f"//{path}", f"../../..{path}", f"SSH1/../..{path}", f"SSH1\0{path}", f"@{path}"),
            # Not the empty one: that stands for the only service of a tunnel.
            *(" ", "ssh1", "SSH1 ", " SSH1", "SSH1\0", "SSH1\r\n", "SSH1.", "-SSH1", "ＳＳＨ１", "SSH2", "HTTP1"),  # noqa: RUF001
            *("localhost:0", "localhost:65536", "localhost:-1", f"localhost:{port + 65536}", "S" * 129, "S" * 8000),
        ]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    made = Canary(tmp_path)
    yield made
    made.tcp.close()
    made.unix.close()


class MaliciousService:
    """Lets every token in, offers ``offered``, and then asks for ``asked`` as a service."""

    def __init__(self) -> None:
        self.offered = self.asked = ""
        self.refusals = 0

    async def handle(self, connection: ServerConnection) -> None:
        reader = FrameReader()
        with suppress(ConnectionClosed):
            await connection.send(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=[self.offered])))
            start = Message(type=Message.STREAM_START, streamId=1, serviceId=self.asked, connectionId=1)
            await connection.send(frame(start))
            async for data in connection:
                assert isinstance(data, bytes)
                if any(
                    parse(each).type in (Message.STREAM_RESET, Message.CONNECTION_RESET) for each in reader.feed(data)
                ):
                    break
        # What broke the protocol in the eyes of the agent, or does not suit it, it has left.
        self.refusals += 1


def notification(token: str, *services: str) -> bytes:
    content = {"clientAccessToken": token, "clientMode": "destination", "region": "", "services": list(services)}
    return json.dumps(content).encode()


@asynccontextmanager
async def agent_of(
    service: MaliciousService, certificates: Certificates, services: dict[str, TcpAddress], allow: AllowList
) -> AsyncIterator[Tunnels]:
    tls: ssl.SSLContext = server_context(certificates)
    async with serve(service.handle, "127.0.0.1", 0, ssl=tls, subprotocols=[SUBPROTOCOLS[Version.V3]]) as running:  # type: ignore[list-item]
        config = AgentConfig(
            thing="pump",
            broker=BrokerLogin("127.0.0.1", 1, "me"),
            services=services,
            allow=allow,
            endpoint=Endpoint("127.0.0.1", running.sockets[0].getsockname()[1]),
            capath=str(certificates.ca),
            state_dir=None,
            max_tunnels=1000,
        )
        tunnels = Tunnels(config, SavedTunnels(None))
        try:
            yield tunnels
        finally:
            await tunnels.close()


@in_event_loop
async def test_only_services_of_the_agents_file_are_connected_to(canary: Canary, certificates: Certificates) -> None:
    """Each is asked for in a tunnel that offers SSH1 alone, in one with that very service, and in a notification."""
    with socket.create_server(("127.0.0.1", 0)) as ssh:
        ssh.setblocking(False)
        services = {"SSH1": TcpAddress("localhost", ssh.getsockname()[1])}
        service = MaliciousService()
        asked = canary.asked_for()
        async with agent_of(service, certificates, services, AllowList.default()) as tunnels:
            ways = [("SSH1", name) for name in asked] + [(name, "SSH1") for name in asked]
            for number, (service.offered, service.asked) in enumerate(ways, 1):
                tunnels.notified(notification(f"token-{number}"))
                await until(lambda number=number: service.refusals >= number)
                await tunnels.close()
            there = len(tunnels)
            for name in asked:
                tunnels.notified(notification(f"token-of-{asked.index(name)}", name))
            assert len(tunnels) == there
            with pytest.raises(BlockingIOError):
                ssh.accept()
            # So that all this was no misunderstanding:
            service.offered = service.asked = "SSH1"
            tunnels.notified(notification("token", "SSH1"))
            (await asyncio.get_running_loop().sock_accept(ssh))[0].close()
    assert canary.visitors() == 0
    print(f"{3 * len(asked)} attempts with {len(asked)} names, none a connection")


# Names whose addresses the service chooses: the first time as it should be, then another.

REBOUND = ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")


@pytest.mark.parametrize("address", REBOUND)
@in_event_loop
async def test_a_name_that_is_allowed_does_not_lead_to_the_device_itself(
    address: str,
    canary: Canary,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    resolve = socket.getaddrinfo

    async def getaddrinfo(host: str, port: int, **_: object) -> object:
        return resolve(address, port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    services = {"HTTP1": TcpAddress("plc.example", canary.port)}
    allow = AllowList.parse([f"plc.example:{canary.port}"], "allow")
    service = MaliciousService()
    service.offered = service.asked = "HTTP1"
    async with agent_of(service, certificates, services, allow) as tunnels:
        tunnels.notified(notification("token", "HTTP1"))
        await until(lambda: service.refusals)
    assert canary.visitors() == 0
    assert f"plc.example has the address {address}, which is not allowed" in caplog.text
