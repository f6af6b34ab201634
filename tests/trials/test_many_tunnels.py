# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hundred tunnels, or ``TEST_TUNNELS``, that are all requested at once, and that all reconnect at once.

One hub, one service and one broker; the destinations share a process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest

from peers.broker import mosquitto_available
from peers.echo import EchoServer
from peers.process import Process, free_port, wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

TUNNELS = int(os.environ.get("TEST_TUNNELS", "200"))
THINGS = [f"device-{number}" for number in range(TUNNELS)]
JOINED_WITHIN = 120.0
MEGA = 1_000_000

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]


@dataclass
class Fleet:
    service: TunnelingService
    swarm: Process
    broker: Process

    def processes(self) -> dict[str, psutil.Process]:
        running = client.status()
        assert running is not None
        pids = {
            "hub": running["pid"],
            "service": self.service.pid,
            "broker": self.broker.pid,
            "devices": self.swarm.pid,
        }
        return {name: psutil.Process(pid) for name, pid in pids.items()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    port = free_port()
    configuration = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{user}")
    with ExitStack() as stack:
        broker = stack.enter_context(Process([mosquitto_available(), "-c", configuration], folder / "mosquitto.log"))
        broker.wait_for_output("running")
        echo = stack.enter_context(EchoServer())
        service = stack.enter_context(TunnelingService("--mqtt-broker", f"mqtt://127.0.0.1:{port}", "-v", "2"))
        command = [sys.executable, "-m", "benchmarks.device_swarm", str(port), str(echo.port), service.data, service.ca]
        swarm = stack.enter_context(Process(command, folder / "swarm.log"))
        swarm.wait_for_output("ready")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**service.environment, "IOTOPS_TUNNEL_DIR": str(folder / "hub")}.items():
            patch.setenv(name, value)
        stack.callback(client.stop)
        yield Fleet(service, swarm, broker)


def join(thing: str) -> str:
    """Open the tunnel of a thing, and return the outcome."""
    try:
        client.ensure(thing, open_policy="reuse", wait=JOINED_WITHIN, timeout=60.0, unregistered=True)
    except client.HubError as error:
        return str(error)
    return "joined"


def echoes(thing: str) -> bool:
    try:
        with socket.socket(fileno=client.open_stream(thing, "HTTP1", speaks_first=False)) as stream:
            stream.settimeout(20)
            stream.sendall(b"hello")
            return stream.recv(5) == b"hello"
    except (OSError, client.HubError):
        return False


def linked() -> int:
    running = client.status()
    return sum(row["state"] == "connected" for row in (running or {"tunnels": []})["tunnels"])


def measurements(fleet: Fleet, since: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {sum(process.cpu_times()[:2]) - since.get(name, 0.0):.1f} s CPU"
        f" {process.memory_info().rss / MEGA:.0f} MB {process.num_fds()} descriptors"
        for name, process in fleet.processes().items()
    )


def cpu(fleet: Fleet) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in fleet.processes().items()}


def test_all_join_at_once(fleet: Fleet) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(TUNNELS) as pool:
        outcomes = list(pool.map(join, THINGS))
    took = time.monotonic() - began
    print(f"{TUNNELS} tunnels joined {took:.1f} s after they were requested; {measurements(fleet, {})}")
    assert [outcome for outcome in outcomes if outcome != "joined"] == []
    assert took < JOINED_WITHIN
    with ThreadPoolExecutor(50) as pool:
        began = time.monotonic()
        assert all(pool.map(echoes, THINGS))
    print(f"an echo through each: {time.monotonic() - began:.1f} s")


def test_all_reconnect_at_once(fleet: Fleet) -> None:
    before = cpu(fleet)
    del before["service"]
    fleet.service.kill()
    wait_for(lambda: linked() == 0, "every lost link is detected")
    fleet.service.start()
    began = time.monotonic()
    wait_for(lambda: linked() == TUNNELS, "all are linked again", JOINED_WITHIN)
    print(
        f"the service was killed: the hub is in all {TUNNELS} tunnels {time.monotonic() - began:.1f} s after its return"
    )
    with ThreadPoolExecutor(50) as pool:
        wait_for(lambda: all(pool.map(echoes, THINGS)), "an echo through each", JOINED_WITHIN)
    print(f"every tunnel works {time.monotonic() - began:.1f} s after its return; {measurements(fleet, before)}")


def test_a_killed_hub_reconnects_to_all_tunnels(fleet: Fleet) -> None:
    running = client.status()
    assert running is not None
    os.kill(running["pid"], signal.SIGKILL)
    began = time.monotonic()
    with ThreadPoolExecutor(TUNNELS) as pool:
        outcomes = list(pool.map(join, THINGS))
    assert [outcome for outcome in outcomes if outcome != "joined"] == []
    wait_for(lambda: linked() == TUNNELS, "all are linked again", JOINED_WITHIN)
    print(f"the hub was killed: {TUNNELS} tunnels are joined again after {time.monotonic() - began:.1f} s")
