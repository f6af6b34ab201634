# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace, connected to this machine by a veth pair whose packets can be dropped."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

__all__ = ["NetworkNamespace", "why_impossible"]

# A documentation block (RFC 5737), other than that of the demo and 192.0.2.0, which tests use for unreachable hosts.
# Each of the parallel tests has four addresses.
BLOCK = "203.0.113"
SLOTS = 64

# A documentation block (RFC 3849), not a private one, which getaddrinfo(3) would sort behind IPv4 (RFC 6724).
DEAD_NETWORK = "2001:db8"
DEAD = f"{DEAD_NETWORK}::dead"
"""An unreachable address, see :meth:`NetworkNamespace.name_hosts`."""


def why_impossible() -> str:
    """Why this machine does not allow namespaces; empty if it does."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    lacking = [command for command in ("ip", "iptables") if shutil.which(command) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


class NetworkNamespace:
    """A network namespace; ``here`` is this machine's address as seen from it.

    Use it as a context manager, which removes everything at the end.
    """

    def __enter__(self) -> NetworkNamespace:
        slot = self._claim()
        self.here, there = (f"{BLOCK}.{4 * slot + number}" for number in (1, 2))
        try:
            _run("ip", "address", "add", f"{self.here}/30", "dev", self.name)
            _run("ip", "link", "set", self.name, "up")
            _run("ip", "-n", self.name, "address", "add", f"{there}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", self.name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The veth pair first: together with the namespace, it would disappear later, when the next test needs its name.
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "delete", self.name)
        _run("ip", "netns", "delete", self.name)
        shutil.rmtree(Path("/etc/netns", self.name), ignore_errors=True)

    def name_hosts(self, *names: str) -> None:
        """Give this machine names there, each with two addresses: the first, IPv6, drops packets."""
        _run("ip", "-n", self.name, "address", "add", f"{DEAD_NETWORK}::1/64", "dev", "eth0", "nodad")
        _run("ip", "-n", self.name, "neighbour", "add", DEAD, "lladdr", "02:00:00:00:00:01", "dev", "eth0")
        folder = Path("/etc/netns", self.name)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{address} {name}\n" for name in names for address in (DEAD, self.here)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))

    def _claim(self) -> int:
        """Create a namespace and a veth pair, which reserves its name; return the number in the name.

        A killed test's namespace may survive its deletion while a process runs in it, and so may the veth pair.
        """
        for slot in range(SLOTS):
            self.name = f"iotops-test{slot}"
            self.enter = ("ip", "netns", "exec", self.name)
            if not _make("ip", "netns", "add", self.name):
                continue
            if _make("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name):
                return slot
            _run("ip", "netns", "delete", self.name)
        raise RuntimeError(f"{SLOTS} tests have left their namespaces iotops-test0 … behind")

    def drop_packets(self, port: int | None = None) -> None:
        """Drop all packets in both directions, without an error to either side.

        Args:
            port: drop only packets from and to this TCP port of the other side.
        """
        for chain, device, end in (("INPUT", "-i", "--sport"), ("OUTPUT", "-o", "--dport")):
            only = () if port is None else ("-p", "tcp", end, str(port))
            _run(*self.enter, "iptables", "-A", chain, "!", device, "lo", *only, "-j", "DROP")

    def pass_packets(self) -> None:
        """Undo :meth:`drop_packets`."""
        _run(*self.enter, "iptables", "-F")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _make(*command: str) -> bool:
    """Whether the name was free."""
    try:
        _run(*command)
    except subprocess.CalledProcessError as error:
        if b"File exists" not in error.stderr:
            raise
        return False
    return True
