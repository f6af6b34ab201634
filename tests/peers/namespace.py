# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace, joined to this machine by a cable whose packets can be dropped."""

from __future__ import annotations

import os
import shutil
import subprocess

__all__ = ["NetworkNamespace", "why_impossible"]

# Of a block that no network uses (RFC 5737), and not the one of the demo.
HERE, THERE = "203.0.113.1", "203.0.113.2"


def why_impossible() -> str:
    """Why this machine does not allow namespaces; empty if it does."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    lacking = [command for command in ("ip", "iptables") if shutil.which(command) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


class NetworkNamespace:
    """A place of its own on the network; ``here`` is this machine's address as seen from there.

    Use it as a context manager: everything goes with it.
    """

    here = HERE

    def __init__(self) -> None:
        self.name = f"test-{os.getpid()}"
        self.enter = ("ip", "netns", "exec", self.name)

    def __enter__(self) -> NetworkNamespace:
        _run("ip", "netns", "add", self.name)
        try:
            cable = f"test{os.getpid()}"[:15]
            _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _run("ip", "address", "add", f"{HERE}/30", "dev", cable)
            _run("ip", "link", "set", cable, "up")
            _run("ip", "-n", self.name, "address", "add", f"{THERE}/30", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", self.name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Its end of the cable goes with it, and so does the other end.
        _run("ip", "netns", "delete", self.name)

    def drop_packets(self) -> None:
        """From now on nothing comes in or goes out, and nobody is told."""
        for chain in ("INPUT", "OUTPUT"):
            _run(*self.enter, "iptables", "-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")

    def pass_packets(self) -> None:
        """Undo :meth:`drop_packets`."""
        _run(*self.enter, "iptables", "-F")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
