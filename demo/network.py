# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the devices.

If the machine allows it (root, ``ip netns``, iptables), each device is behind its own router::

    this machine ── bridge 198.51.100.1 ─┬─ .2 router, NAT ── 192.168.1.10 device 1
                                         ├─ .3 router, NAT ── 192.168.1.10 device 2
                                         └─ .4 router, NAT ── 192.168.1.10 device 3

Everything except the bridge is in namespaces. The bridge has an address from a block reserved for documentation
(RFC 5737). Its name contains the number of a /28 of that block, so that several demos can run on one machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

__all__ = ["Loopback", "Namespaces", "NamespacesUnavailable", "Place"]

DEVICE_ADDRESS = "192.168.1.10"
ROUTER_ADDRESS = "192.168.1.1"
SLOTS = 16
ADDRESSES_PER_SLOT = 16


class NamespacesUnavailable(Exception):
    """This machine does not allow network namespaces; the text is the reason."""


@dataclass(frozen=True)
class Place:
    """Where a device runs.

    Attributes:
        prefix: what to put before every command line that runs there.
        public_address: the address of its router, if it has one.
    """

    prefix: tuple[str, ...]
    ssh_port: int
    http_port: int
    public_address: str | None


class Loopback:
    """All devices on the loopback address of this machine, on different ports."""

    service_host = "127.0.0.1"

    def place(self, _number: int, _thing: str) -> Place:
        """Where a device runs."""
        return Place((), _free_port(), _free_port(), None)


class Namespaces:
    """A bridge, and for each device one namespace for its router and one for itself."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.bridge = f"iotops-demo{slot}"
        self.service_host = self._address(1)

    @staticmethod
    def check() -> None:
        """Raise NamespacesUnavailable if it is obvious that namespaces cannot be created."""
        if os.geteuid() != 0:
            raise NamespacesUnavailable("only root can create network namespaces")
        for command in ("ip", "iptables", "unshare"):
            if shutil.which(command) is None:
                raise NamespacesUnavailable(f"the command {command} is not installed")

    @classmethod
    def claim(cls) -> Namespaces:
        """Create the bridge, which reserves its name and its addresses."""
        for slot in range(SLOTS):
            network = cls(slot)
            try:
                _run("ip", "link", "add", network.bridge, "type", "bridge")
            except NamespacesUnavailable as error:
                if "File exists" not in str(error):
                    raise
            else:
                return network
        raise NamespacesUnavailable(f"the bridges iotops-demo0 to iotops-demo{SLOTS - 1} of {SLOTS} demos exist")

    def build(self, devices: int) -> None:
        """Create everything behind the bridge, and check that a device can reach this machine."""
        _run("ip", "address", "add", f"{self.service_host}/28", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        for number in range(1, devices + 1):
            self._build_router(number)
            self._build_device(number)
        self._probe()

    def place(self, number: int, thing: str) -> Place:
        """Where a device runs; it has its own host name."""
        enter = ("ip", "netns", "exec", self._device(number))
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', thing)
        return Place((*enter, *named), 22, 80, self._address(1 + number))

    def remove(self) -> None:
        """Remove the bridge and the namespaces that exist."""
        for name in _namespaces():
            if name.startswith(f"{self.bridge}-"):
                _try("ip", "netns", "delete", name)
        # Deleting a namespace deletes the veth pairs that have an end in it.
        _try("ip", "link", "delete", self.bridge)

    def processes(self) -> list[int]:
        """IDs of the processes that run in the namespaces."""
        names = [name for name in _namespaces() if name.startswith(f"{self.bridge}-")]
        return [int(pid) for name in names for pid in _try("ip", "netns", "pids", name).split()]

    def _build_router(self, number: int) -> None:
        router, cable = self._router(number), f"{self.bridge}w{number}"
        _run("ip", "netns", "add", router)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "wan", "netns", router)
        _run("ip", "link", "set", cable, "master", self.bridge, "up")
        _run("ip", "-n", router, "address", "add", f"{self._address(1 + number)}/28", "dev", "wan")
        _run("ip", "-n", router, "link", "set", "wan", "up")
        inside = ("ip", "netns", "exec", router)
        _run(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        _run(*inside, "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
        # Allow outgoing connections and their replies only, as a home router does.
        _run(*inside, "iptables", "-P", "FORWARD", "DROP")
        _run(*inside, "iptables", "-A", "FORWARD", "-i", "lan", "-j", "ACCEPT")
        replies = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        _run(*inside, "iptables", "-A", "FORWARD", "-i", "wan", *replies)

    def _build_device(self, number: int) -> None:
        router, device = self._router(number), self._device(number)
        _run("ip", "netns", "add", device)
        _run("ip", "-n", router, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", device)
        _run("ip", "-n", router, "address", "add", f"{ROUTER_ADDRESS}/24", "dev", "lan")
        _run("ip", "-n", router, "link", "set", "lan", "up")
        _run("ip", "-n", device, "address", "add", f"{DEVICE_ADDRESS}/24", "dev", "eth0")
        _run("ip", "-n", device, "link", "set", "lo", "up")
        _run("ip", "-n", device, "link", "set", "eth0", "up")
        _run("ip", "-n", device, "route", "add", "default", "via", ROUTER_ADDRESS)

    def _probe(self) -> None:
        code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
        with socket.create_server((self.service_host, 0)) as listener:
            port = str(listener.getsockname()[1])
            try:
                _run(*self.place(1, "probe").prefix, sys.executable, "-c", code, self.service_host, port)
            except NamespacesUnavailable:
                raise NamespacesUnavailable(
                    "a firewall blocks connections from the namespaces to this machine"
                ) from None

    def _address(self, host: int) -> str:
        return f"198.51.100.{self.slot * ADDRESSES_PER_SLOT + host}"

    def _router(self, number: int) -> str:
        return f"{self.bridge}-router{number}"

    def _device(self, number: int) -> str:
        return f"{self.bridge}-device{number}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _try("ip", "netns", "list").splitlines() if line]


def _run(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  our own commands
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=_environment()
        )
    except OSError as error:
        raise NamespacesUnavailable(f"{command[0]}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no reason given"]
        raise NamespacesUnavailable(f"'{' '.join(command)}' failed: {said[-1]}") from None
    return done.stdout


def _try(*command: str) -> str:
    try:
        return _run(*command)
    except NamespacesUnavailable:
        return ""


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}
