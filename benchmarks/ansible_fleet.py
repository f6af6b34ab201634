# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of tunnels for a playbook, compared with plain ssh to the same SSH servers.

Each device has an sshd, a destination proxy and a tunnel. Devices, tunneling service and controller share this
machine's processors, so the processor time of the proxies and the service counts against the tunnels, although in
production other machines do that work, and no network latency hides it. Each round runs both methods, one after the
other, and the order alternates:

    python -m benchmarks ansible --hosts 10 50 --rounds 7

Three jobs are timed, as whole processes:

- ``play``: ansible_fleet_play.yml, ten tasks, starting without ssh connections;
- ``ping warm``: ``ansible -m ping`` over open ssh connections;
- ``ping cold``: the same, starting without ssh connections but with all tunnels open.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from peers.fleet import Fleet

from .plots import plot_bars
from .results import RESULTS, Results, cpu_seconds

HERE = Path(__file__).resolve().parent
METHODS = ("tunnel", "ssh")
GOALS = {"play": 1.10, "ping warm": 1.05, "ping cold": 1.15}
PAYLOAD_BYTES = 100_000
# The masters of one method must outlive the other's turn; otherwise this is Ansible's default.
SSH_ARGS = "-C -o ControlMaster=auto -o ControlPersist=30m"


@dataclass
class Timing:
    """The times of one job with one method.

    Attributes:
        wall: seconds of each round.
        ansible: processor seconds of Ansible and of the ssh processes that it waits for.
        ours: processor seconds of the hub, the service and the destination proxies together.
        connections: SSH logins of each round, from the logs of the SSH servers.
    """

    wall: list[float] = field(default_factory=list)
    ansible: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)


