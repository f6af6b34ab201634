# SPDX-License-Identifier: GPL-3.0-or-later
"""One tunnel compared with plain TCP, stunnel and ``ssh -L``: throughput, echo, connections, start, memory, CPU.

Each round measures every method in turn, so that other load on the machine affects all of them alike.

Everything is on one machine. :mod:`benchmarks.line` measures the same over lines with a round trip.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.process import Process

from .methods import LOOPBACK, Method, all_methods
from .plots import plot_bars
from .results import Results, percentile

__all__ = ["compare", "main"]

MEGA = 1_000_000
BULK = 400
ECHO_SECONDS = 3.0
ECHO_PAUSE = 0.002
CONNECTIONS = 400
WHEN = ("idle", "during bulk up", "during bulk down")
AT_ONCE = 20


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks proxies", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (%(default)s)")
    parser.add_argument(
        "--megabytes", type=int, default=BULK, metavar="MB", help="size of each bulk transfer (%(default)s)"
    )
    options = parser.parse_args(arguments)
    results, memory = compare(options.rounds, options.megabytes)
    results.show("proxies")
    memory.show("memory")
    bulk = {
        f"throughput {direction}, {number} [MB/s]": f"{direction},\n{number}"
        for number in ("1 connection", "8 connections")
        for direction in ("up", "down")
    }
    plot_bars(results, "throughput", bulk, "MB/s", without=(LOOPBACK,))
    plot_bars(results, "echo", {f"echo {when}, p99 [ms]": when for when in WHEN}, "ms, p99")


def compare(rounds: int, megabytes: int) -> tuple[Results, Results]:
    """Measure everything. Memory has its own table, with a column for each process.

    Args:
        rounds: the number of rounds.
        megabytes: the size of each bulk transfer, in 10^6 bytes.
    """
    results = Results("One tunnel compared with the alternatives")
    memory = Results("Memory of each process [MB resident]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Process([sys.executable, "-m", "benchmarks.traffic", "serve"], folder / "traffic.log") as server:
            port = int(server.wait_for_output(r"^(\d+)\n")[1])
            with all_methods(port, folder) as methods:
                _memory(memory, methods, "idle")
                for number in range(rounds):
                    print(f"round {number + 1} of {rounds} …", flush=True)
                    _round(results, methods, megabytes * MEGA)
                for method in methods:
                    if method.processes:
                        for direction in ("up", "down"):
                            client("bulk", method.port, direction, 1000 * MEGA, 1)
                _memory(memory, methods, "after 1 GB each way")
                # Last, because each start replaces the tunnel's source.
                for _ in range(rounds):
                    _starts(results, methods)
    return results, memory


def _round(results: Results, methods: list[Method], size: int) -> None:
    for connections in (1, 8):
        for direction in ("up", "down"):
            for method in methods:
                before = method.cpu_seconds()
                moved = client("bulk", method.port, direction, size, connections)
                what = f"{direction}, {connections} connection{'s' if connections > 1 else ''}"
                results.add(f"throughput {what} [MB/s]", method.name, moved["bytes_per_second"] / MEGA)
                if method.processes:
                    results.add(f"CPU {what} [s/GB]", method.name, (method.cpu_seconds() - before) / size * 1e9)
    for method in methods:
        _echo(results, method, "idle")
    for direction in ("up", "down"):
        for method in methods:
            arguments = ("saturate", method.second, direction, ECHO_SECONDS + 1.0)
            with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL):
                _echo(results, method, f"during bulk {direction}")
    for method in methods:
        connected = client("connects", method.port, CONNECTIONS, AT_ONCE)
        results.add("connections [1/s]", method.name, connected["connections_per_second"])


def _echo(results: Results, method: Method, when: str) -> None:
    trips = client("echo", method.port, ECHO_SECONDS, ECHO_PAUSE)["seconds"]
    results.add(f"echo {when}, p50 [ms]", method.name, percentile(trips, 0.5) * 1000)
    results.add(f"echo {when}, p99 [ms]", method.name, percentile(trips, 0.99) * 1000)


def _memory(results: Results, methods: list[Method], when: str) -> None:
    for method in methods:
        for process, size in method.memory().items():
            results.add(when, f"{method.name}: {process}", size / MEGA)


def _starts(results: Results, methods: list[Method]) -> None:
    for method in methods:
        if method.start_another is None:
            continue
        began = time.perf_counter()
        process, port = method.start_another()
        with process:
            _wait_for_a_byte(port(), process)
            results.add("client's end: start to first byte [ms]", method.name, (time.perf_counter() - began) * 1000)


def _wait_for_a_byte(port: int, process: Process) -> None:
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(b"E.")
                if sock.recv(1) == b".":
                    return
        except OSError:
            if process.popen.poll() is not None:
                raise
        time.sleep(0.001)


def command(what: str, *arguments: object) -> list[str]:
    """The command line of the traffic client."""
    return [sys.executable, "-m", "benchmarks.traffic", what, *map(str, arguments)]


def client(what: str, *arguments: object) -> dict[str, Any]:
    """Run the traffic client, and return what it measured."""
    done = subprocess.run(command(what, *arguments), check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
