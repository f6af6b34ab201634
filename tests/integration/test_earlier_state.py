# SPDX-License-Identifier: GPL-3.0-or-later
"""This version's service, hub and agent continue with the files of release 0.1."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from peers.agent import AgentProcess
from peers.device import Sshd, make_ssh_key
from peers.process import REPOSITORY, free_port, wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

STATE = REPOSITORY / "tests" / "data" / "state-of-0.1"
WRITTEN_BELOW = "/tmp/tunnelproxy-0.1"
DATABASE = "service.db"

HOUR = 3600.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("sshd")
    server = Sshd(folder, make_ssh_key(folder / "user_key"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, sshd: Sshd) -> Path:
    """A private copy of the state, with the paths and ports of this run, and a tunnel that has not expired."""
    folder = tmp_path_factory.mktemp("0.1")
    changes = {WRITTEN_BELOW: str(folder), "localhost:2222": f"localhost:{sshd.port}"}
    changes |= {port: str(free_port()) for port in ("18443", "19443", "18883")}
    for name in ("service", "hub", "agent"):
        shutil.copytree(STATE / name, folder / name)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file() and path.suffix not in {".db", ".pem"}:
            text = path.read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            path.write_text(text)
    prolong(folder)
    return folder


def prolong(folder: Path) -> None:
    """Make the tunnel an hour old: tunnels last twelve hours."""
    opened, expires = time.time() - HOUR, time.time() + HOUR
    with sqlite3.connect(folder / "service" / DATABASE) as database:
        database.execute("UPDATE tunnels SET created_at = ?, updated_at = ?, expires_at = ?", (opened, opened, expires))
    database.close()
    of_hub = folder / "hub" / "tunnels.jsonl"
    of_hub.write_text(json.dumps({**json.loads(of_hub.read_text()), "expires_at": expires}) + "\n")
    of_agent = folder / "agent" / "state" / "tunnels.json"
    of_agent.write_text(json.dumps([{**saved, "since": opened} for saved in json.loads(of_agent.read_text())]))


@pytest.fixture(scope="module")
def service(state: Path) -> Iterator[TunnelingService]:
    running = TunnelingService("--mqtt-port", "0")
    running.state_dir = state / "service"
    with running:
        yield running


@pytest.fixture(scope="module")
def tunnel_id(state: Path) -> str:
    """The ID of the tunnel that the hub has saved."""
    return str(json.loads((state / "hub" / "tunnels.jsonl").read_text())["tunnel_id"])


def keys_of(state: Path, name: str) -> dict[str, Any]:
    """An access key from the old database, for boto3."""
    with sqlite3.connect(state / "service" / DATABASE) as database:
        found = database.execute(
            "SELECT access_key_id, secret_access_key FROM access_keys WHERE name = ?", (name,)
        ).fetchone()
    database.close()
    return dict(zip(("aws_access_key_id", "aws_secret_access_key"), found))


def test_the_service_keeps_its_region_ports_and_certificate_authority(service: TunnelingService, state: Path) -> None:
    assert json.loads((state / "service" / "endpoints.json").read_text()) == {
        "host": "127.0.0.1",
        "api_port": int(service.api.rpartition(":")[2]),
        "data_port": int(service.data.rpartition(":")[2]),
        "own_certificate": False,
    }
    assert service.environment["AWS_REGION"] == "eu-central-1"
    assert Path(service.ca_pem).read_bytes() == (STATE / "service" / "ca" / "ca.pem").read_bytes()


def test_the_access_keys_keep_their_rights(service: TunnelingService, state: Path, tunnel_id: str) -> None:
    assert service.environment["AWS_ACCESS_KEY_ID"] == keys_of(state, "default")["aws_access_key_id"]
    auditor = service.boto3_client(**keys_of(state, "auditor"))
    (summary,) = auditor.list_tunnels()["tunnelSummaries"]
    assert summary["tunnelId"] == tunnel_id
    with pytest.raises(ClientError, match="AccessDenied"):
        auditor.close_tunnel(tunnelId=tunnel_id)


def test_the_things_keep_their_attributes(service: TunnelingService) -> None:
    thing = service.boto3_client("iot").describe_thing(thingName="pump")
    assert (thing["thingTypeName"], thing["attributes"]) == ("station", {"site": "hall-1"})


def test_the_tunnel_is_still_open_with_its_thing_services_and_owner(service: TunnelingService, tunnel_id: str) -> None:
    tunnel = service.boto3_client().describe_tunnel(tunnelId=tunnel_id)["tunnel"]
    tags = {tag["key"]: tag["value"] for tag in tunnel["tags"]}
    assert tunnel["status"] == "OPEN"
    assert tunnel["destinationConfig"] == {"thingName": "pump", "services": ["SSH1"]}
    assert "operator" in tags.values()


def test_the_agent_and_the_hub_reconnect_to_their_tunnel(
    service: TunnelingService, state: Path, tunnel_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(state / "hub"))
    monkeypatch.setenv("IOTOPS_TUNNEL_OWNER", "operator")
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    with AgentProcess(state / "agent"):
        wait_for(lambda: destination_state(service, tunnel_id) == "CONNECTED", "the agent is connected to its tunnel")
        try:
            row = client.ensure("pump")
            assert (row["tunnel_id"], row["state"], row["owner"]) == (tunnel_id, "connected", "operator")
            assert banner(client.open_stream("pump", "SSH1", account=row["account"])) == b"SSH-"
        finally:
            client.stop()
    assert len(service.boto3_client().list_tunnels()["tunnelSummaries"]) == 1


def destination_state(service: TunnelingService, tunnel_id: str) -> str:
    described = service.boto3_client().describe_tunnel(tunnelId=tunnel_id)
    return str(described["tunnel"]["destinationConnectionState"]["status"])


def banner(descriptor: int) -> bytes:
    with socket.socket(fileno=descriptor) as stream:
        return stream.recv(4)
