# SPDX-License-Identifier: GPL-3.0-or-later
"""The role iotops.tunnel.agent, on a Debian with systemd as process 1, with a real broker and a real tunneling service.

The Debian comes from debootstrap, is of this machine's release, and runs in separate namespaces. Not covered: it shares
this machine's kernel and network, /proc/sys and /sys are read-only, and there is no reboot, no other distribution, no
older Python and no other processor. It cannot resolve names, so installing from a package index is not covered either.
The agent has a certificate and its key, but this broker only asks for passwords.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers import debian
from peers.broker import Mosquitto
from peers.collection import Controller
from peers.debian import Debian
from peers.device import make_ssh_key
from peers.process import free_port, wait_for
from peers.service import TunnelingService
from peers.wheelhouse import make_wheelhouse
from tunnelproxy.service.state.certificates import Certificates

pytestmark = [
    pytest.mark.skipif(bool(debian.why_not("test-role")), reason=debian.why_not("test-role")),
    pytest.mark.timeout(900),
]

THING = "pump"
THROUGH_TUNNEL = "pump-through-its-tunnel"
"""The same device in the inventory, reached by iotops.tunnel.ssh."""

NAME = "tunnelproxy-agent"
Ran = subprocess.CompletedProcess[str]


@dataclass
class Scene:
    """A device, and an operator who can reach it by plain SSH."""

    device: Debian
    controller: Controller
    broker: Mosquitto
    service: TunnelingService
    wheels: Path
    variables: dict[str, Any]

    def play(self, *options: str, host: str = THING, **changes: Any) -> Ran:
        """Run the collection's playbook; ``changes`` are variables of the role, without their prefix."""
        named = {f"iotops_tunnel_agent_{name}": value for name, value in changes.items()}
        variables = {"iotops_tunnel_hosts": host, **self.variables, **named}
        file = self.controller.home / "variables.json"
        file.write_text(json.dumps(variables))
        return self.controller.playbook("iotops.tunnel.install_agent", "-e", f"@{file}", *options)

    def version(self) -> str:
        """The version of the running agent."""
        python = f"/opt/{NAME}/current/bin/python"
        return self.device.run(python, "-c", "import tunnelproxy; print(tunnelproxy.__version__)").strip()

    def main_pid(self) -> int:
        return int(self.device.run("systemctl", "show", "--property=MainPID", "--value", NAME))

    def status(self) -> str:
        return self.device.run("systemctl", "show", "--property=StatusText", "--value", NAME).strip()


