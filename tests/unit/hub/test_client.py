# SPDX-License-Identifier: GPL-3.0-or-later
"""What plugins ask the hub for: each call against a hub in this process."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop
from peers.hub_in_process import ACCOUNT, call_hub, device, running_hub, running_service
from tunnelproxy.hub import client
from tunnelproxy.hub.location import HubError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    return path


def test_looking_starts_no_hub() -> None:
    assert client.status() is None
    assert not client.holds("any", ACCOUNT)
    assert not client.release("any", ACCOUNT)
    assert not client.stop()


def test_a_hub_that_is_no_more_is_why_a_connection_broke() -> None:
    why = client.explain_break("thing1", "SSH1", hub_pid=1, account=ACCOUNT)
    assert (why.code, str(why)) == ("hub-ended", "the hub (process 1) has exited; it restarts automatically")


def test_a_hub_that_cannot_be_asked_is_why_a_connection_broke(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    assert "nobody else may enter" in str(client.explain_break("thing1", "SSH1", hub_pid=1, account=ACCOUNT))


def test_the_connector_is_told_no_more_than_is_needed() -> None:
    plain = client.connector_command("thing1", "SSH1", account=ACCOUNT)
    assert plain[-3:] == [ACCOUNT, "thing1", "SSH1"]
    assert client.connector_command("thing1", "SSH1", account=ACCOUNT, timeout=3.0) == [*plain, "3"]
    health_check = client.HealthCheck("HTTP1", "/health?deep=1", [200, 204])
    asking = client.connector_command("thing1", "SSH1", account=ACCOUNT, health_check=health_check)
    assert asking == [*plain, "20", "HTTP1", "/health?deep=1", "200,204"]


@in_event_loop
async def test_a_tunnel_is_opened_described_and_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(tmp_path / "service") as service, running_hub(service, tmp_path / "hub", monkeypatch):
        tunnel = service.open("pump")
        async with device(service, "pump"):
            row = await call_hub(client.ensure, "pump", open_policy="reuse", owner="me", caller=service.caller)
            assert (row["state"], row["tunnel_id"], row["owner"]) == ("connected", tunnel.tunnel_id, "me")
            assert (row["account"], row["taken_from"], row["not_saved"]) == (ACCOUNT, "", "")
            described = await call_hub(client.describe, "pump", caller=service.caller)
            assert (described["source"], described["destination"]) == ("connected", "connected")
            status = await call_hub(client.status)
            assert [each["thing"] for each in status["tunnels"]] == ["pump"]
            assert await call_hub(client.holds, tunnel.tunnel_id, ACCOUNT)
            assert await call_hub(client.release, tunnel.tunnel_id, ACCOUNT)
            assert not await call_hub(client.holds, tunnel.tunnel_id, ACCOUNT)


@in_event_loop
async def test_a_tunnel_of_another_program_is_adopted_and_carries_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path / "service") as service, running_hub(service, tmp_path / "hub", monkeypatch):
        tunnel = service.open("pump")
        async with device(service, "pump"):
            row = await call_hub(
                client.adopt,
                "pump",
                tunnel_id=tunnel.tunnel_id,
                tunnel_arn=tunnel.arn,
                source_token=tunnel.source_token,
                services=tunnel.services,
                ports={"HTTP1": None},
                caller=service.caller,
            )
            assert row["services"]["HTTP1"]["port"] is None
            stream = await call_hub(client.open_stream, "pump", "SSH1", account=ACCOUNT)
            with socket.socket(fileno=stream) as connection:
                assert connection.recv(4, socket.MSG_PEEK) == b"SSH-"
            why = await call_hub(client.explain_break, "pump", "SSH1", hub_pid=None, account=ACCOUNT)
            assert (why.code, "the path to the device failed briefly" in str(why)) == ("broken", True)
            service.close(tunnel.tunnel_id)
            why = await call_hub(client.explain_break, "pump", "SSH1", hub_pid=None, account=ACCOUNT)
            assert why.code == "tunnel-closed"


@in_event_loop
async def test_what_would_fail_is_told_before_a_tunnel_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path / "service") as service, running_hub(service, tmp_path / "hub", monkeypatch):
        with pytest.raises(HubError, match="the registry has no thing pump"):
            await call_hub(client.prepare, "pump", ["SSH1"], caller=service.caller)
        service.store.put_thing("pump")
        found = await call_hub(client.prepare, "pump", ["SSH1"], ports={"SSH1": None}, caller=service.caller)
        assert found["account"] == ACCOUNT
        assert "open" not in service.asked


@in_event_loop
async def test_an_account_is_located_and_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(tmp_path / "service") as service, running_hub(service, tmp_path / "hub", monkeypatch):
        found = await call_hub(client.locate, "pump", caller=service.caller)
        assert (found["account"], found["ssh_name"], found["region"]) == (ACCOUNT, "pump", "eu-central-1")
        assert "ssh_name" not in await call_hub(client.locate, None, caller=service.caller)
        answer = await call_hub(
            client.call, "list_things", {"maxResults": 1}, purpose="list things", api="iot", caller=service.caller
        )
        assert (answer["api"], answer["operation"], answer["maxResults"]) == ("iot", "list_things", 1)


@in_event_loop
async def test_the_hub_stops_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(tmp_path / "s") as service, running_hub(service, tmp_path / "hub", monkeypatch) as hub:
        # The connection ends with the process, which goes on here: nobody waits for that.
        stopping = call_hub(client.stop)
        monkeypatch.setattr(client, "START_SECONDS", 0.2)
        with pytest.raises(HubError, match="runs but does not answer"):
            await stopping
        await hub
