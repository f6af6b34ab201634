# SPDX-License-Identifier: GPL-3.0-or-later
"""Several operators and a CI job on one device at once: each has a separate tunnel, unless one takes over another's.

They work for three seconds, or for ``TEST_OWNERS_SECONDS``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from peers.collection import Controller
from peers.fleet import AgentFleet
from peers.process import wait_for
from peers.troubleshooting import assert_documented
from tunnelproxy.hub.tags import valid_owner

SECONDS = float(os.environ.get("TEST_OWNERS_SECONDS", "3"))
pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)

OWNERS = ("alice", "bob", "carol", "ci")
OWNER_TAG = "iotops:owner"


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    with AgentFleet("pump") as running:
        yield running


@pytest.fixture
def controllers(fleet: AgentFleet) -> Iterator[dict[str, Controller]]:
    """A machine with a hub for each owner. Before and after, no tunnel is open."""
    with ExitStack() as stack:
        stack.callback(fleet.close_tunnels)
        yield {owner: stack.enter_context(controller_of(fleet, owner)) for owner in OWNERS}


def controller_of(fleet: AgentFleet, owner: str) -> Controller:
    variables = {
        "ansible_user": fleet.devices["pump"].ssh_user,
        "ansible_ssh_private_key_file": str(fleet.devices["pump"].ssh_key),
    }
    controller = Controller({**fleet.service.environment, "IOTOPS_TUNNEL_OWNER": owner}, {"pump": {}}, {**variables})
    controller.timeout = 60 + SECONDS
    controller.known_hosts.write_text(fleet.devices["pump"].sshd.host_key_line("pump"))
    return controller


class Task:
    """A task that runs on the device until it is stopped."""

    def __init__(self, controller: Controller, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._folder = folder
        folder.mkdir()
        work = f"touch {folder}/begun; n=0; while [ -e {folder} ]; do n=$((n+1)); echo $n; sleep 0.1; done; echo ended"
        self._done: Future[CompletedProcess[str]] = pool.submit(raw, controller, work)
        wait_for(lambda: self._done.done() or (folder / "begun").exists(), "the task has begun")
        assert self.runs(), self._done.result().stdout

    def runs(self) -> bool:
        return not self._done.done()

    def end(self) -> CompletedProcess[str]:
        """Let the task finish, and return Ansible's output."""
        shutil.rmtree(self._folder)
        return self.ended()

    def ended(self) -> CompletedProcess[str]:
        """Wait until the task has finished."""
        return self._done.result()


def raw(controller: Controller, command: str, **environment: str) -> CompletedProcess[str]:
    return controller.run("ansible", "pump", "-m", "raw", "-a", command, **environment)


def succeeded(done: CompletedProcess[str]) -> bool:
    return done.returncode == 0 and "pump | CHANGED | rc=0" in done.stdout


def owners(fleet: AgentFleet) -> dict[str, str]:
    """The owner of each open tunnel, from its tag."""
    client = fleet.service.boto3_client()
    described = [client.describe_tunnel(tunnelId=tunnel_id)["tunnel"] for tunnel_id in fleet.tunnels()["pump"]]
    tags = {tunnel["tunnelId"]: {tag["key"]: tag["value"] for tag in tunnel["tags"]} for tunnel in described}
    return {tunnel_id: tags[tunnel_id].get(OWNER_TAG, "") for tunnel_id in tags}


def forget_hub(controller: Controller) -> None:
    """Kill the hub, and remove its files, as if the next job ran in a new container."""
    os.kill(controller.hub_status()["pid"], signal.SIGKILL)
    controller.disconnect()
    shutil.rmtree(controller.home / "hub")


