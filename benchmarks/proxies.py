# SPDX-License-Identifier: GPL-3.0-or-later
"""One tunnel beside plain TCP, a stunnel pair and ``ssh -L``: throughput, echo, connections, start, memory, CPU.

Each round measures every way in turn, so that whatever else the machine does meets them all alike.

With ``--delay 50`` each of the tunnel's two WebSockets takes 50 ms in each direction, and each direction of the other
ways 100 ms, so that the server is as far away by each. Bulk data then goes as fast as windows let it: see
:mod:`peers.latency` for what this shows and what not.
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

from .figures import Figures, add_delay, delay_suffix, percentile
from .plots import plot_bars
from .ways import LOOPBACK, Way, all_ways

__all__ = ["compare", "main"]

MEGA = 1_000_000
BULK = 400
BULK_DELAYED = 10
ECHO_SECONDS = 3.0
ECHO_PAUSE = 0.002
CONNECTIONS = 400
WHEN = ("idle", "beside bulk up", "beside bulk down")
AT_ONCE = 20


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks proxies", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median counts (%(default)s)")
    parser.add_argument(
        "--megabytes", type=int, metavar="MB", help=f"in each bulk transfer ({BULK}; with a delay {BULK_DELAYED})"
    )
    add_delay(parser)
    options = parser.parse_args(arguments)
    delay = options.delay
    megabytes = options.megabytes or (BULK_DELAYED if delay else BULK)
    figures, memory = compare(options.rounds, megabytes, delay)
    figures.show(f"proxies{delay_suffix(delay)}")
    if not delay:
        memory.show("memory")
    bulk = {
        f"throughput {direction}, {number} [MB/s]": f"{direction},\n{number}"
        for number in ("1 connection", "8 connections")
        for direction in ("up", "down")
    }
    plot_bars(figures, f"throughput{delay_suffix(delay)}", bulk, "MB/s", without=(LOOPBACK,))
    plot_bars(figures, f"echo{delay_suffix(delay)}", {f"echo {when}, p99 [ms]": when for when in WHEN}, "ms, p99")


def compare(rounds: int, megabytes: int, delay: float = 0.0) -> tuple[Figures, Figures]:
    """Measure it all; memory goes into a table of its own, with a column for each process, unless there is a delay.

    Args:
        rounds: how many times.
        megabytes: what each bulk transfer moves, in 10^6 bytes.
        delay: milliseconds that each direction of a WebSocket takes.
    """
    title = "One tunnel beside what one would use instead"
    if delay:
        title += f"\n{delay:g} ms each way on both of its WebSockets, {2 * delay:g} ms on the others' one connection"
    figures = Figures(title)
    memory = Figures("Memory of each process [MB resident]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Process([sys.executable, "-m", "benchmarks.traffic", "serve"], folder / "traffic.log") as server:
            port = int(server.wait_for_output(r"^(\d+)\n")[1])
            with all_ways(port, folder, delay) as ways:
                if not delay:
                    _memory(memory, ways, "idle")
                for number in range(rounds):
                    print(f"round {number + 1} of {rounds} …", flush=True)
                    _round(figures, ways, megabytes * MEGA)
                if not delay:
                    for way in ways:
                        if way.processes:
                            for direction in ("up", "down"):
                                client("bulk", way.port, direction, 1000 * MEGA, 1)
                    _memory(memory, ways, "after 1 GB each way")
                # Last, for each takes the place of the tunnel's source.
                for _ in range(rounds):
                    _starts(figures, ways)
    return figures, memory


def _round(figures: Figures, ways: list[Way], size: int) -> None:
    for connections in (1, 8):
        for direction in ("up", "down"):
            for way in ways:
                before = way.cpu_seconds()
                moved = client("bulk", way.port, direction, size, connections)
                what = f"{direction}, {connections} connection{'s' if connections > 1 else ''}"
                figures.add(f"throughput {what} [MB/s]", way.name, moved["bytes_per_second"] / MEGA)
                if way.processes:
                    figures.add(f"CPU {what} [s/GB]", way.name, (way.cpu_seconds() - before) / size * 1e9)
    for way in ways:
        _echo(figures, way, "idle")
    for direction in ("up", "down"):
        for way in ways:
            arguments = ("saturate", way.second, direction, ECHO_SECONDS + 1.0)
            with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL):
                _echo(figures, way, f"beside bulk {direction}")
    for way in ways:
        connected = client("connects", way.port, CONNECTIONS, AT_ONCE)
        figures.add("connections [1/s]", way.name, connected["connections_per_second"])


def _echo(figures: Figures, way: Way, when: str) -> None:
    trips = client("echo", way.port, ECHO_SECONDS, ECHO_PAUSE)["seconds"]
    figures.add(f"echo {when}, p50 [ms]", way.name, percentile(trips, 0.5) * 1000)
    figures.add(f"echo {when}, p99 [ms]", way.name, percentile(trips, 0.99) * 1000)


def _memory(figures: Figures, ways: list[Way], when: str) -> None:
    for way in ways:
        for process, size in way.memory().items():
            figures.add(when, f"{way.name}: {process}", size / MEGA)


def _starts(figures: Figures, ways: list[Way]) -> None:
    for way in ways:
        if way.start_another is None:
            continue
        began = time.perf_counter()
        process, port = way.start_another()
        with process:
            _wait_for_a_byte(port(), process)
            figures.add("client's end: start to first byte [ms]", way.name, (time.perf_counter() - began) * 1000)


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
    """The traffic client's command line."""
    return [sys.executable, "-m", "benchmarks.traffic", what, *map(str, arguments)]


def client(what: str, *arguments: object) -> dict[str, Any]:
    """Run the traffic client, and return what it measured."""
    done = subprocess.run(command(what, *arguments), check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
