# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenario, step by step."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

from . import processes
from .cleanup import Cleanup
from .console import Console
from .controller import REPOSITORY, Controller, become_here
from .device import Device
from .network import Impossible, Loopback, Namespaces

__all__ = ["STEPS", "Scenario"]

STEPS = 8
THINGS = ("turbine-1", "turbine-2", "turbine-3")
PLAYBOOK = "demo/playbooks/tour.yml"


class Scenario:
    """Tells one demo, from an empty folder to closed tunnels.

    Args:
        loopback: whether to use the loopback even where namespaces are possible.
    """

    def __init__(self, console: Console, cleanup: Cleanup, *, loopback: bool) -> None:
        self._console = console
        self._cleanup = cleanup
        self._controller = Controller(cleanup, console)
        self._state_dir = cleanup.folder / "service"
        self._loopback = loopback
        self._field: Loopback | Namespaces = Loopback()
        self._devices: list[Device] = []

    def run(self, *, keep: bool) -> None:
        """Run every step; leave the last one, which closes the tunnels, to the user if all is to be kept.

        Raises:
            Failure: a step failed.
        """
        started = time.monotonic()
        self._controller.prepare()
        self._install_collection()
        self._lay_network()
        self._start_service()
        self._start_devices()
        self._ping()
        self._work()
        self._check_health()
        if not keep:
            self._close_tunnels()
        self._console.success(f"All of it worked, in {time.monotonic() - started:.0f} s.")
        if keep:
            self._leave_up()

    def _install_collection(self) -> None:
        self._console.step(
            "Install the collection",
            "The collection iotops.tunnel is built and installed as its users do it, but below "
            f"{_short(self._cleanup.folder)}/, with settings of its own: nothing of yours is touched.",
        )
        build = self._cleanup.folder / "build"
        self._controller.run("ansible-galaxy", "collection", "build", "--output-path", _short(build), quiet=True)
        (tarball,) = build.glob("*.tar.gz")
        collections = _short(self._cleanup.folder / "collections")
        install = ("ansible-galaxy", "collection", "install", _short(tarball), "--collections-path", collections)
        self._controller.run(*install, quiet=True)

    def _lay_network(self) -> None:
        self._console.step(
            "Put three devices out of reach",
            "Devices in the field sit behind routers that let nobody in. The demo wants three of those.",
        )
        reason = "you asked for that"
        if not self._loopback:
            try:
                self._field = self._lay_namespaces()
            except Impossible as error:
                reason = str(error)
        if isinstance(self._field, Namespaces):
            self._console.say(
                "Network: namespaces. Each device has a namespace behind a router with NAT; all three have the same "
                f"address, 192.168.1.10, on networks of their own. Between the routers and this machine lies the "
                f"bridge {self._field.bridge}, which stands for the internet."
            )
        else:
            self._console.say(
                f"Network: loopback ({reason}). The devices are processes on this machine, on ports of their own. "
                "Nothing keeps you from those ports, but Ansible does not know them: it goes through the tunnels."
            )

    def _lay_namespaces(self) -> Namespaces:
        Namespaces.check()
        network = Namespaces.claim()
        self._cleanup.slot = network.slot
        self._cleanup.save()
        try:
            network.build(len(THINGS))
        except Impossible:
            network.remove()
            self._cleanup.slot = None
            self._cleanup.save()
            raise
        return network

    def _start_service(self) -> None:
        self._console.step(
            "Start the tunneling service",
            "Both ends of a tunnel call this service, which joins them: that is how a device is reached without "
            "reaching into its network. It speaks the protocols of AWS IoT Secure Tunneling, and needs no account. Its "
            "MQTT broker tells a device when there is a tunnel to it.",
        )
        arguments = ["tunnelproxy", "service", "run", "--state-dir", _short(self._state_dir)]
        arguments += ["--host", self._field.service_host, "--mqtt-port", "0"]
        self._console.command(f"{shlex.join(arguments)} &")
        log = self._cleanup.logs / "service.log"
        command = [sys.executable, "-m", *arguments]
        process = processes.start(command, log, self._controller.environment)
        self._cleanup.add_process(process.pid)
        ready = processes.wait_for(process, log, r"(?m)^ready .*\n", "the tunneling service")
        self._console.answer(ready.group().strip())
        self._controller.use_service(self._read_service_environment())

    def _read_service_environment(self) -> dict[str, str]:
        """What ``eval "$(tunnelproxy service env)"`` would set; not printed, for it holds a secret key."""
        command = [sys.executable, "-m", "tunnelproxy", "service", "env", "--state-dir", str(self._state_dir)]
        environment = self._controller.environment
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
        words = (shlex.split(line) for line in said.stdout.splitlines())
        return dict(assignment.split("=", 1) for _, assignment in words)

    def _start_devices(self) -> None:
        self._console.step(
            "Start the devices",
            "Each runs an SSH server and an HTTP server, both on its loopback address, and the agent, which waits for "
            "tunnels. What the agent needs, its password above all, is made when the device is enrolled.",
        )
        for number, thing in enumerate(THINGS, 1):
            device = Device(thing, self._field.place(number, thing), self._cleanup)
            device.start_servers(self._controller.ssh_key)
            self._devices.append(device)
            self._enrol(device)
        for device in self._devices:
            self._console.command(f"{shlex.join(device.agent_command)} &", prompt=f"{device.thing}$")
            device.start_agent()
        self._controller.know(self._devices, become_here())
        self._show_walls()

    def _enrol(self, device: Device) -> None:
        command = ["tunnelproxy", "service", "add-thing", device.thing, "--services", device.services]
        where = ["--state-dir", _short(self._state_dir), "--output", _short(device.enrolment)]
        self._controller.run(*command, *where, quiet=True)

    def _show_walls(self) -> None:
        routers = [device.place.public_address for device in self._devices if device.place.public_address]
        if not routers:
            return
        self._console.say("Nobody gets in from here: all that can be seen of a device is its router, and that refuses.")
        for router in routers:
            self._controller.run_in_vain(
                "ssh", "-T", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", router
            )

    def _ping(self) -> None:
        self._console.step(
            "Ping them",
            "There is no tunnel yet, and no playbook has to open one. The hub, a process in the background, opens a "
            "tunnel to each device; the service tells the agent by MQTT, and the agent joins. Then Ansible logs in by "
            "SSH. The hub holds the tunnels for all that follows.",
        )
        self._controller.run("ansible", "-i", _short(self._controller.inventory), "all", "-m", "ping")

    def _work(self) -> None:
        become = become_here() is not None
        self._console.step(
            "Do a day's work",
            "Any playbook works: this one reads facts, copies a file to each device"
            + (", fetches it back, and becomes another user." if become else ", and fetches it back."),
        )
        if become:
            self._controller.run("ansible-playbook", PLAYBOOK)
        else:
            self._console.say("It becomes no other user: here that takes root, or sudo without a password.")
            self._controller.run("ansible-playbook", PLAYBOOK, "--skip-tags", "become")

    def _check_health(self) -> None:
        self._console.step(
            "Check their health",
            "An HTTP request to each device, through the same tunnels; and what the hub has carried so far.",
        )
        self._controller.run("ansible-playbook", "iotops.tunnel.health")
        self._controller.run("tunnelproxy", "hub", "status")

    def _close_tunnels(self) -> None:
        self._console.step("Close the tunnels", "A closed tunnel never opens again: its tokens are worth nothing now.")
        self._controller.run("ansible-playbook", "iotops.tunnel.close")

    def _leave_up(self) -> None:
        path = self._controller.write_environment(self._state_dir, self._field.service_host)
        self._console.step("Over to you", "All is left up. In a shell of yours, in this folder:")
        for line in (
            f"source {shlex.quote(_short(path))}",
            "ansible devices -m ping",
            "ansible devices -a 'uname -a'",
            *(f"curl {url}      # or in a browser" for _thing, url in self._controller.pages()),
            "tunnelproxy hub status",
            "ansible-playbook iotops.tunnel.health",
            "make demo-stop                    # removes all of it",
        ):
            self._console.plain(f"    {line}")


def _short(path: Path) -> str:
    """A path as one would type it in the repository."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(REPOSITORY))
    return str(path)
