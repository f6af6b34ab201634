# SPDX-License-Identifier: GPL-3.0-or-later
"""``--log-format json`` and readiness, in each long-running command."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.device import HttpServer, proxy_environment
from peers.process import Process, free_port, wait_for
from peers.proxies import ProxyPair, open_tunnel, start_proxy
from peers.service import TunnelingService
from tunnelproxy.hub import client

JSON = ["--log-format", "json"]


class Manager:
    """The service manager's end of sd_notify."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(15)
        self.environment = {"NOTIFY_SOCKET": str(folder / "notify")}

    def told(self) -> list[str]:
        """The next message."""
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    running = Manager(tmp_path)
    yield running
    running.close()


def records(process: Process) -> list[dict[str, Any]]:
    """The log records of a process; each line must be an object."""
    return [json.loads(line) for line in process.output().splitlines()]


def record_with(process: Process, words: str) -> dict[str, Any]:
    return wait_for(lambda: next((r for r in records(process) if words in r["message"]), None), words)


def test_a_proxys_records_have_context(service: TunnelingService, tmp_path: Path) -> None:
    http = HttpServer(tmp_path / "http", "well\n")
    try:
        with ProxyPair(service, tmp_path, {"HTTP1": http.port}, [*JSON, "-v", "6"], [*JSON, "-v", "6"]) as pair:
            with socket.create_connection(("127.0.0.1", pair.ports["HTTP1"])) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while sock.recv(4096):
                    pass
            assert record_with(pair.source, "listening on")["service"] == "HTTP1"
            for process, words in (
                (pair.source, "opened"),
                (pair.source, "closed after"),
                (pair.destination, "closed"),
            ):
                found = record_with(process, f"connection 1: {words}")
                assert (found["service"], found["stream"], found["connection"]) == ("HTTP1", 1, 1)
                assert (found["level"], found["logger"].partition(".")[0]) == ("info", "tunnelproxy")
    finally:
        http.stop()


def test_the_final_error_is_also_a_record(tmp_path: Path) -> None:
    environment = {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x"}
    command = [sys.executable, "-m", "tunnelproxy", "-m", "src", "-r", "mars", "-v", "0", *JSON]
    with Process(command, tmp_path / "log", environment) as source:
        assert source.wait() == 1
        (record,) = records(source)
        assert record["level"] == "fatal"
        assert record["message"].startswith("-r/--region: 'mars' is not an AWS region")


def test_the_services_records_contain_the_tunnel(tmp_path: Path) -> None:
    with TunnelingService(*JSON) as service:
        tunnel = open_tunnel(service)
        with start_proxy(service, tunnel.source_token, ["-m", "src"], tmp_path / "log") as source:
            source.wait_for_output("listening on")
        found = [json.loads(line) for line in service.log_text().splitlines()]
        about = [record for record in found if record.get("tunnel") == tunnel.tunnel_id]
        assert any("opened" in record["message"] for record in about)
        assert any("source connected" in record["message"] and record["channel"] for record in about)


def test_the_hubs_records_contain_thing_and_tunnel(
    service: TunnelingService, tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    tunnel = open_tunnel(service)
    command = [sys.executable, "-m", "tunnelproxy", "hub", "run", *JSON]
    with Process(command, tmp_path / "log", {**os.environ, **manager.environment}) as hub:
        assert manager.told() == ["READY=1"]
        client.adopt(
            "thing1",
            tunnel_id=tunnel.tunnel_id,
            tunnel_arn=tunnel.arn,
            source_token=tunnel.source_token,
            services=["SSH1", "HTTP1"],
            caller=client.Caller({**os.environ, **service.environment}, "/"),
        )
        found = record_with(hub, "connected to")
        assert (found["thing"], found["tunnel"]) == ("thing1", tunnel.tunnel_id)
        hub.stop()
        assert manager.told() == ["STOPPING=1"]


def test_a_proxy_is_ready_once_connected(service: TunnelingService, tmp_path: Path, manager: Manager) -> None:
    tunnel = open_tunnel(service, ["SSH1"])
    environment = {**proxy_environment(service, tunnel.source_token), **manager.environment}
    with Process([sys.executable, "-m", "tunnelproxy", "-m", "src"], tmp_path / "log", environment) as source:
        assert manager.told() == ["READY=1", f"STATUS=connected to {service.data}, with SSH1"]
        assert source.stop() == 0
        assert manager.told() == ["STOPPING=1"]


def test_a_proxy_that_does_not_connect_is_not_ready(tmp_path: Path, manager: Manager) -> None:
    environment = {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x", **manager.environment}
    command = [sys.executable, "-m", "tunnelproxy", "-m", "src", "-e", f"127.0.0.1:{free_port()}"]
    with Process(command, tmp_path / "log", environment) as source:
        source.wait_for_output("trying again in")
        assert source.stop() == 0
        assert manager.told() == ["STOPPING=1"]


def test_the_service_is_ready_once_it_listens(tmp_path: Path, manager: Manager) -> None:
    command = [sys.executable, "-m", "tunnelproxy", "service", "run", "--state-dir", tmp_path / "state"]
    with Process(command, tmp_path / "log", {**os.environ, **manager.environment}) as service:
        assert manager.told() == ["READY=1"]
        assert "ready api=" in service.output()
        assert service.stop() == 0
        assert manager.told() == ["STOPPING=1"]
