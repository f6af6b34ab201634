# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tunnels an agent is in, told by notifications of a real data plane and real operations, in this process."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.process import free_port
from tunnelproxy.agent import tunnels as module
from tunnelproxy.agent.allow_list import AllowList
from tunnelproxy.agent.config import AgentConfig
from tunnelproxy.agent.notification import read_notification
from tunnelproxy.agent.state_file import SavedTunnel, SavedTunnels
from tunnelproxy.agent.tunnels import LONGEST_LIFE_SECONDS, Tunnels
from tunnelproxy.net.certificate_dates import date_text
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.mqtt import BrokerLogin
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.proxy.destination import DestinationProxy
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.data_plane.server import TUNNEL_CLOSED, DataPlane
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store

SERVICES = {"SSH1": TcpAddress("127.0.0.1", 22), "HTTP1": TcpAddress("127.0.0.1", 80)}


class Service:
    """What a caller of the control API can do, and what a device is notified of."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self.notifications: list[bytes] = []
        store = Store(folder / "service.db")
        self.data_plane = DataPlane(store, clock=time.time)
        self._operations = TunnelOperations(
            store,
            disconnect=lambda tunnel_id: self.data_plane.close_tunnel(tunnel_id, TUNNEL_CLOSED),
            revoke=self.data_plane.revoke,
            clock=time.time,
            tunnel_opened=lambda: None,
            deliver=lambda tunnel, token: self.notifications.append(notification(token, *tunnel.services)),
        )

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return self._operations.call(operation, params)

    def open(self, *services: str) -> tuple[str, bytes]:
        """A new tunnel's ID, and the notification of it."""
        config = {"thingName": "pump", "services": list(services or SERVICES)}
        return self.call("OpenTunnel", destinationConfig=config)["tunnelId"], self.notifications[-1]

    def rotate(self, tunnel_id: str) -> bytes:
        """The notification of a new token for the destination."""
        self.call("RotateTunnelAccessToken", tunnelId=tunnel_id, clientMode="DESTINATION")
        return self.notifications[-1]

    def is_connected(self, tunnel_id: str) -> bool:
        state = self.call("DescribeTunnel", tunnelId=tunnel_id)["tunnel"]["destinationConnectionState"]
        return bool(state["status"] == "CONNECTED")


def notification(token: str, *services: str, **changes: Any) -> bytes:
    content = {"clientAccessToken": token, "clientMode": "destination", "region": "", "services": list(services)}
    return json.dumps({**content, **changes}).encode()


@pytest.fixture
def config(tmp_path: Path, certificates: Certificates) -> AgentConfig:
    """The port is missing: each test has a data plane of its own."""
    return AgentConfig(
        thing="pump",
        broker=BrokerLogin("127.0.0.1", 1, "me"),
        services=SERVICES,
        allow=AllowList.default(),
        endpoint=None,
        capath=str(certificates.ca),
        state_dir=tmp_path / "state",
        max_tunnels=3,
    )


@pytest.fixture(autouse=True)
def _listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@asynccontextmanager
async def service_at(folder: Path, certificates: Certificates) -> AsyncIterator[Service]:
    service = Service(folder)
    listener = socket.create_server(("127.0.0.1", 0))
    service.port = listener.getsockname()[1]
    await service.data_plane.start(listener, server_context(certificates))
    try:
        yield service
    finally:
        await service.data_plane.stop()
        listener.close()


@asynccontextmanager
async def agent_with(config: AgentConfig, port: int, **changes: Any) -> AsyncIterator[Tunnels]:
    config = dataclasses.replace(config, **{"endpoint": Endpoint("127.0.0.1", port), **changes})
    saved = SavedTunnels(config.state_dir)
    saved.prepare()
    tunnels = Tunnels(config, saved)
    try:
        yield tunnels
    finally:
        await tunnels.close()


def saved_tokens(config: AgentConfig) -> set[str]:
    assert config.state_dir is not None
    return {tunnel["token"] for tunnel in json.loads((config.state_dir / "tunnels.json").read_bytes())}


def token_of(payload: bytes) -> str:
    return str(json.loads(payload)["clientAccessToken"])