@dataclass(frozen=True)
class Installed:
    """The outcome of the first runs of the playbook."""

    before: set[str]
    checked: Ran
    after_check: set[str]
    first: Ran
    second: Ran


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("role")
    key = make_ssh_key(folder / "key")
    with Debian(key) as device, Mosquitto(folder / "broker") as broker, TunnelingService() as service:
        python = device.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
        wheels = make_wheelhouse(folder / "first", "0.1.0", python)
        common = {
            "ansible_user": "root",
            "ansible_pipelining": True,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(key),
        }
        hosts = {
            THING: {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": device.port},
            # It is not enrolled with the service.
            THROUGH_TUNNEL: {"iotops_tunnel_thing": THING, "iotops_tunnel_unregistered": True},
        }
        pair = Certificates(folder / "pair-key", folder / "pair-ca")
        pair.ensure(THING)
        variables = {
            "iotops_tunnel_agent_wheelhouse": str(wheels),
            "iotops_tunnel_agent_services": {"SSH1": device.port},
            "iotops_tunnel_agent_allow": [device.port],
            "iotops_tunnel_agent_broker_host": "127.0.0.1",
            "iotops_tunnel_agent_broker_port": broker.port,
            "iotops_tunnel_agent_broker_user": THING,
            "iotops_tunnel_agent_broker_password": broker.add_user(THING),
            "iotops_tunnel_agent_broker_ca": str(broker.ca),
            "iotops_tunnel_agent_broker_cert": str(pair.server_chain),
            "iotops_tunnel_agent_broker_key": str(pair.server_key),
            "iotops_tunnel_agent_endpoint": service.data,
            "iotops_tunnel_agent_endpoint_ca": service.ca_pem,
            "iotops_tunnel_agent_broker_timeout": 10,
        }
        with Controller(service.environment, hosts, common) as controller:
            # pip builds an environment on the device.
            controller.timeout = 300.0
            key_line = device.host_key_line
            controller.known_hosts.write_text(f"[127.0.0.1]:{device.port} {key_line}{THING} {key_line}")
            yield Scene(device, controller, broker, service, wheels, variables)


@pytest.fixture(scope="module")
def installed(scene: Scene) -> Installed:
    before = scene.device.files()
    checked = scene.play("--check", "--diff", "-vvv")
    after_check = scene.device.files()
    first = scene.play("--diff", "-vvv")
    return Installed(before, checked, after_check, first, scene.play("--diff"))


def changes(ran: Ran) -> int:
    """How many tasks changed something, in a run that succeeded."""
    recap = re.search(r"changed=(\d+)\s+unreachable=0\s+failed=0", ran.stdout)
    assert recap, ran.stdout[-6000:] + ran.stderr
    return int(recap[1])


def test_check_mode_announces_changes_and_makes_none(installed: Installed) -> None:
    assert changes(installed.checked) > 5
    assert installed.after_check == installed.before


def test_the_agent_is_installed_without_a_package_index_and_connects(scene: Scene, installed: Installed) -> None:
    assert changes(installed.first) > 5
    assert scene.status().startswith("waiting for notifications")
    assert scene.version() == "0.1.0"
    assert scene.device.run("systemctl", "is-enabled", NAME).strip() == "enabled"


def test_a_second_run_changes_nothing(scene: Scene, installed: Installed) -> None:
    assert changes(installed.second) == 0
    pid = scene.main_pid()
    assert changes(scene.play("--check")) == 0
    assert scene.main_pid() == pid


def test_the_agent_runs_as_a_dedicated_user_with_few_rights(scene: Scene, installed: Installed) -> None:
    status = scene.device.run("cat", f"/proc/{scene.main_pid()}/status")
    uid = scene.device.run("id", "-u", NAME).strip()
    assert re.search(rf"^Uid:\s+{uid}\s", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)


def test_systemd_finds_nothing_wrong_with_the_unit(scene: Scene, installed: Installed) -> None:
    unit = f"/etc/systemd/system/{NAME}.service"
    verified = scene.device.attempt("systemd-analyze", "verify", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    # On its scale, below 2.0 is "OK", its best rating for a service that uses the network.
    scene.device.run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)


def test_only_the_agent_can_read_secrets(scene: Scene, installed: Installed) -> None:
    listing = scene.device.run("find", f"/etc/{NAME}", "-printf", "%m %u %g %f\\n").splitlines()
    assert sorted(listing) == sorted(
        [
            f"750 root {NAME} {NAME}",
            f"640 root {NAME} agent.yml",
            f"600 {NAME} {NAME} broker-password",
            f"600 {NAME} {NAME} broker-ca.pem",
            f"600 {NAME} {NAME} broker-cert.pem",
            f"600 {NAME} {NAME} broker-key.pem",
            f"600 {NAME} {NAME} endpoint-ca.pem",
        ]
    )
    assert scene.device.run("stat", "--format=%a %U", f"/var/lib/{NAME}").strip() == f"700 {NAME}"


def test_ansible_prints_no_secret(scene: Scene, installed: Installed) -> None:
    password = scene.variables["iotops_tunnel_agent_broker_password"]
    key = Path(scene.variables["iotops_tunnel_agent_broker_key"]).read_text().splitlines()[1]
    for ran in (installed.checked, installed.first, installed.second):
        assert password not in ran.stdout + ran.stderr
        assert key not in ran.stdout + ran.stderr


def test_a_configuration_that_the_agent_refuses_is_not_written(scene: Scene, installed: Installed) -> None:
    before = scene.device.run("cat", f"/etc/{NAME}/agent.yml")
    ran = scene.play(services={"SSH1": "10.1.2.3:22"})
    assert ran.returncode != 0
    assert "which the allow list does not have" in ran.stdout
    assert scene.device.run("cat", f"/etc/{NAME}/agent.yml") == before


def test_a_change_that_cuts_the_agent_off_from_its_broker_is_rolled_back(scene: Scene, installed: Installed) -> None:
    ran = scene.play(broker_port=free_port(), broker_timeout=3)
    assert ran.returncode != 0
    assert "so this change was rolled back" in ran.stdout + ran.stderr
    wait_for(lambda: scene.status().startswith("waiting for notifications"), "the agent is at its broker again")
    assert f"port: {scene.broker.port}\n" in scene.device.run("cat", f"/etc/{NAME}/agent.yml")
    assert changes(scene.play(broker_timeout=3)) == 0


def test_the_agent_is_upgraded_through_its_own_tunnel(scene: Scene, installed: Installed, tmp_path: Path) -> None:
    opened = scene.controller.tunnel(THROUGH_TUNNEL, services=["SSH1"], return_tokens=True).result
    notification = {
        "clientAccessToken": opened["tokens"]["destination"],
        "clientMode": "destination",
        "region": "us-east-1",
        "services": ["SSH1"],
    }
    scene.broker.notify(THING, notification)
    connected = scene.controller.tunnel(THROUGH_TUNNEL, tunnel_id=opened["tunnel_id"], wait_for_destination=15)
    assert connected.word == "SUCCESS", connected.message
    wheels = str(make_wheelhouse(tmp_path / "next", "0.1.1", "", others=scene.wheels))
    pid = scene.main_pid()
    assert changes(scene.play(host=THROUGH_TUNNEL, wheelhouse=wheels)) > 0
    assert scene.version() == "0.1.1"
    assert scene.main_pid() != pid
    assert changes(scene.play(host=THROUGH_TUNNEL, wheelhouse=wheels)) == 0
    assert len(scene.device.run("ls", f"/opt/{NAME}/releases").split()) == 1


def test_removal_through_the_agents_own_tunnel_is_refused(scene: Scene, installed: Installed) -> None:
    refused = scene.play(host=THROUGH_TUNNEL, state="absent")
    assert refused.returncode != 0
    assert "is connected through the agent that is to be removed" in refused.stdout
    assert scene.device.run("systemctl", "is-active", NAME).strip() == "active"


def test_removal_leaves_nothing_behind(scene: Scene, installed: Installed) -> None:
    before = scene.device.files()
    assert changes(scene.play("--check", state="absent")) > 0
    assert scene.device.files() == before
    assert changes(scene.play(state="absent")) > 0
    assert changes(scene.play(state="absent")) == 0

    def caches(path: str) -> bool:
        return "__pycache__" in path or path.startswith("/var/cache") or path in {f"/etc/{name}-" for name in BACKUPS}

    assert {path for path in scene.device.files() - installed.before if not caches(path)} == set()
    assert scene.device.attempt("id", NAME).returncode != 0
    assert scene.device.attempt("systemctl", "cat", NAME).returncode != 0


BACKUPS = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
"""Files of which useradd and userdel leave a copy."""
