# SPDX-License-Identifier: GPL-3.0-or-later
"""A hub in the test's event loop, together with a tunneling service and devices: no process is started.

The data plane and both proxies are real. In place of a control process that calls the control API over HTTP, the hub
has :class:`Control`, which calls the service's operations.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Callable

import pytest

from tunnelproxy.hub import server
from tunnelproxy.hub.control_answers import EndStates, FoundTunnel, Identity
from tunnelproxy.hub.control_process import Callers
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.runtime_folder import RuntimeFolder
from tunnelproxy.hub.wire import Caller
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.route import find_route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.proxy.destination import DestinationProxy
from tunnelproxy.proxy.link import TunnelCredentials
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.data_plane.server import TUNNEL_CLOSED, DataPlane
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store

__all__ = ["ACCOUNT", "Control", "InProcessService", "call_hub", "device", "running_hub", "running_service"]

ACCOUNT = "aws:123456789012:eu-central-1"
BANNER = b"SSH-2.0-test\r\n"


class InProcessService:
    """A tunneling service without its control API's HTTP."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.certificates = Certificates(folder / "keys", folder / "ca")
        self.certificates.ensure("127.0.0.1")
        self.store = Store(folder / "service.db")
        self.data_plane = DataPlane(self.store, clock=time.time)
        self.destination_tokens: dict[str, str] = {}
        """The newest tunnel of each thing."""
        self.operations = TunnelOperations(
            self.store,
            disconnect=lambda tunnel_id: self.data_plane.close_tunnel(tunnel_id, TUNNEL_CLOSED),
            revoke=self.data_plane.revoke,
            clock=time.time,
            tunnel_opened=lambda: None,
            deliver=lambda tunnel, token: self.destination_tokens.update({str(tunnel.thing_name): token}),
        )
        self.asked: list[str] = []
        """The control process's operations that the hub has requested."""
        self.failures: dict[str, HubError] = {}
        """The errors with which operations fail."""
        self.port = 0
        self._ca = str(folder / "ca")

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        await self.data_plane.start(listener, server_context(self.certificates))

    async def stop(self) -> None:
        await self.data_plane.stop()
        self.store.close()

    @property
    def environment(self) -> dict[str, str]:
        return {"AWSIOT_TUNNEL_ENDPOINT": f"127.0.0.1:{self.port}", "AWSIOT_TUNNEL_CAPATH": self._ca}

    @property
    def caller(self) -> Caller:
        """A caller that uses this service."""
        return Caller(self.environment, "/")

    def open(self, thing: str, services: tuple[str, ...] = ("SSH1", "HTTP1"), owner: str = "me") -> FoundTunnel:
        """Open a tunnel as another program would."""
        opened = self.operations.call(
            "OpenTunnel",
            {
                "destinationConfig": {"thingName": thing, "services": list(services)},
                "tags": [{"key": "owner", "value": owner}],
            },
        )
        return FoundTunnel(
            opened["tunnelId"],
            self.arn(opened["tunnelId"]),
            "eu-central-1",
            services,
            time.time() + 12 * 3600,
            opened["sourceAccessToken"],
        )

    def close(self, tunnel_id: str) -> None:
        self.operations.call("CloseTunnel", {"tunnelId": tunnel_id})

    def arn(self, tunnel_id: str) -> str:
        return f"arn:aws:iot:eu-central-1:123456789012:tunnel/{tunnel_id}"


