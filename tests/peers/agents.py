# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices with an agent each, a service that tells them of tunnels, and a controller: nothing is open yet."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .agent import AgentProcess
from .collection import Controller
from .device import Device, make_ssh_key
from .service import TunnelingService

__all__ = ["AgentFleet"]


class AgentFleet:
    """Use it as a context manager: inside, every agent waits for tunnels, and every host key is known.

    All agents lead to the same SSH server and HTTP server, which are those of ``hardware``.

    Args:
        things: names of the devices.
        absent: names of devices that are enrolled, and switched off.
        variables: inventory variables of all hosts.
    """

    def __init__(self, *things: str, absent: tuple[str, ...] = (), variables: dict[str, Any] | None = None) -> None:
        self._things = things
        self._absent = absent
        self._variables = variables or {}
        self._stack = ExitStack()

    def __enter__(self) -> AgentFleet:
        with ExitStack() as stack:
            self.home = Path(tempfile.mkdtemp(prefix="agents-"))
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            self.key = make_ssh_key(self.home / "key")
            self.service = stack.enter_context(TunnelingService("--mqtt-port", "0"))
            self.hardware = stack.enter_context(Device("hardware", self.service, self.home, self.key))
            addresses = f"SSH1={self.hardware.sshd.port},HTTP1={self.hardware.http.port}"
            for thing in self._things:
                folder = self.home / thing
                self.service.add_thing(thing, folder, "--services", addresses)
                stack.enter_context(AgentProcess(folder))
            hosts = (*self._things, *self._absent)
            variables = {
                "ansible_user": self.hardware.ssh_user,
                "ansible_ssh_private_key_file": str(self.key),
                **self._variables,
            }
            self.controller = stack.enter_context(
                Controller(self.service.environment, {host: {} for host in hosts}, variables)
            )
            lines = [self.hardware.sshd.host_key_line(host) for host in hosts]
            self.controller.known_hosts.write_text("".join(lines))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
