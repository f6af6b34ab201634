# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunneling service, devices behind it, and a controller.

In a :class:`Fleet`, the controller's hub holds a tunnel to each device, to which the token was copied. In an
:class:`AgentFleet`, each device has an agent, and there is no tunnel yet.
"""

from __future__ import annotations

import getpass
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .agent import AgentProcess
from .collection import Controller
from .device import Device, make_ssh_key
from .line import LineEnds
from .service import TunnelingService

__all__ = ["AgentFleet", "Fleet"]

# Starting a process takes a third of a second of CPU time, so start only a few at once.
AT_ONCE = 4


class Fleet:
    """Use it as a context manager: inside, every device is connected, and its host key is known.

    Args:
        things: the names of the devices.
        variables: inventory variables of all hosts.
        enter: for some things, the start of a command line that runs their SSH server elsewhere.
        line: a line, at whose far end all devices are. The fleet is set up at its near end.
    """

    def __init__(
        self,
        *things: str,
        variables: dict[str, Any] | None = None,
        enter: Mapping[str, Sequence[str]] | None = None,
        line: LineEnds | None = None,
    ) -> None:
        self._things = things
        self._enter = enter or {}
        self._line = line
        self._variables = variables or {}
        self._stack = ExitStack()
        self.devices: dict[str, Device] = {}

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            self.home = Path(tempfile.mkdtemp(prefix="fleet-"))
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            key = make_ssh_key(self.home / "key")
            line = self._line
            options = () if line is None else ("--host", line.near_address)
            self.service = stack.enter_context(TunnelingService(*options))
            for thing in self._things:
                if line is None:
                    device = Device(thing, self.service, self.home, key, self._enter.get(thing, ()))
                else:
                    device = Device(thing, self.service, self.home, key, line.far, line.far_address, line.far)
                self.devices[thing] = stack.enter_context(device)
            variables = {
                "ansible_user": next(iter(self.devices.values())).ssh_user,
                "ansible_ssh_private_key_file": str(key),
                # Their tokens are copied by hand, so they are not enrolled.
                "iotops_tunnel_unregistered": True,
                **self._variables,
            }
            # The same address for all, as in inventories written for port forwarding. In a host's name, Ansible would
            # read a colon as the start of a port.
            hosts = {
                thing.replace(":", "-"): {
                    "ansible_host": "localhost",
                    "ansible_port": 2200,
                    **({"iotops_tunnel_thing": thing} if ":" in thing else {}),
                }
                for thing in self._things
            }
            self.controller = stack.enter_context(Controller(self.service.environment, hosts, variables))
            self.trust_host_keys()
            self.connect()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def trust_host_keys(self) -> None:
        """Write the current host key of each device to the controller's known_hosts."""
        lines = [device.sshd.host_key_line(thing) for thing, device in self.devices.items()]
        self.controller.known_hosts.write_text("".join(lines))

    def connect(self) -> None:
        """Open the tunnels with the playbook, and connect the devices with the tokens that it writes."""
        tokens = self.home / "tokens"
        tokens.mkdir(mode=0o700, exist_ok=True)
        done = self.controller.playbook("iotops.tunnel.open", "-e", f"iotops_tunnel_destination_token_dir={tokens}")
        assert done.returncode == 0, done.stdout + done.stderr
        for thing, device in self.devices.items():
            file = tokens / thing
            assert file.stat().st_mode & 0o777 == 0o600
            device.start_proxy(file.read_text())
            device.wait_connected(self.tunnel(thing)["tunnel_id"])

    def connect_anew(self, thing: str) -> None:
        """Restart a device's proxy with another token: a token works for one process only."""
        tunnel_id = self.tunnel(thing)["tunnel_id"]
        client = self.service.boto3_client()
        rotated = client.rotate_tunnel_access_token(tunnelId=tunnel_id, clientMode="DESTINATION")
        self.devices[thing].start_proxy(rotated["destinationAccessToken"])
        self.devices[thing].wait_connected(tunnel_id)

    def tunnel(self, thing: str) -> dict[str, Any]:
        """The row of a thing in the hub's status."""
        return next(row for row in self.controller.hub_status()["tunnels"] if row["thing"] == thing)


class AgentFleet:
    """Use it as a context manager: inside, every device's agent waits for tunnels, and its host key is known.

    Every device has its own servers and agent, each a separate process.

    Args:
        things: the names of the devices.
        absent: names of hosts in the inventory whose devices do not exist.
        variables: inventory variables of all hosts.
    """

    def __init__(self, *things: str, absent: Sequence[str] = (), variables: Mapping[str, Any] | None = None) -> None:
        self.things = things
        self._absent = absent
        self._variables = variables or {}
        self._stack = ExitStack()
        self.devices: dict[str, Device] = {}
        self.agents: dict[str, AgentProcess] = {}

    def __enter__(self) -> AgentFleet:
        with ExitStack() as stack:
            self.home = Path(tempfile.mkdtemp(prefix="fleet-"))
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            key = make_ssh_key(self.home / "key")
            self.service = stack.enter_context(TunnelingService("--mqtt-port", "0"))
            variables = {
                "ansible_user": getpass.getuser(),
                "ansible_ssh_private_key_file": str(key),
                **self._variables,
            }
            hosts: dict[str, dict[str, Any]] = {
                **{thing: {} for thing in self.things},
                **{thing: {"iotops_tunnel_unregistered": True} for thing in self._absent},
            }
            self.controller = stack.enter_context(Controller(self.service.environment, hosts, variables))

            def start(thing: str) -> str:
                device = self.devices[thing] = Device(thing, self.service, self.home, key)
                stack.push(device)
                services = f"SSH1={device.sshd.port},HTTP1={device.http.port}"
                self.service.add_thing(thing, self.home / f"{thing}-agent", "--services", services)
                agent = self.agents[thing] = AgentProcess(self.home / f"{thing}-agent")
                stack.callback(agent.stop)
                agent.start()
                return device.sshd.host_key_line(thing)

            with ThreadPoolExecutor(AT_ONCE) as pool:
                self.controller.known_hosts.write_text("".join(pool.map(start, self.things)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tunnels(self, status: str = "OPEN") -> dict[str, list[str]]:
        """The IDs of the tunnels of each thing, from the service."""
        client = self.service.boto3_client()
        return {
            thing: [
                summary["tunnelId"]
                for summary in client.list_tunnels(thingName=thing)["tunnelSummaries"]
                if summary["status"] == status
            ]
            for thing in self.things
        }

    def tunnels_each(self) -> Counter[int]:
        """How many things have no open tunnel, one open tunnel, two, and so on."""
        return Counter(len(tunnels) for tunnels in self.tunnels().values())

    def close_tunnels(self) -> None:
        """Close every tunnel, without the hub."""
        client = self.service.boto3_client()
        for tunnels in self.tunnels().values():
            for tunnel_id in tunnels:
                client.close_tunnel(tunnelId=tunnel_id)
