# SPDX-License-Identifier: GPL-3.0-or-later
"""The gain of a second service process behind one front: tunnels joined per second, and throughput of many tunnels.

There are always two client processes and the front. In each round, both clients use one service, and then each its own.
Clients, front and services share this machine's processors, so on two processors the second process cannot gain much.
The processor time of each process shows what it would gain on more:

    python -m benchmarks processes --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers.front import Front
from peers.service import TunnelingService

from .proxies import MEGA
from .results import Results, cpu_seconds

__all__ = ["main"]

CLIENTS = 2


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks processes", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds to take the median of (%(default)s)")
    parser.add_argument("--joins", type=int, default=200, metavar="N", help="tunnels to join per round (%(default)s)")
    parser.add_argument("--tunnels", type=int, default=8, metavar="N", help="tunnels with data at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="duration of a transfer (%(default)s)")
    options = parser.parse_args(arguments)
    results = Results("Clients of one service process, and of two, behind one front")
    with tempfile.TemporaryDirectory() as name, Front(Path(name)) as front:
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} …", flush=True)
            for services in (front.services[:1], front.services):
                _joins(results, front, services, options.joins)
                _bytes(results, front, services, options.tunnels, options.seconds)
    results.show("processes")


@dataclass
class _Run:
    """The outcome of one run of the clients.

    Attributes:
        number: tunnels joined or bytes received, in total.
        rate: the same per second.
        cpu: processor seconds of each kind of process.
    """

    number: float
    rate: float
    cpu: dict[str, float]


def _joins(results: Results, front: Front, services: list[TunnelingService], number: int) -> None:
    run = _run(front, services, "join", number // CLIENTS)
    results.add("tunnels joined, both ends [1/s]", _who(services), run.rate)
    for process, used in run.cpu.items():
        results.add(f"CPU for each: {process} [ms]", _who(services), used / run.number * 1000)


def _bytes(results: Results, front: Front, services: list[TunnelingService], tunnels: int, seconds: float) -> None:
    run = _run(front, services, "bulk", tunnels // CLIENTS, seconds)
    results.add(f"through {tunnels} tunnels at once [MB/s]", _who(services), run.rate / MEGA)
    for process, used in run.cpu.items():
        results.add(f"CPU for a gigabyte: {process} [s]", _who(services), used / run.number * 1e9)


def _who(services: list[TunnelingService]) -> str:
    return "1 process" if len(services) == 1 else f"{len(services)} processes"


def _run(front: Front, services: list[TunnelingService], *arguments: object) -> _Run:
    """Start clients for these services, let them begin at the same time, and collect their results."""
    command = [sys.executable, "-m", "benchmarks.tunnel_load", *map(str, arguments)]
    pids = {"services": [service.pid for service in services], "front": [front.process.pid]}
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **services[number % len(services)].environment},
                )
            )
            for number in range(CLIENTS)
        ]
        for client in clients:
            _line(client)
        before = {name: sum(map(cpu_seconds, of_name)) for name, of_name in pids.items()}
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        results = [json.loads(_line(client)) for client in clients]
        cpu = {name: sum(map(cpu_seconds, of_name)) - before[name] for name, of_name in pids.items()}
    number = sum(result["number"] for result in results)
    return _Run(
        number,
        number / max(result["seconds"] for result in results),
        {**cpu, "clients": sum(result["cpu"] for result in results)},
    )


def _line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise SystemExit(f"a client exited with {client.wait()}")
    return line
