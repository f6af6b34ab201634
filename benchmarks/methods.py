# SPDX-License-Identifier: GPL-3.0-or-later
"""The compared methods of reaching a server: plain TCP, stunnel, ssh -L, and the tunnel.

Each method leads from two loopback ports to the same server, and lists its processes.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from peers.device import Sshd, make_ssh_key
from peers.process import Process, free_port, wait_for
from peers.proxies import ProxyPair, start_proxy
from peers.service import TunnelingService

from .results import cpu_seconds

__all__ = [
    "LOOPBACK",
    "SSH",
    "STUNNEL",
    "TUNNEL",
    "TWICE",
    "Method",
    "all_methods",
    "listens",
    "ssh_command",
    "write_certificate",
]

LOOPBACK = "plain TCP"
STUNNEL = "stunnel pair"
TWICE = "two stunnel pairs"
SSH = "ssh -L"
TUNNEL = "tunnel"


@dataclass
class Method:
    """One method of reaching the server.

    Attributes:
        port: a port that leads to the server.
        second: a second port that leads there. For the tunnel, it belongs to another service of the same tunnel.
        processes: process IDs by name.
        start_another: starts another process at the client's end while the first one runs, and returns it with a
            function that returns its port; None if the method has no process at the client's end.
    """

    name: str
    port: int
    second: int
    processes: dict[str, int] = field(default_factory=dict)
    start_another: Callable[[], tuple[Process, Callable[[], int]]] | None = None

    def cpu_seconds(self) -> float:
        """The processor time of all its processes, in user and system mode."""
        return sum(map(cpu_seconds, self._all()))

    def memory(self) -> dict[str, int]:
        """Resident memory of each process, in bytes."""
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self.processes.items()}

    def _all(self) -> list[int]:
        children = [
            child.pid for pid in self.processes.values() for child in psutil.Process(pid).children(recursive=True)
        ]
        return [*self.processes.values(), *children]


@contextmanager
def all_methods(server: int, folder: Path) -> Iterator[list[Method]]:
    """Set up all methods, to the same server."""
    with (
        _stunnel(server, folder) as stunnel,
        _stunnel_twice(server, folder) as twice,
        _ssh(server, folder) as ssh,
        _tunnel(server, folder) as tunnel,
    ):
        yield [Method(LOOPBACK, server, server), stunnel, twice, ssh, tunnel]


@contextmanager
def _stunnel(server: int, folder: Path) -> Iterator[Method]:
    folder.mkdir(exist_ok=True)
    certificate, key = write_certificate(folder)
    middle, port = free_port(), free_port()
    common = "foreground = yes\npid =\nsyslog = no\n"
    far = folder / "stunnel-server.conf"
    far.write_text(
        f"{common}[far]\naccept = 127.0.0.1:{middle}\nconnect = 127.0.0.1:{server}\ncert = {certificate}\nkey = {key}\n"
    )

    def start_client(port: int) -> Process:
        near = folder / f"stunnel-{port}.conf"
        near.write_text(
            f"{common}[near]\nclient = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{middle}\n"
            f"CAfile = {certificate}\nverifyPeer = yes\n"
        )
        return Process(["stunnel", near], folder / f"stunnel-{port}.log")

    def start_another() -> tuple[Process, Callable[[], int]]:
        other = free_port()
        return start_client(other), lambda: other

    with (
        Process(["stunnel", far], folder / "stunnel-server.log") as server_end,
        start_client(port) as client_end,
    ):
        for process in (server_end, client_end):
            process.wait_for_output("Configuration successful")
        processes = {"server": server_end.pid, "client": client_end.pid}
        yield Method(STUNNEL, port, port, processes, start_another)


@contextmanager
def _stunnel_twice(server: int, folder: Path) -> Iterator[Method]:
    """Two pairs in a row: the TLS work of a tunnel, done in C, with one hop more."""
    with (
        _stunnel(server, folder / "far") as far,
        _stunnel(far.port, folder / "near") as near,
    ):
        processes = {
            f"{place} {name}": pid
            for place, pair in (("far", far), ("near", near))
            for name, pid in pair.processes.items()
        }
        yield Method(TWICE, near.port, near.port, processes)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for stunnel, and its key."""
    certificate, key = folder / "stunnel.pem", folder / "stunnel.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def ssh_command(sshd: int, key: Path, port: int, server: int, host: str = "127.0.0.1") -> list[str]:
    """The command line of ``ssh -L`` to the server's port, without prompts."""
    return [
        *("ssh", "-F", "none", "-N", "-p", str(sshd), "-i", str(key), "-L", f"127.0.0.1:{port}:127.0.0.1:{server}"),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"),
        *("-o", "ExitOnForwardFailure=yes", f"{getpass.getuser()}@{host}"),
    ]


@contextmanager
def _ssh(server: int, folder: Path) -> Iterator[Method]:
    key = make_ssh_key(folder / "key")
    sshd = Sshd(folder / "sshd", key)
    port = free_port()

    def start_client(port: int) -> Process:
        return Process(ssh_command(sshd.port, key, port, server), folder / f"ssh-{port}.log")

    def start_another() -> tuple[Process, Callable[[], int]]:
        other = free_port()
        return start_client(other), lambda: other

    try:
        with start_client(port) as client:
            wait_for(lambda: listens(port), "ssh forwards its port")
            yield Method(SSH, port, port, {"sshd": sshd.process.pid, "ssh": client.pid}, start_another)
    finally:
        sshd.stop()


def listens(port: int) -> bool:
    """Whether a process listens on a port of this network namespace."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.net_connections("tcp")
    )


@contextmanager
def _tunnel(server: int, folder: Path) -> Iterator[Method]:
    with (
        TunnelingService() as service,
        ProxyPair(service, folder, {"SSH1": server, "HTTP1": server}) as pair,
    ):
        processes = {"service": service.pid, "source": pair.source.pid, "destination": pair.destination.pid}
        yield Method(
            TUNNEL, pair.ports["SSH1"], pair.ports["HTTP1"], processes, lambda: _start_source(service, pair, folder)
        )


def _start_source(service: TunnelingService, pair: ProxyPair, folder: Path) -> tuple[Process, Callable[[], int]]:
    """Another source for the pair's tunnel, which replaces the running one."""
    rotated = service.boto3_client().rotate_tunnel_access_token(tunnelId=pair.tunnel.tunnel_id, clientMode="SOURCE")
    log = folder / "another-source.log"
    log.unlink(missing_ok=True)
    process = start_proxy(service, rotated["sourceAccessToken"], ["-m", "src"], log)
    return process, lambda: int(process.wait_for_output(r"SSH1: listening on 127.0.0.1:(\d+)")[1])
