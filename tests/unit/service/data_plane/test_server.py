# SPDX-License-Identifier: GPL-3.0-or-later
"""What the control API and the end of the service do to connected clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.data_plane import running_data_plane
from peers.event_loop import in_event_loop, until
from tunnelproxy.protocol.framing import Message
from tunnelproxy.protocol.session import Mode
from tunnelproxy.service.data_plane import server
from tunnelproxy.service.data_plane.server import (
    ACCESS_TOKEN_REVOKED,
    REPLACED,
    SERVICE_STOPPING,
    TUNNEL_CLOSED,
    DataPlane,
)
from tunnelproxy.service.events import CutOff
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.state.certificates import Certificates
from tunnelproxy.service.state.store import Store


@in_event_loop
async def test_closing_a_tunnel_disconnects_both_ends(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        ends = await running.connect_both()
        running.data_plane.close_tunnel(running.tunnel.tunnel_id, TUNNEL_CLOSED)
        assert [await end.closed() for end in ends] == [(1000, TUNNEL_CLOSED)] * 2


@in_event_loop
async def test_closing_a_tunnel_without_clients_does_nothing(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        running.data_plane.close_tunnel(running.tunnel.tunnel_id, TUNNEL_CLOSED)
        running.data_plane.revoke(running.tunnel.tunnel_id, Mode.SOURCE)


@in_event_loop
async def test_revoking_a_token_disconnects_its_end_only(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        running.data_plane.revoke(running.tunnel.tunnel_id, Mode.SOURCE)
        assert await source.closed() == (1008, ACCESS_TOKEN_REVOKED)
        await destination.send(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1))
        assert destination.websocket.close_code is None


@in_event_loop
async def test_a_client_that_connects_again_replaces_itself(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        older, _ = await running.connect_both()
        await running.connect(Mode.SOURCE)
        assert await older.closed() == (1008, REPLACED)


@in_event_loop
async def test_the_stop_of_the_service_disconnects_all_clients(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        ends = await running.connect_both()
        await running.data_plane.stop()
        assert [await end.closed() for end in ends] == [(1001, SERVICE_STOPPING)] * 2


@in_event_loop
async def test_the_stop_of_the_service_does_not_wait_for_clients_that_do_not_answer(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STOP_SECONDS", 0.1)
    async with running_data_plane(certificates, tmp_path) as running:
        source = await running.connect(Mode.SOURCE)
        source.websocket.transport.pause_reading()
        await running.data_plane.stop()
        assert running.data_plane.connected_clients.ends() == {}
        source.websocket.transport.abort()


@in_event_loop
async def test_a_client_that_has_joined_is_not_half_open(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path, limits=Limits(handshake_seconds=0.5)) as running:
        source = await running.connect(Mode.SOURCE)
        assert (await source.receive()).type == Message.SERVICE_IDS
        _, writer = await running.open_tls()
        await until(lambda: any(isinstance(event, CutOff) for event in running.events))
        writer.close()
        assert source.websocket.close_code is None


@in_event_loop
async def test_a_data_plane_that_was_not_started_can_be_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path / "service.db")
    await DataPlane(store, clock=lambda: 0.0).stop()
    store.close()
