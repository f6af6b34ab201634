# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running service records: its audit log and its metrics."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from websockets.exceptions import InvalidStatus

from peers.process import free_port, wait_for
from peers.service import TunnelingService
from tunnelproxy.protocol.framing import Message, frame


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "service.log"


@pytest.fixture(scope="module")
def service(metrics_port: int, log: Path) -> Iterator[TunnelingService]:
    with TunnelingService("--metrics-port", str(metrics_port), "--log-file", str(log)) as running:
        yield running


@pytest.fixture
def opened(service: TunnelingService) -> dict[str, str]:
    answer: dict[str, str] = service.boto3_client().open_tunnel(
        destinationConfig={"thingName": "pump", "services": ["SSH1"]}
    )
    return answer


def audited(service: TunnelingService, tunnel: str, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (service.state_dir / "audit.log").read_text().splitlines())
    return [line for line in lines if line["event"] == event and line["tunnel"] == tunnel]


def read_metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_control_calls_are_audited(service: TunnelingService, opened: dict[str, str]) -> None:
    tunnel = opened["tunnelId"]
    service.boto3_client().describe_tunnel(tunnelId=tunnel)
    with pytest.raises(ClientError):
        service.boto3_client(aws_secret_access_key="x" * 40).close_tunnel(tunnelId=tunnel)
    calls = audited(service, tunnel, "control")
    assert [(call["operation"], call["key"], call["thing"], call["outcome"]) for call in calls] == [
        ("OpenTunnel", "default", "pump", "ok"),
        ("DescribeTunnel", "default", "pump", "ok"),
    ]
    log = (service.state_dir / "audit.log").read_text()
    assert '"outcome": "InvalidSignatureException"' in log


def test_connecting_and_disconnecting_are_audited(service: TunnelingService, opened: dict[str, str]) -> None:
    tunnel = opened["tunnelId"]
    start = frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))
    with service.connect("destination", opened["destinationAccessToken"]) as destination:
        with service.connect("source", opened["sourceAccessToken"], version=2) as source:
            source.recv(timeout=10)
            destination.recv(timeout=10)
            source.send(start)
            assert destination.recv(timeout=10) == start
        (line,) = wait_for(lambda: audited(service, tunnel, "disconnected"), "the end of the source on record")
        channel = source.response.headers["channel-id"]
        assert (line["mode"], line["version"], line["key"], line["thing"]) == ("source", 2, "default", "pump")
        assert (line["channel"], line["address"]) == (channel, "127.0.0.1")
        assert (line["outcome"], line["bytes_received"]) == ("1000", len(start))
        assert line["bytes_sent"] > 0
        assert 0 < line["seconds"] < 60
    with pytest.raises(InvalidStatus), service.connect("source", opened["sourceAccessToken"]):
        pass
    (refused,) = audited(service, tunnel, "refused")
    assert (refused["cause"], refused["key"], refused["thing"]) == ("token-used", "default", "pump")
    assert {line["mode"] for line in audited(service, tunnel, "connected")} == {"source", "destination"}


def test_no_secret_is_audited(service: TunnelingService, opened: dict[str, str]) -> None:
    with service.connect("source", opened["sourceAccessToken"], client_token="0123456789abcdef" * 2):
        pass
    log = (service.state_dir / "audit.log").read_text()
    secrets = [opened["sourceAccessToken"], opened["destinationAccessToken"], "0123456789abcdef" * 2]
    for secret in [*secrets, service.environment["AWS_SECRET_ACCESS_KEY"]]:
        assert secret not in log


def test_after_sighup_both_logs_continue_in_new_files(service: TunnelingService, log: Path) -> None:
    path = service.state_dir / "audit.log"
    for each in (path, log):
        each.rename(each.with_suffix(".log.1"))
    os.kill(service.pid, signal.SIGHUP)
    wait_for(path.exists, "a new audit log")
    service.boto3_client().open_tunnel()
    assert len(path.read_text().splitlines()) == 1
    assert re.search(" INFO +tunnel .* opened", log.read_text())


def test_metrics_show_activity(service: TunnelingService, metrics_port: int, opened: dict[str, str]) -> None:
    before = read_metrics(metrics_port)
    start = frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))
    with (
        service.connect("source", opened["sourceAccessToken"]) as source,
        service.connect("destination", opened["destinationAccessToken"], version=2) as destination,
    ):
        destination.recv(timeout=10)
        source.send(start)
        destination.recv(timeout=10)
        with pytest.raises(InvalidStatus), service.connect("source", "unknown"):
            pass
        during = read_metrics(metrics_port)
    assert during['tunnelproxy_ends_connected{mode="source",version="V3"}'] == 1
    assert during['tunnelproxy_ends_connected{mode="destination",version="V2"}'] == 1
    assert during["tunnelproxy_tunnels_open"] == before["tunnelproxy_tunnels_open"] >= 1
    relayed = 'tunnelproxy_bytes_relayed_total{mode="source"}'
    assert during[relayed] - before.get(relayed, 0) == len(start)
    refused = 'tunnelproxy_refusals_total{cause="token-unknown"}'
    assert during[refused] - before.get(refused, 0) == 1
    assert during['tunnelproxy_control_call_seconds_count{operation="OpenTunnel",outcome="ok"}'] >= 1
    wait_for(
        lambda: read_metrics(metrics_port)["tunnelproxy_event_loop_lag_seconds_count"] >= 1,
        "a measurement of the event loop",
    )


def test_metrics_contain_no_key_tunnel_or_thing(
    service: TunnelingService, metrics_port: int, opened: dict[str, str]
) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert not re.search(f"pump|AKIA|{opened['tunnelId']}", text)
