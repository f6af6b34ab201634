# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of the demo."""

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
from .controller import REPOSITORY, Controller, available_become
from .device import Device
from .network import Loopback, Namespaces, NamespacesUnavailable

__all__ = ["STEPS", "Scenario"]

STEPS = 8
THINGS = ("turbine-1", "turbine-2", "turbine-3")
PLAYBOOK = "demo/playbooks/tour.yml"


class Scenario:
    """One run of the demo, from an empty folder to closed tunnels.

    Args:
        loopback: whether to use the loopback interface even if namespaces are available.
    """

    def __init__(self, console: Console, cleanup: Cleanup, *, loopback: bool) -> None:
        self._console = console
        self._cleanup = cleanup
        self._controller = Controller(cleanup, console)
        self._state_dir = cleanup.folder / "service"
        self._loopback = loopback
        self._network: Loopback | Namespaces = Loopback()
        self._devices: list[Device] = []

    def run(self, *, keep: bool) -> None:
        """Run all steps; with ``keep``, all except the last one, which closes the tunnels.

        Raises:
            Failure: a step failed.
        """
        started = time.monotonic()
        self._controller.prepare()
        self._install_collection()
        self._create_network()
        self._start_service()
        self._start_devices()
        self._ping()
        self._run_playbook()
        self._check_health()
        if not keep:
            self._close_tunnels()
        self._console.success(f"All steps succeeded in {time.monotonic() - started:.0f} s.")
        if keep:
            self._explain_next_steps()

    def _install_collection(self) -> None:
        self._console.step(
            "Install the collection",
            "The collection iotops.tunnel is built and installed as a user would do it, but below "
            f"{_short(self._cleanup.folder)}/ and with separate settings. Your own files and settings stay unchanged.",
        )
        build = self._cleanup.folder / "build"
        self._controller.run("ansible-galaxy", "collection", "build", "--output-path", _short(build), quiet=True)
        (tarball,) = build.glob("*.tar.gz")
        collections = _short(self._cleanup.folder / "collections")
        install = ("ansible-galaxy", "collection", "install", _short(tarball), "--collections-path", collections)
        self._controller.run(*install, quiet=True)

    def _create_network(self) -> None:
        self._console.step(
            "Put three devices out of reach",
            "Deployed devices are behind routers that block incoming connections. The demo creates three of them.",
        )
        reason = "as requested"
        if not self._loopback:
            try:
                self._network = self._create_namespaces()
            except NamespacesUnavailable as error:
                reason = str(error)
        if isinstance(self._network, Namespaces):
            self._console.explain(
                "Network: namespaces. Each device has its own network behind a router with NAT, and all three have the "
                "same address, 192.168.1.10. The routers are connected to this machine by the bridge "
                f"{self._network.bridge}, which stands for the internet."
            )
        else:
            self._console.explain(
                f"Network: loopback ({reason}). The devices are processes on this machine, on different ports. "
                "Those ports are not blocked, but Ansible does not know them: it uses the tunnels."
            )

    def _create_namespaces(self) -> Namespaces:
        Namespaces.check()
        network = Namespaces.claim()
        self._cleanup.slot = network.slot
        self._cleanup.save()
        try:
            network.build(len(THINGS))
        except NamespacesUnavailable:
            network.remove()
            self._cleanup.slot = None
            self._cleanup.save()
            raise
        return network

    def _start_service(self) -> None:
        self._console.step(
            "Start the tunneling service",
            "Both ends of a tunnel connect to this service, which joins them, so a device needs no incoming "
            "connection. The service speaks the protocols of AWS IoT Secure Tunneling, and needs no cloud account. Its "
            "MQTT broker notifies a device of a new tunnel.",
        )
        arguments = ["tunnelproxy", "service", "run", "--state-dir", _short(self._state_dir)]
        arguments += ["--host", self._network.service_host, "--mqtt-port", "0"]
        self._console.command(f"{shlex.join(arguments)} &")
        log = self._cleanup.logs / "service.log"
        command = [sys.executable, "-m", *arguments]
        process = processes.start(command, log, self._controller.environment)
        self._cleanup.add_process(process.pid)
        ready = processes.wait_for(process, log, r"(?m)^ready .*\n", "the tunneling service")
        self._console.output(ready.group().strip())
        self._controller.use_service(self._read_service_environment())

    def _read_service_environment(self) -> dict[str, str]:
        """The variables that ``eval "$(tunnelproxy service env)"`` sets. They are not shown, as one is a secret key."""
        command = [sys.executable, "-m", "tunnelproxy", "service", "env", "--state-dir", str(self._state_dir)]
        environment = self._controller.environment
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
        words = (shlex.split(line) for line in done.stdout.splitlines())
        return dict(assignment.split("=", 1) for _, assignment in words)

    def _start_devices(self) -> None:
        self._console.step(
            "Start the devices",
            "Each device runs an SSH server and an HTTP server, both on its loopback address, and the agent, which "
            "waits for tunnels. Enrolling a device creates the agent's configuration and password.",
        )
        for number, thing in enumerate(THINGS, 1):
            device = Device(thing, self._network.place(number, thing), self._cleanup)
            device.start_servers(self._controller.ssh_key)
            self._devices.append(device)
            self._enrol(device)
        for device in self._devices:
            self._console.command(f"{shlex.join(device.agent_command)} &", prompt=f"{device.thing}$")
            device.start_agent()
        self._controller.write_inventory(self._devices, available_become())
        self._show_routers()

    def _enrol(self, device: Device) -> None:
        command = ["tunnelproxy", "service", "add-thing", device.thing, "--services", device.services]
        where = ["--state-dir", _short(self._state_dir), "--output", _short(device.enrolment)]
        self._controller.run(*command, *where, quiet=True)

    def _show_routers(self) -> None:
        routers = [device.place.public_address for device in self._devices if device.place.public_address]
        if not routers:
            return
        self._console.explain(
            "A direct connection fails: only a device's router can be reached from here, and it refuses."
        )
        for router in routers:
            self._controller.run_expecting_failure(
                "ssh", "-T", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", router
            )

    def _ping(self) -> None:
        self._console.step(
            "Ping the devices",
            "No tunnel is open yet, and no playbook has to open one. The hub, a background process, opens a tunnel to "
            "each device, the service notifies the agent by MQTT, and the agent connects. Then Ansible logs in over "
            "SSH. The hub keeps the tunnels open for later commands.",
        )
        self._controller.run("ansible", "-i", _short(self._controller.inventory), "all", "-m", "ping")

    def _run_playbook(self) -> None:
        become = available_become() is not None
        self._console.step(
            "Run a playbook",
            "Playbooks need no changes. This one gathers facts, copies a file to each device"
            + (", fetches it back, and becomes another user." if become else ", and fetches it back."),
        )
        if become:
            self._controller.run("ansible-playbook", PLAYBOOK)
        else:
            self._console.explain("It does not become another user: that requires root, or sudo without a password.")
            self._controller.run("ansible-playbook", PLAYBOOK, "--skip-tags", "become")

    def _check_health(self) -> None:
        self._console.step(
            "Check the health of the devices",
            "This sends an HTTP request to each device through the same tunnels, and then shows the hub's tunnels.",
        )
        self._controller.run("ansible-playbook", "iotops.tunnel.health")
        self._controller.run("tunnelproxy", "hub", "status")

    def _close_tunnels(self) -> None:
        self._console.step(
            "Close the tunnels", "A closed tunnel cannot be reopened, and its tokens are no longer valid."
        )
        self._controller.run("ansible-playbook", "iotops.tunnel.close")

    def _explain_next_steps(self) -> None:
        path = self._controller.write_environment(self._state_dir, self._network.service_host)
        self._console.step("Try it yourself", "The demo is still running. In another shell, in this folder:")
        for line in (
            f"source {shlex.quote(_short(path))}",
            "ansible devices -m ping",
            "ansible devices -a 'uname -a'",
            *(f"curl {url}      # or in a browser" for _thing, url in self._controller.pages()),
            "tunnelproxy hub status",
            "ansible-playbook iotops.tunnel.health",
            "make demo-stop                    # stops and removes the demo",
        ):
            self._console.plain(f"    {line}")


def _short(path: Path) -> str:
    """A path relative to the repository, if possible."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(REPOSITORY))
    return str(path)