@in_event_loop
async def test_a_notification_brings_the_agent_into_the_tunnel(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        first, payload = service.open()
        second, other = service.open("HTTP1")
        tunnels.notified(payload)
        tunnels.notified(other)
        assert len(tunnels) == 2
        await until(lambda: service.is_connected(first) and service.is_connected(second))
        assert saved_tokens(config) == {token_of(payload), token_of(other)}
        assert token_of(payload) not in caplog.text


@in_event_loop
async def test_the_same_notification_twice_does_nothing_twice(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        tunnel, payload = service.open()
        for _ in range(2):
            tunnels.notified(payload)
        await until(lambda: service.is_connected(tunnel))
        tunnels.notified(payload)
        assert len(tunnels) == 1
        assert caplog.text.count("joining it") == 1
        assert caplog.text.count("notified again, nothing to do") == 2
        service.call("CloseTunnel", tunnelId=tunnel)
        await until(lambda: len(tunnels) == 0)
        tunnels.notified(payload)
        assert len(tunnels) == 0


@in_event_loop
async def test_a_rotated_token_replaces_the_connection_of_its_tunnel_and_leaves_others_alone(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        tunnel, old = service.open()
        other, beside = service.open()
        tunnels.notified(old)
        tunnels.notified(beside)
        await until(lambda: service.is_connected(tunnel) and service.is_connected(other))
        new = service.rotate(tunnel)
        tunnels.notified(new)
        await until(lambda: saved_tokens(config) == {token_of(new), token_of(beside)})
        await until(lambda: service.is_connected(tunnel))
        assert len(tunnels) == 2
        assert caplog.text.count(": ended: ") == 1
        assert (
            "ended: its access token has been replaced, or the tunnel was closed "
            "(the service says: Invalid access token: it was revoked by a rotation.)"
        ) in caplog.text
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert service.is_connected(other)


@in_event_loop
async def test_a_closed_tunnel_is_left_and_forgotten(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        tunnel, payload = service.open()
        tunnels.notified(payload)
        await until(lambda: service.is_connected(tunnel))
        service.call("CloseTunnel", tunnelId=tunnel)
        await until(lambda: len(tunnels) == 0)
        assert saved_tokens(config) == set()
        assert "ended: " in caplog.text


@pytest.mark.parametrize(
    ("is_resumed", "level", "words"),
    [
        (False, logging.WARNING, "ended: the service refused with 403"),
        (True, logging.INFO, "ended: its access token has been replaced"),
    ],
    ids=["notified", "resumed"],
)
@in_event_loop
async def test_a_token_that_a_service_does_not_know_deserves_a_warning_unless_it_was_valid_before(
    tmp_path: Path,
    certificates: Certificates,
    config: AgentConfig,
    caplog: pytest.LogCaptureFixture,
    is_resumed: bool,
    level: int,
    words: str,
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        if is_resumed:
            save_one_of(config, time.time())
            tunnels.resume()
        else:
            tunnels.notified(notification("token", "SSH1"))
        assert len(tunnels) == 1
        await until(lambda: len(tunnels) == 0)
        assert [record.levelno for record in caplog.records if words in record.message] == [level]


@in_event_loop
async def test_what_cannot_be_served_is_refused_before_its_token_is_used(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        tunnel, payload = service.open("HTTP1")
        token = token_of(payload)
        for refused, reason in (
            (notification(token, "SSH1", "FTP1"), "no address for FTP1; the agent's services are SSH1, HTTP1"),
            (
                notification(token, "HTTP1", clientMode="source"),
                "its clientMode is 'source'; a device is the destination",
            ),
            (notification(token, "HTTP1", clientMode=None), "its clientMode is missing"),
            (b"{", "it is not JSON"),
        ):
            caplog.clear()
            tunnels.notified(refused)
            assert reason in caplog.text
            assert token not in caplog.text
            assert len(tunnels) == 0
        # Nor is it remembered: this is the first good one.
        tunnels.notified(payload)
        await until(lambda: service.is_connected(tunnel))


@in_event_loop
async def test_without_an_endpoint_the_region_must_be_known(
    config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with agent_with(config, 1, endpoint=None) as tunnels:
        tunnels.notified(notification("token", "SSH1"))
        assert len(tunnels) == 0
        assert "notification refused: " in caplog.text


@in_event_loop
async def test_a_tunnel_whose_services_became_known_late_and_are_not_served_is_left(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    only_http = {"HTTP1": SERVICES["HTTP1"]}
    async with (
        service_at(tmp_path, certificates) as service,
        agent_with(config, service.port, services=only_http) as tunnels,
    ):
        _, payload = service.open("SSH1")
        # Old notifications of AWS's do not say what the tunnel carries: the agent learns that in the tunnel.
        tunnels.notified(notification(token_of(payload)))
        assert len(tunnels) == 1
        await until(lambda: len(tunnels) == 0)
        assert "ended, it cannot be served" in caplog.text


@in_event_loop
async def test_the_allow_list_holds_whatever_the_services_say(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = {"SSH1": TcpAddress("192.0.2.1", 22)}
    async with (
        service_at(tmp_path, certificates) as service,
        agent_with(config, service.port, services=elsewhere) as tunnels,
    ):
        _, payload = service.open("SSH1")
        tunnels.notified(payload)
        await until(lambda: len(tunnels) == 0)
        assert "SSH1 leads to 192.0.2.1:22, which the allow list does not have" in caplog.text


@in_event_loop
async def test_there_are_so_many_tunnels_at_once_and_one_that_ends_makes_room(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        service_at(tmp_path, certificates) as service,
        agent_with(config, service.port, max_tunnels=1) as tunnels,
    ):
        first, payload = service.open()
        second, other = service.open()
        tunnels.notified(payload)
        tunnels.notified(other)
        assert len(tunnels) == 1
        assert "there are 1 tunnels already, which is max_tunnels" in caplog.text
        await until(lambda: service.is_connected(first))
        service.call("CloseTunnel", tunnelId=first)
        await until(lambda: len(tunnels) == 0)
        tunnels.notified(service.rotate(second))
        await until(lambda: service.is_connected(second))


@in_event_loop
async def test_the_next_run_returns_to_the_tunnels_of_this_one(
    tmp_path: Path, certificates: Certificates, config: AgentConfig
) -> None:
    async with service_at(tmp_path, certificates) as service:
        tunnel, payload = service.open()
        async with agent_with(config, service.port) as tunnels:
            tunnels.notified(payload)
            await until(lambda: service.is_connected(tunnel))
        await until(lambda: not service.is_connected(tunnel))
        assert saved_tokens(config) == {token_of(payload)}
        async with agent_with(config, service.port) as tunnels:
            tunnels.resume()
            await until(lambda: service.is_connected(tunnel))
            tunnels.notified(payload)
            assert len(tunnels) == 1


def save_one_of(config: AgentConfig, since: float) -> None:
    """A file of the last run, with one tunnel."""
    assert config.state_dir is not None
    saved = SavedTunnels(config.state_dir)
    saved.prepare()
    saved.write([SavedTunnel(read_notification(notification("token", "SSH1")), "c" * 32, since)])


@in_event_loop
async def test_tunnels_that_cannot_live_any_more_are_not_returned_to(config: AgentConfig) -> None:
    save_one_of(config, time.time() - LONGEST_LIFE_SECONDS - 1)
    async with agent_with(config, free_port()) as tunnels:
        tunnels.resume()
        assert len(tunnels) == 0


@pytest.mark.parametrize(
    "since",
    [60.0, time.time() + 3600, time.time() + 10 * 365 * 86400],
    ids=["in 1970", "in an hour", "in ten years"],
)
@in_event_loop
async def test_a_tunnel_of_a_time_that_cannot_be_is_kept_and_said(
    config: AgentConfig, caplog: pytest.LogCaptureFixture, since: float
) -> None:
    """It was saved while the clock was not set yet, or the clock is not set now."""
    save_one_of(config, since)
    async with agent_with(config, free_port()) as tunnels:
        tunnels.resume()
        assert len(tunnels) == 1
        assert f"it was saved at {date_text(since)}, but this device's clock says 2" in caplog.text
        # It lives no longer than any other from now on.
        assert config.state_dir is not None
        [kept] = SavedTunnels(config.state_dir).read()
        assert kept.since == pytest.approx(time.time(), abs=10)


@in_event_loop
async def test_a_tunnel_is_left_after_twelve_hours_though_nobody_says_so(
    config: AgentConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_LIFE_SECONDS", 0.05)
    async with agent_with(config, free_port()) as tunnels:
        tunnels.notified(notification("token", "SSH1"))
        await until(lambda: len(tunnels) == 0)
        assert "ended, after twelve hours" in caplog.text


@in_event_loop
async def test_a_service_that_is_away_is_waited_for(
    tmp_path: Path, certificates: Certificates, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with agent_with(config, free_port()) as tunnels:
        tunnels.notified(notification("token", "SSH1"))
        await until(lambda: "trying again in" in caplog.text)
        assert len(tunnels) == 1


@in_event_loop
async def test_what_is_remembered_of_the_past_has_a_bound(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 2)
    async with agent_with(config, free_port(), max_tunnels=10) as tunnels:
        for name in ("first", "second", "third"):
            tunnels.notified(notification(name, "SSH1"))
        assert len(tunnels._seen) == 2
        tunnels.notified(notification("third", "SSH1"))
        assert len(tunnels) == 3
        assert "notified again" in caplog.text


@in_event_loop
async def test_a_fault_of_the_agents_own_is_logged_and_the_tunnel_joined_again(
    tmp_path: Path,
    certificates: Certificates,
    config: AgentConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.01, 0.01))
    join, faults = DestinationProxy.run, [AssertionError("not thought of")]

    async def run(proxy: DestinationProxy) -> None:
        if faults:
            raise faults.pop()
        await join(proxy)

    monkeypatch.setattr(DestinationProxy, "run", run)
    async with service_at(tmp_path, certificates) as service, agent_with(config, service.port) as tunnels:
        tunnel, payload = service.open()
        tunnels.notified(payload)
        await until(lambda: service.is_connected(tunnel))
        assert len(tunnels) == 1
        assert "not thought of" in caplog.text