def test_owners_do_not_interrupt_each_other(
    fleet: AgentFleet, controllers: Mapping[str, Controller], tmp_path: Path
) -> None:
    def short_tasks(controller: Controller, until: float) -> list[CompletedProcess[str]]:
        done = []
        while time.monotonic() < until:
            done.append(raw(controller, "echo well"))
        return done

    with ThreadPoolExecutor(2 * len(OWNERS)) as pool:
        # All at once: each start might disturb the earlier ones.
        begun = [pool.submit(Task, controllers[owner], tmp_path / owner, pool) for owner in OWNERS]
        long = [each.result() for each in begun]
        until = time.monotonic() + SECONDS
        short = [pool.submit(short_tasks, controllers[owner], until) for owner in OWNERS]
        results = [result for each in short for result in each.result()]
        results += [task.end() for task in long]

    print(f"{len(results)} tasks of {len(OWNERS)} owners in {SECONDS:.0f} s")
    assert [result.stdout + result.stderr for result in results if not succeeded(result)] == []
    for result in results[-len(OWNERS) :]:
        lines = result.stdout.split()
        numbers = [int(line) for line in lines if line.isdecimal()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert "ended" in lines
    assert sorted(owners(fleet).values()) == sorted(OWNERS)


@pytest.mark.parametrize("how", ["environment", "variable"])
def test_a_takeover_succeeds_and_the_previous_owner_learns_of_it(
    fleet: AgentFleet, controllers: Mapping[str, Controller], tmp_path: Path, how: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        task = Task(controllers["alice"], tmp_path / "alice", pool)
        [(tunnel_id, owner)] = owners(fleet).items()
        assert owner == "alice"

        if how == "environment":
            won = raw(controllers["bob"], "echo well", IOTOPS_TUNNEL_OPEN="take_over")
        else:
            won = controllers["bob"].run(
                "ansible", "pump", "-m", "raw", "-a", "echo well", "-e", "iotops_tunnel_open=take_over"
            )
        lost = task.ended()

    assert succeeded(won), won.stdout + won.stderr
    assert "The tunnel to pump belonged to alice" in " ".join((won.stdout + won.stderr).split())
    _, told, result = lost.stdout.partition("pump | UNREACHABLE! => ")
    assert told, lost.stdout
    message = str(json.JSONDecoder().raw_decode(result)[0]["msg"])
    assert_documented("Tunnel taken over", message)
    assert "bob took over the tunnel of pump" in message
    # Taking it back, as messages once suggested, would only interrupt the other's task.
    assert "hub stop" not in lost.stdout
    assert owners(fleet) == {tunnel_id: "bob"}
    log = (controllers["bob"].home / "hub" / "hub.log").read_text()
    assert f"reuses the open tunnel {tunnel_id} of pump" in log

    # And alice continues with a tunnel of her own.
    assert succeeded(raw(controllers["alice"], "echo well"))
    assert sorted(owners(fleet).values()) == ["alice", "bob"]


@pytest.mark.parametrize("how", ["connection", "lookup", "module"])
def test_the_owner_in_a_tasks_environment_overrides_ansibles(
    fleet: AgentFleet, controllers: Mapping[str, Controller], tmp_path: Path, how: str
) -> None:
    task = {
        "connection": "ansible.builtin.raw: echo well",
        "lookup": "ansible.builtin.debug: {msg: \"{{ lookup('iotops.tunnel.endpoint', 'HTTP1') }}\"}",
        "module": "iotops.tunnel.tunnel:",
    }[how]
    playbook = tmp_path / "play.yml"
    playbook.write_text(f"""
- hosts: pump
  gather_facts: false
  tasks:
    - {task}
      environment: {{IOTOPS_TUNNEL_OWNER: "carol;s job"}}
""")
    done = controllers["alice"].playbook(playbook)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(owners(fleet).values()) == [valid_owner("carol;s job")]


def test_a_new_hub_without_files_reuses_the_owners_tunnel(
    fleet: AgentFleet, controllers: Mapping[str, Controller]
) -> None:
    for owner in ("alice", "carol"):
        assert succeeded(raw(controllers[owner], "echo well"))
    before, ever = owners(fleet), tunnels_ever(fleet)
    assert sorted(before.values()) == ["alice", "carol"]

    forget_hub(controllers["carol"])

    assert succeeded(raw(controllers["carol"], "echo well"))
    assert (owners(fleet), tunnels_ever(fleet)) == (before, ever)


def tunnels_ever(fleet: AgentFleet) -> int:
    """How many tunnels to the device have been opened, closed ones included."""
    return sum(len(fleet.tunnels(status)["pump"]) for status in ("OPEN", "CLOSED"))
