# SPDX-License-Identifier: GPL-3.0-or-later
"""One hub with 1 to 1000 tunnels: memory per tunnel, the time to open one, and echoes over all of them at once.

The devices are a :mod:`~benchmarks.device_swarm`. Hub, service and broker are the real ones, one process each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from peers.broker import mosquitto_available
from peers.process import Process, free_port
from peers.service import TunnelingService
from tunnelproxy.hub import client as hub

from .methods import LOOPBACK, TUNNEL
from .plots import plot_growth
from .proxies import MEGA, client
from .results import Results, cpu_seconds, percentile

__all__ = ["grow", "main"]

SIZES = (1, 10, 100, 500, 1000)
AT_ONCE = 50
"""How many tunnels are requested at the same time, as by Ansible's forks."""

ECHO_SECONDS = 10.0
ECHO_PAUSE = 1.0
SETTLE_SECONDS = 2.0


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fleet", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tunnels", type=int, default=1000, metavar="N", help="number of tunnels at most (%(default)s)"
    )
    most = parser.parse_args(arguments).tunnels
    results = grow(tuple(size for size in SIZES if size <= most))
    results.show("fleet")
    memory = {f"memory of the {name} [MB]": name for name in ("hub", "service", "devices")}
    plot_growth(results, "fleet-memory", memory, "MB resident")
    plot_growth(results, "fleet-echo", {f"echo on all, one a second each, {p} [ms]": p for p in ("p50", "p99")}, "ms")


def grow(sizes: tuple[int, ...]) -> Results:
    """Open more and more tunnels, and measure at each size."""
    results = Results("One hub with many tunnels")
    with tempfile.TemporaryDirectory() as name, _fleet(Path(name)) as (service, swarm, server):
        before: dict[str, int] = {}
        opened = 0
        for size in sizes:
            who = str(size)
            began = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(_open, range(opened, size)))
            took = time.perf_counter() - began
            results.add("open one more, all at once [ms each]", who, took / (size - opened) * 1000)
            for number in range(opened, size):
                _accept_any_data(number)
            opened = size
            processes = {"hub": _hub_pid(), "service": service.pid, "devices": swarm.pid}
            time.sleep(SETTLE_SECONDS)  # let the fleet become idle
            idle = {process: cpu_seconds(pid) for process, pid in processes.items()}
            time.sleep(SETTLE_SECONDS)
            for process, pid in processes.items():
                memory = psutil.Process(pid).memory_info().rss
                results.add(f"memory of the {process} [MB]", who, memory / MEGA)
                if process in before:
                    growth = (memory - before[process]) / (size - before[f"{process} tunnels"])
                    results.add(f"each further tunnel in the {process} [kB]", who, growth / 1000)
                before[process], before[f"{process} tunnels"] = memory, size
                used = (cpu_seconds(pid) - idle[process]) / SETTLE_SECONDS
                results.add(f"idle CPU of the {process} [%]", who, used * 100)
            ports = [row["services"]["HTTP1"]["port"] for row in _rows()]
            for where, targets in ((TUNNEL, ports), (LOOPBACK, [server] * len(ports))):
                trips = client("echo_many", ECHO_SECONDS, ECHO_PAUSE, *targets)["seconds"]
                suffix = "" if where == TUNNEL else f", {LOOPBACK}"
                results.add(f"echo on all, one a second each, p50{suffix} [ms]", who, percentile(trips, 0.5) * 1000)
                results.add(f"echo on all, one a second each, p99{suffix} [ms]", who, percentile(trips, 0.99) * 1000)
            print(f"{size} tunnels open", flush=True)
    return results


def _open(number: int) -> dict[str, object]:
    return hub.ensure(f"device-{number}", open_policy="always", wait=60.0, timeout=60.0, unregistered=True)


def _accept_any_data(number: int) -> None:
    """Turn off the check of a device's port for HTTP requests, as echoes are not HTTP."""
    hub.ensure(f"device-{number}", ports={"HTTP1": 0}, any_host=["HTTP1"], unregistered=True)


def _rows() -> list[dict[str, Any]]:
    status = hub.status()
    assert status is not None
    rows: list[dict[str, Any]] = status["tunnels"]
    return rows


def _hub_pid() -> int:
    status = hub.status()
    assert status is not None
    return int(status["pid"])


@contextmanager
def _fleet(folder: Path) -> Iterator[tuple[TunnelingService, Process, int]]:
    """A local broker, a service, a server, and the device swarm; the hub starts on demand."""
    broker_port = free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {broker_port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    with (
        Process([mosquitto_available(), "-c", configuration], folder / "mosquitto.log") as broker,
        Process([sys.executable, "-m", "benchmarks.traffic", "serve"], folder / "traffic.log") as traffic,
    ):
        broker.wait_for_output("running")
        server = int(traffic.wait_for_output(r"^(\d+)\n")[1])
        options = ("--mqtt-broker", f"mqtt://127.0.0.1:{broker_port}", "--connections-per-address", "0", "-v", "2")
        with TunnelingService(*options) as service:
            command = [
                sys.executable,
                "-m",
                "benchmarks.device_swarm",
                str(broker_port),
                str(server),
                service.data,
                service.ca,
            ]
            with Process(command, folder / "swarm.log") as swarm:
                swarm.wait_for_output("ready")
                os.environ.update(service.environment, IOTOPS_TUNNEL_DIR=str(folder / "hub"))
                try:
                    yield service, swarm, server
                finally:
                    hub.stop()