class Bench:
    """The fleet, and how to run a job with either method.

    Args:
        pipelining: whether to turn it on or off; None for the default of each method.
        address: where the SSH servers listen.
    """

    def __init__(self, fleet: Fleet, *, pipelining: bool | None, address: str = "127.0.0.1") -> None:
        self.fleet = fleet
        self._address = address
        self.controller = fleet.controller
        self._runs = 0
        self._payload = fleet.home / "payload"
        self._payload.write_bytes(os.urandom(PAYLOAD_BYTES))
        self._inventories = {"tunnel": self._inventory("tunnel"), "ssh": self._inventory("ssh")}
        self._environment = {"ANSIBLE_SSH_ARGS": SSH_ARGS}
        if pipelining is not None:
            self._environment["ANSIBLE_PIPELINING"] = str(pipelining)

    def play(self, method: str) -> list[str]:
        self._runs += 1
        variables = json.dumps({"run": self._runs, "payload": str(self._payload)})
        return ["ansible-playbook", str(HERE / "ansible_fleet_play.yml"), *self._options(method), "-e", variables]

    def ping(self, method: str) -> list[str]:
        return ["ansible", "all", "-m", "ansible.builtin.ping", *self._options(method)]

    def time(self, command: list[str], timing: Timing) -> None:
        """Time a command, which must succeed on all hosts."""
        ours, logins = self._our_seconds(), self._logins()
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = {**self.controller.environment, **self._environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        timing.wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{command} exited with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        timing.ansible.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        timing.ours.append(self._our_seconds() - ours)
        timing.connections.append(self._logins() - logins)

    def processes(self) -> dict[str, Any]:
        """Our processes on the controller, in addition to Ansible and ssh."""
        package = "/iotops/tunnel/tunnelproxy"
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "memory_info"]):
            line = " ".join(process.info["cmdline"] or ())
            if package in line and str(self.controller.environment["ANSIBLE_COLLECTIONS_PATH"]) in line:
                found.append({"pid": process.info["pid"], "rss_mib": process.info["memory_info"].rss / 2**20})
        hub = self.controller.hub_status()["pid"]
        return {
            "hub_rss_mib": next(row["rss_mib"] for row in found if row["pid"] == hub),
            "others": len(found) - 1,
            "control_masters": len(self.controller.control_sockets()),
        }

    def _inventory(self, method: str) -> Path:
        common = json.loads(self.controller.inventory.read_text())["devices"]["vars"]
        hosts: dict[str, dict[str, Any]] = {}
        for thing, device in self.fleet.devices.items():
            hosts[thing] = {"folder": str(device.folder / method)}
            if method == "ssh":
                hosts[thing] |= {"ansible_host": self._address, "ansible_port": device.sshd.port}
            (device.folder / method).mkdir(exist_ok=True)
        if method == "ssh":
            # This name, the default, makes ansible-playbook read its options once, not in each worker.
            common["ansible_connection"] = "ssh"
            # known_hosts has the keys under the thing names.
            common["ansible_ssh_common_args"] += " -o HostKeyAlias={{ inventory_hostname }}"
        path = self.fleet.home / f"{method}.json"
        path.write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
        return path

    def _options(self, method: str) -> list[str]:
        return ["--inventory", str(self._inventories[method]), "--forks", str(len(self.fleet.devices))]

    def _our_seconds(self) -> float:
        proxies = [device.proxy.pid for device in self.fleet.devices.values() if device.proxy is not None]
        pids = [self.controller.hub_status()["pid"], self.fleet.service.pid, *proxies]
        return sum(map(cpu_seconds, pids))

    def _logins(self) -> int:
        return sum(device.sshd.process.output().count("Accepted publickey") for device in self.fleet.devices.values())


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ansible", description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 10, 50], metavar="N", help="sizes of the fleets")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of the play (%(default)s)")
    parser.add_argument("--ping-rounds", type=int, default=11, metavar="N", help="rounds of each ping (%(default)s)")
    parser.add_argument("--pipelining", action="store_true", help="turn on pipelining (off by default in Ansible)")
    parser.add_argument("--only", choices=sorted(GOALS), action="append", help="run only this job; may be repeated")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report: dict[str, Any] = {
        "machine": machine(),
        "pipelining": options.pipelining,
        "fleets": {},
    }
    RESULTS.mkdir(exist_ok=True)
    for hosts in options.hosts:
        report["fleets"][str(hosts)] = measure_fleet(hosts, options)
        # A large fleet takes long: keep what has been measured if it is interrupted.
        (RESULTS / "ansible.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    plot(report)


def measure_fleet(hosts: int, options: argparse.Namespace) -> dict[str, Any]:
    """The part of the report for one fleet size."""
    things = [f"device-{number:02}" for number in range(1, hosts + 1)]
    print(f"Setting up {hosts} device{'' if hosts == 1 else 's'} …", flush=True)
    with Fleet(*things) as fleet:
        bench = Bench(fleet, pipelining=options.pipelining)
        rounds = {"play": options.rounds, "ping warm": options.ping_rounds, "ping cold": options.ping_rounds}
        wanted = {name: number for name, number in rounds.items() if name in (options.only or GOALS)}
        results = {name: measure(bench, name, number) for name, number in wanted.items()}
        return {
            "load": [round(load, 1) for load in os.getloadavg()],
            "jobs": {name: summary(name, timings) for name, timings in results.items()},
            "processes": bench.processes(),
        }


def measure(bench: Bench, name: str, rounds: int) -> dict[str, Timing]:
    """Time a job with both methods in turn; the first run of each is not counted."""
    make: Callable[[str], list[str]] = bench.play if name == "play" else bench.ping
    timings = {method: Timing() for method in METHODS}
    bench.controller.disconnect()
    for method in METHODS:
        bench.time(make(method), Timing())
    for number in range(rounds):
        for method in METHODS if number % 2 == 0 else reversed(METHODS):
            if name != "ping warm":
                bench.controller.disconnect()
            bench.time(make(method), timings[method])
        walls = ", ".join(f"{method} {timing.wall[-1]:.2f} s" for method, timing in timings.items())
        print(f"{name}, round {number + 1}: {walls}", flush=True)
    return timings


def summary(name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    """Medians of both methods, and the ratio of each round."""
    tunnel, ssh = (timings[method] for method in METHODS)
    ratios = [a / b for a, b in zip(tunnel.wall, ssh.wall)]
    return {
        "goal": GOALS[name],
        "ratio": statistics.median(tunnel.wall) / statistics.median(ssh.wall),
        "ratio_by_round": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        **{method: {**medians(timing), "rounds": asdict(timing)} for method, timing in timings.items()},
    }


def medians(timing: Timing) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in asdict(timing).items()}


def machine() -> dict[str, Any]:
    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return (done.stdout + done.stderr).splitlines()[0]

    return {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "ansible": first_line("ansible", "--version"),
        "ssh": first_line("ssh", "-V"),
    }


def show(report: dict[str, Any]) -> None:
    print(f"\n{title(report)}; {report['machine']}")
    columns = ("hosts", "job", "tunnel s", "ssh s", "ratio", "goal", "by round")
    columns += ("cpu tunnel", "cpu ssh", "ours cpu", "logins")
    rows = []
    jobs = [(hosts, *item) for hosts, fleet in report["fleets"].items() for item in fleet["jobs"].items()]
    for hosts, name, job in jobs:
        tunnel, ssh, by_round = job["tunnel"], job["ssh"], job["ratio_by_round"]
        spread = f"{by_round['median']:.3f} ({by_round['min']:.2f} to {by_round['max']:.2f})"
        logins = f"{tunnel['connections']:.0f}/{ssh['connections']:.0f}"
        results = (f"{tunnel['wall']:.2f}", f"{ssh['wall']:.2f}", f"{job['ratio']:.3f}", f"{job['goal']:.2f}", spread)
        seconds = (f"{tunnel['ansible']:.2f}", f"{ssh['ansible']:.2f}", f"{tunnel['ours']:.2f}")
        rows.append((hosts, name, *results, *seconds, logins))
    widths = [max(len(row[column]) for row in [columns, *rows]) for column in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for hosts, fleet in report["fleets"].items():
        processes = fleet["processes"]
        print(
            f"on the controller, with a fleet of {hosts}: 1 hub of {processes['hub_rss_mib']:.0f} MiB, "
            f"{processes['others']} other processes of the collection, "
            f"{processes['control_masters']} control masters of ssh (both methods)"
        )


def title(report: dict[str, Any]) -> str:
    """The conditions of the measurement, in words."""
    return f"As many forks as hosts, {'with' if report['pipelining'] else 'without'} pipelining"


def plot(report: dict[str, Any]) -> None:
    """Draw the wall times: one chart for the play, and one for the pings, which are much shorter."""
    results = Results(title(report))
    pictures: dict[str, dict[str, str]] = {"play": {}, "ping": {}}
    for hosts, fleet in report["fleets"].items():
        for job, done in fleet["jobs"].items():
            what = f"{job}, {hosts} hosts"
            pictures[job.split()[0]][what] = f"{job},\n{hosts} host{'' if hosts == '1' else 's'}"
            for method in METHODS:
                for wall in done[method]["rounds"]["wall"]:
                    results.add(what, method, wall)
    for picture, rows in pictures.items():
        if rows:
            plot_bars(results, f"ansible-{picture}", rows, "s")
