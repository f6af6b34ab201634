# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong clocks, with libfaketime: devices start in 1970 until NTP sets the time, or are set to a wrong year."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.agent import AgentProcess
from peers.clock import FakedClock
from peers.process import REPOSITORY, Process, wait_for
from peers.proxies import OpenTunnel, open_tunnel
from peers.service import TunnelingService

IN_1970 = "@1970-01-01 00:00:00"
IN_2099 = "@2099-01-01 00:00:00"
NOT_VALID_YET = r"is not valid yet: it is valid from \d{4}-\d\d-\d\d \d\d:\d\d UTC, and this machine's clock says "
EXPIRED = r"has expired: it was valid until \d{4}-\d\d-\d\d \d\d:\d\d UTC, and this machine's clock says "


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService("--mqtt-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def pump(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an enrolled device."""
    folder = tmp_path_factory.mktemp("device") / "pump"
    service.add_thing("pump", folder)
    with (folder / "agent.yml").open("a") as file:
        file.write("state_dir: state\n")
    return folder


def start_source(service: TunnelingService, tunnel: OpenTunnel, clock: FakedClock, log: Path) -> Process:
    environment = {**service.environment, **clock.environment, "AWSIOT_TUNNEL_ACCESS_TOKEN": tunnel.source_token}
    return Process([sys.executable, "-m", "tunnelproxy", "-m", "src"], log, {**os.environ, **environment})


def test_a_proxy_that_starts_in_1970_reports_it_and_connects_once_the_clock_is_set(
    service: TunnelingService, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock", IN_1970)
    with start_source(service, open_tunnel(service), clock, tmp_path / "log") as source:
        source.wait_for_output(
            rf"the certificate of {service.data} {NOT_VALID_YET}1970-01-01 00:0\d UTC: set the clock \(NTP\) if it is "
            "wrong; trying again"
        )
        clock.set()
        source.wait_for_output("connected to")


def test_a_proxy_with_a_clock_past_the_certificates_expiry_reports_the_date_and_exits(
    service: TunnelingService, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock", IN_2099)
    with start_source(service, open_tunnel(service), clock, tmp_path / "log") as source:
        assert source.wait() == 1
        source.wait_for_output(rf"the certificate of {service.data} {EXPIRED}2099-01-01 00:0\d UTC: renew the certif")


def test_agent_check_reports_a_wrong_clock(pump: Path, tmp_path: Path) -> None:
    clock = FakedClock(tmp_path / "clock", IN_1970)
    command = [sys.executable, "-m", "tunnelproxy", "agent", "check", "--connect", "--config", str(pump / "agent.yml")]
    done = subprocess.run(
        command, env={**os.environ, **clock.environment}, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(f"the MQTT broker .*: its certificate {NOT_VALID_YET}1970-01-01", done.stderr)


def test_a_tunnel_saved_in_the_future_is_kept_and_rejoined_once_the_clock_is_set(
    service: TunnelingService, pump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentProcess(pump) as agent:
        tunnel = open_tunnel(service, thing="pump")
        wait_for(lambda: destination_status(service, tunnel) == "CONNECTED", "the agent has joined")
    clock = FakedClock(tmp_path / "clock", "-2d")
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    agent = AgentProcess(pump)
    try:
        process = agent.start(until=r"the MQTT broker \S+: its certificate is not valid yet")
        for name in clock.environment:
            monkeypatch.delenv(name)
        process.wait_for_output(
            r"it was saved at \S+ \S+ UTC, but this device's clock says \S+ \S+ UTC: its age is unknown"
        )
        process.wait_for_output(rf"the certificate of {service.data} {NOT_VALID_YET}")
        assert destination_status(service, tunnel) == "DISCONNECTED"
        clock.set()
        wait_for(lambda: destination_status(service, tunnel) == "CONNECTED", "the agent has joined again")
        process.wait_for_output("waiting for notifications")
    finally:
        agent.stop()


def destination_status(service: TunnelingService, tunnel: OpenTunnel) -> str:
    described = service.boto3_client().describe_tunnel(tunnelId=tunnel.tunnel_id)
    return str(described["tunnel"]["destinationConnectionState"]["status"])
