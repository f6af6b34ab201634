# SPDX-License-Identifier: GPL-3.0-or-later
"""Two accounts in two regions, with four devices of the same name, and one controller for all of them.

As on AWS, each account has one identity and one access key; it has a tunneling service in each region.
"""

from __future__ import annotations

import getpass
import json
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .agent import AgentProcess
from .collection import Controller
from .credentials import key_command
from .device import Device, make_ssh_key
from .fleet import AT_ONCE
from .service import TunnelingService

__all__ = ["ANYWHERE", "THING", "AccountFleet"]

THING = "gw"
"""The name of all devices."""

ANYWHERE = "gw"
"""The inventory host without an account: the environment selects one."""

_REGIONS = {"1": "us-east-1", "2": "eu-central-1"}
_ACCOUNTS = ("a", "b")


class AccountFleet:
    """Use it as a context manager: inside, every device's agent waits for tunnels.

    The inventory's hosts are ``a1``, ``a2``, ``b1`` and ``b2``, by account and region, with variables for both, and
    :data:`ANYWHERE`. Each device identifies itself by a file and by its web page.

    Args:
        variables: inventory variables of all hosts.
    """

    def __init__(self, variables: Mapping[str, Any] | None = None) -> None:
        self._variables = variables or {}
        self._stack = ExitStack()
        self.hosts = tuple(f"{account}{region}" for account in _ACCOUNTS for region in _REGIONS)
        self.services: dict[str, TunnelingService] = {}
        self.devices: dict[str, Device] = {}

    def __enter__(self) -> AccountFleet:
        with ExitStack() as stack:
            self.home = Path(tempfile.mkdtemp(prefix="fleet-"))
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            self._key = make_ssh_key(self.home / "key")
            for host in self.hosts:
                service = TunnelingService("--mqtt-port", "0", "--region", _REGIONS[host[-1]])
                stack.callback(service.remove)
                self.services[host] = service
            for account in _ACCOUNTS:
                self._make_account(account)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda host: self._start(host, stack), self.hosts))
            profiles = self.home / "credentials"
            profiles.write_text("".join(map(self._profile, _ACCOUNTS)))
            variables = {
                "ansible_user": getpass.getuser(),
                "ansible_ssh_private_key_file": str(self._key),
                "iotops_tunnel_thing": THING,
                **self._variables,
            }
            hosts: dict[str, dict[str, str]] = {ANYWHERE: {}, **{host: self._options(host) for host in self.hosts}}
            environment = {"AWS_SHARED_CREDENTIALS_FILE": str(profiles), "AWS_EC2_METADATA_DISABLED": "true"}
            self.controller = stack.enter_context(Controller(environment, hosts, variables))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make_account(self, account: str) -> None:
        """Give all services of an account the same identity and access key before they start."""
        first, *others = (service for host, service in self.services.items() if host[0] == account)
        key_command(first, "list")  # this creates the database
        for other in others:
            shutil.copytree(first.state_dir, other.state_dir)

    def _start(self, host: str, stack: ExitStack) -> None:
        service = self.services[host]
        service.start()
        device = self.devices[host] = Device(THING, service, self.home / host, self._key)
        stack.push(device)
        (device.http.root / "index.html").write_text(host)
        (device.folder / "home" / "whoami").write_text(f"{host}\n")
        ports = f"SSH1={device.sshd.port},HTTP1={device.http.port}"
        service.add_thing(THING, self.home / f"{host}-agent", "--services", ports)
        agent = AgentProcess(self.home / f"{host}-agent")
        stack.callback(agent.stop)
        agent.start()

    def _profile(self, account: str) -> str:
        keys = self.services[f"{account}1"].environment
        return (
            f"[account-{account}]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}\n"
        )

    def _options(self, host: str) -> dict[str, str]:
        """The variables of a host, with its account and region."""
        environment = self.services[host].environment
        return {
            "iotops_tunnel_profile": f"account-{host[0]}",
            "iotops_tunnel_region": environment["AWS_REGION"],
            "iotops_tunnel_endpoint_url": environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"],
            "iotops_tunnel_aws_ca_bundle": environment["AWS_CA_BUNDLE"],
            "iotops_tunnel_tunnel_endpoint": environment["AWSIOT_TUNNEL_ENDPOINT"],
            "iotops_tunnel_tunnel_capath": environment["AWSIOT_TUNNEL_CAPATH"],
        }

    def open_tunnels(self) -> dict[str, list[str]]:
        """The IDs of the open tunnels to each device, from its service."""
        return {
            host: [
                summary["tunnelId"]
                for summary in service.boto3_client().list_tunnels(thingName=THING)["tunnelSummaries"]
                if summary["status"] == "OPEN"
            ]
            for host, service in self.services.items()
        }

    def opened(self) -> dict[str, int]:
        """How many OpenTunnel calls succeeded in each account and region, from the audit logs of the services."""
        return {host: _opened(service.state_dir / "audit.log") for host, service in self.services.items()}


def _opened(audit_log: Path) -> int:
    lines = map(json.loads, audit_log.read_text().splitlines())
    return sum(line.get("operation") == "OpenTunnel" and line["outcome"] == "ok" for line in lines)