class Control:
    """Replaces the hub's control process."""

    alive = True

    def __init__(self, service: InProcessService) -> None:
        self._service = service
        self._when_gone: list[Callable[[], None]] = []

    async def ask(self, op: str, arguments: Mapping[str, Any]) -> Any:
        self._service.asked.append(op)
        if op in self._service.failures:
            raise self._service.failures[op]
        # As JSON, like between processes.
        return json.loads(json.dumps(getattr(self, f"_{op}")(**arguments), default=vars))

    def when_gone(self, call: Callable[[], None]) -> None:
        self._when_gone.append(call)

    async def stop(self) -> None:
        self.alive = False
        for call in self._when_gone:
            call()

    def _identify(self, thing: str, known: Mapping[str, str]) -> Identity:
        return Identity(ACCOUNT, "digest", watch={}, lasts=True)

    def _end_states(self, tunnel_id: str) -> EndStates:
        tunnel = self._service.store.find_tunnel(tunnel_id)
        if tunnel is None:
            return EndStates(tunnel="GONE")
        described = self._service.operations.call("DescribeTunnel", {"tunnelId": tunnel_id})["tunnel"]
        return EndStates(
            tunnel=described["status"],
            destination=described["destinationConnectionState"]["status"].lower(),
            arn=self._service.arn(tunnel_id),
            owner=self._owner(tunnel_id),
        )

    def _take(
        self, thing: str, service: str, life: float, owner: str, take_over: bool, held: list[str]
    ) -> FoundTunnel | None:
        for tunnel in self._service.store.list_tunnels(thing_name=thing, before=None, limit=10, key=None):
            before = self._owner(tunnel.tunnel_id)
            if tunnel.tunnel_id in held or not tunnel.is_open or not (take_over or before == owner):
                continue
            self._service.store.set_tags(tunnel.tunnel_id, [("owner", owner)])
            rotated = self._service.operations.call(
                "RotateTunnelAccessToken", {"tunnelId": tunnel.tunnel_id, "clientMode": "SOURCE"}
            )
            return FoundTunnel(
                tunnel.tunnel_id,
                self._service.arn(tunnel.tunnel_id),
                "eu-central-1",
                tunnel.services,
                None,
                rotated["sourceAccessToken"],
                taken_from=before if before != owner else "",
            )
        return None

    def _open(self, thing: str, services: list[str], owner: str) -> FoundTunnel:
        return self._service.open(thing, tuple(services), owner)

    def _check_registered(self, thing: str) -> None:
        if self._service.store.find_thing(thing) is None:
            raise HubError(f"the registry has no thing {thing}", code="unknown-thing")

    def _call(self, api: str, operation: str, parameters: dict[str, Any], purpose: str) -> dict[str, Any]:
        return {"api": api, "operation": operation, **parameters}

    def _owner(self, tunnel_id: str) -> str:
        return dict(self._service.store.tags(tunnel_id)).get("owner", "")


@asynccontextmanager
async def running_service(folder: Path) -> AsyncIterator[InProcessService]:
    """A service, for as long as the context lasts."""
    service = InProcessService(folder)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@asynccontextmanager
async def running_hub(
    service: InProcessService, folder: Path, monkeypatch: pytest.MonkeyPatch, *, idle_seconds: float = 60.0
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a hub in a folder, which is also the client's, within the block."""
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(folder))

    async def start(self: Callers, control: object) -> Control:
        return Control(service)

    folders: list[RuntimeFolder] = []

    class LockedFolder(RuntimeFolder):
        def __init__(self, admit: Any) -> None:
            super().__init__(admit)
            folders.append(self)

    monkeypatch.setattr(Callers, "start", start)
    monkeypatch.setattr(server, "RuntimeFolder", LockedFolder)
    ready = asyncio.Event()
    task = asyncio.get_running_loop().create_task(server.serve(ready.set, idle_seconds=idle_seconds))
    waiting = asyncio.get_running_loop().create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        for locked in folders:
            # A hub holds its lock until its process exits.
            os.close(locked._lock)


@asynccontextmanager
async def device(service: InProcessService, thing: str, *, banner: bytes = BANNER) -> AsyncIterator[DestinationProxy]:
    """A device at the far end of a thing's newest tunnel: each of its services sends the banner, then echoes."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as greeter:
        port = greeter.sockets[0].getsockname()[1]
        route = find_route(Endpoint.parse(f"127.0.0.1:{service.port}"), {}, capath=service._ca)
        credentials = TunnelCredentials(Mode.DESTINATION, service.destination_tokens[thing], str(uuid.uuid4()))
        proxy = DestinationProxy(
            route, credentials, lambda offered: {service_id: TcpAddress("127.0.0.1", port) for service_id in offered}
        )
        running = asyncio.get_running_loop().create_task(proxy.run())
        await asyncio.wait_for(proxy.end.ready.wait(), 10)
        try:
            yield proxy
        finally:
            running.cancel()
            await asyncio.wait({running})


async def call_hub(call: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call a blocking function of the hub's client in a thread."""
    return await asyncio.to_thread(call, *arguments, **settings)
