# SPDX-License-Identifier: GPL-3.0-or-later
"""What a second service process brings behind one front: tunnels joined per second, and bytes through many at once.

There are always two processes of clients, and always the front. In each round both go to one service, and then each to
its own. Clients, front and services share this machine's processors, so that on two of them the second process cannot
bring much; what each process used of them says what it would bring where there are more:

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
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks processes", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median counts (%(default)s)")
    parser.add_argument("--joins", type=int, default=200, metavar="N", help="tunnels joined in each (%(default)s)")
    parser.add_argument("--tunnels", type=int, default=8, metavar="N", help="that carry bytes at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for which they do (%(default)s)")
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
    """What became of one run of the clients.

    Attributes:
        number: what they did, all together.
        rate: the same for each second.
        cpu: seconds that each kind of process used for it.
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
    """Start clients for these services, let them go at the same moment, and gather what they say."""
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
        raise SystemExit(f"a client ended with {client.wait()}")
    return line
