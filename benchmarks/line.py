# SPDX-License-Identifier: GPL-3.0-or-later
"""One tunnel compared with plain TCP, ``ssh -L`` and two stunnel pairs over lines with a round trip.

The operator and the service are at the near end of the line, the device is at the far end. Each round measures every
method in turn, for each congestion control. Needs root, for network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from peers import process, service
from peers.device import Sshd, make_ssh_key, proxy_environment
from peers.fleet import Fleet
from peers.line import Line, LineEnds, Profile, available_congestion_controls, set_congestion_control
from peers.process import Process, free_port, wait_for
from peers.proxies import open_tunnel
from peers.service import TunnelingService

from .ansible_fleet import Bench, Timing
from .methods import listens, ssh_command, write_certificate
from .plots import plot_bars
from .results import Results, percentile

__all__ = ["main"]

PROFILES = {
    "20ms": Profile(round_trip=20, down=200, up=200, queue=50),
    "60ms": Profile(round_trip=60, down=40, up=15, queue=300),
    "80ms-loss": Profile(round_trip=80, down=20, up=20, queue=200, loss=1),
    "100ms": Profile(round_trip=100, down=100, up=100, queue=200),
    "600ms": Profile(round_trip=600, down=20, up=20, queue=300),
    # 50 ms, 15 more or less.
    "lte": Profile(round_trip=35, down=30, up=10, queue=400, jitter=15),
}
METHODS = ("tcp", "ssh", "stunnel", "tunnel")
MEASURES = ("throughput", "echo", "first-byte", "ansible")
ECHO_PAUSE = 0.02
# How long TCP grows before a bulk transfer counts. At 600 ms, plain TCP reaches 1.6 MB/s within 8 s, and 2.4 within 20.
SETTLING_ROUND_TRIPS = 20
SETTLING_SECONDS = 3
# Data that is buffered when a measurement ends crosses the line during the next. After 8 transfers upwards with ssh -L
# over the line "lte" that takes 14 s, and the method after it had 0.24 MB/s, not 3.57.
QUIET_SECONDS = 120
QUIET_PACKETS = 5
# Longer than any measurement: it is killed.
BULK_SECONDS = 3600
MEGA = 1e6


@dataclass(frozen=True)
class Way:
    """A way to the far end."""

    name: str
    port: str
    second: str


@dataclass(frozen=True)
class Time:
    """How long to measure.

    Attributes:
        settle: seconds in which a bulk transfer grows, and is not measured.
        measure: seconds after that.
        quiet: seconds without packets after which the line counts as quiet.
    """

    settle: float
    measure: float
    quiet: float


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks line", description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=_names(PROFILES), default=list(PROFILES), metavar="A,B")
    parser.add_argument("--methods", type=_names(METHODS), default=list(METHODS), metavar="A,B")
    parser.add_argument("--measures", type=_names(MEASURES), default=list(MEASURES), metavar="A,B")
    controls = [name for name in ("bbr", "cubic", "reno") if name in available_congestion_controls()]
    parser.add_argument("--congestion", type=_names(controls), default=controls[:2], metavar="A,B")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds to take the median of (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="duration of each (%(default)s)")
    parser.add_argument(
        "--tree", type=Path, action="append", default=[], metavar="DIR", help="another version's repository to compare"
    )
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        inside = json.loads(options.inside)
        folder, time = Path(inside.pop("folder")), Time(**inside.pop("time"))
        _measure(options, folder, LineEnds(**inside), time)
        return
    results = Results("Over a line: the tunnel compared with the alternatives")
    for name in options.profiles:
        for congestion in options.congestion:
            _run_profile(results, name, congestion, options, arguments)
            print(results.table(), flush=True)
    results.show("line")
    for name in options.profiles:
        _plot(results, name)


def _plot(results: Results, profile: str) -> None:
    """Charts of one line: what is measured in the same unit is in one of them."""
    kinds = {"throughput": ("throughput ", "MB/s"), "echo": ("echo ", "ms"), "ansible": (("play", "ping"), "s")}
    for kind, (starts, unit) in kinds.items():
        rows = {}
        for what in results.values:
            measure, _, line = what.partition(": ")
            name, _, congestion = line.partition(" ")
            if name == profile and measure.startswith(starts):
                rows[what] = f"{measure.partition(' [')[0].removeprefix(f'{kind} ')}\n{congestion}"
        if rows:
            plot_bars(results, f"line-{profile}-{kind}", rows, unit)


def _names(known: Sequence[str] | dict[str, Profile]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse


def _run_profile(results: Results, name: str, congestion: str, options: Any, arguments: list[str]) -> None:
    """Make the line, and measure within its near end; then, tell how accurate the line was."""
    with tempfile.TemporaryDirectory() as folder:
        line = Line(PROFILES[name], Path(folder) / "line.log")
        with line as ends:
            set_congestion_control(ends, congestion)
            round_trip = PROFILES[name].round_trip / 1000
            time = Time(
                settle=max(SETTLING_SECONDS, SETTLING_ROUND_TRIPS * round_trip),
                measure=options.seconds,
                quiet=max(1.0, 3 * round_trip),
            )
            inside = json.dumps({"folder": folder, "time": asdict(time), **asdict(ends)})
            command = [*ends.near, sys.executable, "-m", "benchmarks", "line", *arguments, "--inside", inside]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
                assert running.stdout is not None
                for text in running.stdout:
                    what, who, value = json.loads(text)
                    results.add(f"{what}: {name} {congestion}", who, value)
            if running.returncode:
                raise SystemExit(f"the measurements of {name} with {congestion} have failed")
        report = line.report()
    for what, value in (
        ("packets late, p99 [ms]", report.late_p99 * 1000),
        ("processor [%]", report.processor_share * 100),
    ):
        results.add(f"{what}: {name} {congestion}", "the line itself", value)


def _measure(options: Any, folder: Path, ends: LineEnds, time: Time) -> None:
    """Run in the near namespace: set up the methods, and print each value."""
    with ExitStack() as stack:
        server = [*ends.far, sys.executable, "-m", "benchmarks.traffic", "serve", "0.0.0.0"]  # noqa: S104
        traffic = stack.enter_context(Process(server, folder / "traffic.log"))
        port = int(traffic.wait_for_output(r"^(\d+)\n")[1])
        wanted = [measure for measure in options.measures if measure in _MEASUREMENTS]
        ways = list(_ways(stack, options, ends, folder, port)) if wanted else []
        for _ in range(options.rounds):
            for measure in wanted:
                for way in ways:
                    for what, value in _MEASUREMENTS[measure](way, time):
                        _print(what, way.name, value)
    if "ansible" in options.measures:
        _wait_until_quiet(time)
        _measure_ansible(options.rounds, ends)


def _print(what: str, who: str, value: float) -> None:
    print(json.dumps([what, who, value]), flush=True)


def _measure_ansible(rounds: int, ends: LineEnds) -> None:
    """A play of ten tasks, and pings, with plain ssh as it is, with plain ssh and pipelining, and through a tunnel."""
    with Fleet("device-01", line=ends) as fleet:
        usual, pipelined = (Bench(fleet, pipelining=value, address=ends.far_address) for value in (None, True))
        variants = {"ssh": (usual, "ssh"), "ssh, pipelining": (pipelined, "ssh"), "tunnel": (usual, "tunnel")}
        for _ in range(rounds):
            for name, (bench, method) in variants.items():
                for job, make in (("play", bench.play), ("ping cold", bench.ping), ("ping warm", bench.ping)):
                    if job != "ping warm":
                        fleet.controller.disconnect()
                    timing = Timing()
                    bench.time(make(method), timing)
                    _print(f"{job} [s]", name, timing.wall[0])


def _ways(stack: ExitStack, options: Any, ends: LineEnds, folder: Path, server: int) -> Iterator[Way]:
    if "tcp" in options.methods:
        address = f"{ends.far_address}:{server}"
        yield Way("plain TCP", address, address)
    if "ssh" in options.methods:
        yield stack.enter_context(_ssh(ends, folder, server))
    if "stunnel" in options.methods:
        yield stack.enter_context(_stunnel_twice(ends, folder, server))
    if "tunnel" in options.methods:
        for number, tree in enumerate([process.REPOSITORY, *options.tree]):
            yield stack.enter_context(_tunnel(ends, folder / f"tunnel{number}", server, tree))


@contextmanager
def _ssh(ends: LineEnds, folder: Path, server: int) -> Iterator[Way]:
    key = make_ssh_key(folder / "key")
    sshd = Sshd(folder / "sshd", key, host=ends.far_address, enter=ends.far)
    port = free_port()
    command = ssh_command(sshd.port, key, port, server, ends.far_address)
    try:
        with Process(command, folder / "ssh.log"):
            wait_for(lambda: listens(port), "ssh forwards its port")
            yield Way("ssh -L", str(port), str(port))
    finally:
        sshd.stop()


@contextmanager
def _stunnel_twice(ends: LineEnds, folder: Path, server: int) -> Iterator[Way]:
    """A pair across the line, and a pair at its near end: the shape of the tunnel."""
    certificate, key = write_certificate(folder)
    common = "foreground = yes\npid =\nsyslog = no\n"
    middle, between, near_middle, port = (free_port() for _ in range(4))
    parts = {
        "far-server": (ends.far, f"accept = {ends.far_address}:{middle}\nconnect = 127.0.0.1:{server}\n"),
        "far-client": ((), f"client = yes\naccept = 127.0.0.1:{between}\nconnect = {ends.far_address}:{middle}\n"),
        "near-server": ((), f"accept = 127.0.0.1:{near_middle}\nconnect = 127.0.0.1:{between}\n"),
        "near-client": ((), f"client = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{near_middle}\n"),
    }
    with ExitStack() as stack:
        for name, (enter, lines) in parts.items():
            secrets = (
                f"CAfile = {certificate}\nverifyPeer = yes\n"
                if "client" in name
                else f"cert = {certificate}\nkey = {key}\n"
            )
            file = folder / f"stunnel-{name}.conf"
            file.write_text(f"{common}[it]\n{lines}{secrets}")
            running = stack.enter_context(Process([*enter, "stunnel", file], folder / f"stunnel-{name}.log"))
            running.wait_for_output("Configuration successful")
        yield Way("two stunnel pairs", str(port), str(port))


@contextmanager
def _tunnel(ends: LineEnds, folder: Path, server: int, tree: Path) -> Iterator[Way]:
    """A tunnel whose processes run the version in ``tree``."""
    folder.mkdir()
    python = sys.executable
    with ExitStack() as stack:
        with _processes_of(tree):
            running = stack.enter_context(TunnelingService("--host", ends.near_address, "--mqtt-port", "0"))
            tunnel = open_tunnel(running)
            destination = [*ends.far, python, "-m", "tunnelproxy", "-d", f"SSH1={server},HTTP1={server}"]
            environment = proxy_environment(running, tunnel.destination_token)
            far_end = stack.enter_context(Process(destination, folder / "destination.log", environment))
            far_end.wait_for_output("connected")
            source = [python, "-m", "tunnelproxy", "-m", "src"]
            environment = proxy_environment(running, tunnel.source_token)
            proxy = stack.enter_context(Process(source, folder / "source.log", environment))
        ports = [proxy.wait_for_output(rf"{name}: listening on 127.0.0.1:(\d+)")[1] for name in ("SSH1", "HTTP1")]
        name = "tunnel" if tree == Path(__file__).parents[1] else f"tunnel ({tree.name})"
        yield Way(name, ports[0], ports[1])


@contextmanager
def _processes_of(tree: Path) -> Iterator[None]:
    """Processes that start meanwhile run the version in ``tree``."""
    before = process.REPOSITORY, service.ROOT
    process.REPOSITORY = service.ROOT = tree
    try:
        yield
    finally:
        process.REPOSITORY, service.ROOT = before


def _wait_until_quiet(time: Time) -> None:
    """Wait until nothing is left of the measurement before; a few packets may be keepalives."""
    seen, since = _packets(), monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        if _packets() - seen > QUIET_PACKETS:
            seen, since = _packets(), monotonic()
        return monotonic() - since >= time.quiet

    wait_for(quiet, "the line is quiet", QUIET_SECONDS)


def _packets() -> int:
    """How many packets have crossed the line, both ways: those of all devices of this namespace but the loopback."""
    counted = 0
    for device in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = device.partition(":")
        # Packets received and sent are the second and the tenth of the numbers.
        counted += 0 if name.strip() == "lo" else sum(int(numbers.split()[place]) for place in (1, 9))
    return counted


def _throughput(path: Way, time: Time) -> Iterator[tuple[str, float]]:
    for connections in (1, 8):
        for direction in ("down", "up"):
            _wait_until_quiet(time)
            moved = _client("steady", path.port, direction, time.settle, time.measure, connections)
            yield f"throughput {direction}, {connections} [MB/s]", moved["bytes_per_second"] / MEGA


def _echo(path: Way, time: Time) -> Iterator[tuple[str, float]]:
    _wait_until_quiet(time)
    yield from _echoes(path, time.measure / 2, "idle")
    for direction in ("down", "up"):
        _wait_until_quiet(time)
        command = _command("saturate", path.second, direction, BULK_SECONDS)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as bulk:
            try:
                _client("echo", path.port, time.settle, ECHO_PAUSE)
                yield from _echoes(path, time.measure, f"beside {direction}")
                if bulk.poll() is not None:
                    raise RuntimeError("the bulk transfer ended before the echoes")
            finally:
                bulk.kill()


def _echoes(path: Way, seconds: float, when: str) -> Iterator[tuple[str, float]]:
    trips = _client("echo", path.port, seconds, ECHO_PAUSE)["seconds"]
    for share in (50, 99):
        yield f"echo {when}, p{share} [ms]", percentile(trips, share / 100) * 1000


def _first_byte(path: Way, time: Time) -> Iterator[tuple[str, float]]:
    _wait_until_quiet(time)
    for value in _client("first_byte", path.port, 3)["seconds"]:
        yield "first byte [ms]", value * 1000


_MEASUREMENTS: dict[str, Callable[[Way, Time], Iterator[tuple[str, float]]]] = {
    "throughput": _throughput,
    "echo": _echo,
    "first-byte": _first_byte,
}


def _command(what: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.traffic", what, *map(str, arguments)]


def _client(what: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(_command(what, *arguments), check=True, capture_output=True, text=True, env=os.environ)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
