# SPDX-License-Identifier: GPL-3.0-or-later
"""Start-up costs: the import in each of Ansible's workers, and the connector of each ssh connection.

The import and the connector are measured as Ansible runs them, from the installed collection. The connector is compared
with a Python that does nothing, and the whole ssh connection with a direct one to the same SSH server.
"""

from __future__ import annotations

import argparse
import array
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from peers.fleet import Fleet

from .results import Results

__all__ = ["main"]

THING = "device-1"
# Ansible's loader of collections compiles what it imports each time; the connector finds bytecode.
IMPORTS = {"compiled afresh": ("-B", "-X", "pycache_prefix=/nonexistent"), "from bytecode": ()}


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks starts", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="rounds to take the median of (%(default)s)"
    )
    rounds = parser.parse_args(arguments).rounds
    results = Results("What starts often")
    with Fleet(THING) as fleet:
        collection = Path(fleet.controller.environment["ANSIBLE_COLLECTIONS_PATH"])
        package = collection / "ansible_collections" / "iotops" / "tunnel"
        account = fleet.tunnel(THING)["account"]
        path = package / "tunnelproxy" / "hub" / "connector.py"
        connector = [sys.executable, "-I", "-S", str(path), account, THING, "SSH1"]
        straight, through = _ssh_commands(fleet, connector)
        environment = fleet.controller.environment
        for number in range(rounds + 1):
            measured = Results("") if number == 0 else results  # the first round warms the caches
            for what, options in IMPORTS.items():
                measured.add(
                    f"import tunnelproxy.hub.client, {what} [ms]", "wall", _import_seconds(package, options) * 1000
                )
            _time(measured, "python that does nothing [ms]", lambda: _run([sys.executable, "-I", "-S", "-c", ""]))
            _time(measured, "connector, until ssh has its stream [ms]", lambda: _take_stream(connector, environment))
            _time(measured, "ssh straight to the SSH server [ms]", lambda: _run(straight, environment))
            _time(measured, "ssh through the tunnel [ms]", lambda: _run(through, environment))
    results.show("starts")


def _ssh_commands(fleet: Fleet, connector: Sequence[str]) -> tuple[list[str], list[str]]:
    device = fleet.devices[THING]
    common = [
        *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"HostKeyAlias={THING}", "-o", "ControlPath=none"),
        *("-o", f"UserKnownHostsFile={fleet.controller.known_hosts}", "-i", str(fleet.home / "key")),
        *("-l", device.ssh_user),
    ]
    command = " ".join(connector)
    through = ["-o", f"ProxyCommand={command}", "-o", "ProxyUseFdpass=yes"]
    return (
        [*common, "-p", str(device.sshd.port), "127.0.0.1", "true"],
        [*common, *through, THING, "true"],
    )


def _import_seconds(package: Path, options: Sequence[str]) -> float:
    code = (
        "import dataclasses, json, socket, sys, time, typing; "  # as in Ansible
        f"sys.path.insert(0, {str(package)!r}); began = time.perf_counter(); "
        "import tunnelproxy.hub.client; print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", *options, "-c", code], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} exited with {done.returncode}: {done.stderr}")


def _take_stream(connector: Sequence[str], environment: dict[str, str]) -> None:
    """Receive the stream as ssh does with ProxyUseFdpass: over a socket that is the connector's standard output."""
    ours, its = socket.socketpair()
    with ours, its, subprocess.Popen(connector, env=environment, stdin=subprocess.DEVNULL, stdout=its) as process:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
        for _, _, data in ancillary:
            for descriptor in array.array("i", data):
                os.close(descriptor)
        if not ancillary:
            raise SystemExit(f"{connector} exited without a stream")
        process.wait()


def _time(results: Results, what: str, action: Callable[[], None]) -> None:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    action()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results.add(what, "wall", wall * 1000)
    results.add(what, "CPU", cpu * 1000)
