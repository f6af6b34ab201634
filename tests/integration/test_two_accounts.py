# SPDX-License-Identifier: GPL-3.0-or-later
"""Two accounts in two regions, four devices with the same name: every command reaches the right one.

Each kind of command runs once, or as many commands as ``TEST_ACCOUNTS_COMMANDS`` says.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from peers.account_fleet import ANYWHERE, THING, AccountFleet
from peers.process import wait_for

COMMANDS = int(os.environ.get("TEST_ACCOUNTS_COMMANDS", "14"))

pytestmark = pytest.mark.timeout(120 + 10 * COMMANDS)

ACCEPT_NEW = {"ANSIBLE_SSH_EXTRA_ARGS": "-o StrictHostKeyChecking=accept-new"}
STRICT = {"ANSIBLE_SSH_EXTRA_ARGS": "-o StrictHostKeyChecking=yes"}
OFF = {"ANSIBLE_HOST_KEY_CHECKING": "False"}

WHO = "cat $HOME/whoami"


@pytest.fixture(scope="module")
def fleet() -> Iterator[AccountFleet]:
    with AccountFleet() as running:
        yield running


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15) as answer:
        text: str = answer.read().decode()
    return text


class Shell:
    """A shell of a user who works on one of the four: the inventory host is the same, the environment differs.

    Each command asserts that the right device answered.
    """

    def __init__(self, fleet: AccountFleet, host: str, host_keys: dict[str, str]) -> None:
        self._fleet = fleet
        self._host = host
        self._environment = {**fleet.services[host].environment, **host_keys}

    def raw(self) -> None:
        self._run("raw")

    def shell(self) -> None:
        self._run("shell")

    def _run(self, module: str) -> None:
        done = self._fleet.controller.run("ansible", ANYWHERE, "-m", module, "-a", WHO, **self._environment)
        expected = [f"{ANYWHERE} | CHANGED | rc=0 >>", self._host]
        assert done.stdout.splitlines()[:2] == expected, done.stdout + done.stderr

    def health(self) -> None:
        """With never, no tunnel is opened: a tunnel of another device must not be used."""
        outcome = self._fleet.controller.module(
            "iotops.tunnel.health", ANYWHERE, env=self._environment, return_content=True
        )[ANYWHERE]
        if self._fleet.open_tunnels()[self._host]:
            assert outcome.word == "SUCCESS", outcome.message
            assert outcome.result["content"] == self._host
        else:
            assert outcome.word == "FAILED"
            assert "there is no tunnel to gw in" in outcome.message
            assert self._environment["AWS_REGION"] in outcome.message

    def tunnel(self) -> None:
        outcome = self._fleet.controller.tunnel(ANYWHERE, env=self._environment)
        assert outcome.word in ("SUCCESS", "CHANGED"), outcome.message
        assert outcome.result["tunnel_id"] in self._fleet.open_tunnels()[self._host]
        assert page(outcome.result["ports"]["HTTP1"]) == self._host

    def lookup(self) -> None:
        message = "{{ lookup('iotops.tunnel.endpoint', 'HTTP1', form='port') }}"
        outcome = self._fleet.controller.module("ansible.builtin.debug", ANYWHERE, env=self._environment, msg=message)
        assert page(int(outcome[ANYWHERE].message)) == self._host, outcome[ANYWHERE]

    def absent(self) -> None:
        """Close only this device's tunnel; the next command opens another."""
        before = self._fleet.open_tunnels()
        outcome = self._fleet.controller.tunnel(ANYWHERE, env=self._environment, state="absent")
        assert outcome.word in ("SUCCESS", "CHANGED"), outcome.message
        assert outcome.result["closed"] == before[self._host]
        assert self._fleet.open_tunnels() == {**before, self._host: []}


def kill_hub(fleet: AccountFleet) -> None:
    os.kill(fleet.controller.hub_status()["pid"], signal.SIGKILL)


def stop_hub(fleet: AccountFleet) -> None:
    fleet.controller.hub("stop")
    wait_for(lambda: not (fleet.controller.home / "hub" / "hub.sock").exists(), "the hub has exited")


def disconnect(fleet: AccountFleet) -> None:
    """As if minutes had passed, and ssh's own connections were gone."""
    fleet.controller.disconnect()


Command = Callable[[Shell], None]
TURNS: tuple[Command, ...] = (
    Shell.raw,
    Shell.raw,
    Shell.health,
    Shell.raw,
    Shell.lookup,
    Shell.raw,
    Shell.tunnel,
    Shell.raw,
    Shell.absent,
    Shell.shell,
)
INTERRUPTIONS: tuple[Callable[[AccountFleet], None], ...] = (stop_hub, disconnect, kill_hub)


def test_alternating_ad_hoc_commands_reach_the_right_device(fleet: AccountFleet) -> None:
    """In three parts: new host keys are accepted; must be known; are not checked."""
    began = time.monotonic()
    chance = random.Random(13)
    turns, interruptions = itertools.cycle(TURNS), itertools.cycle(INTERRUPTIONS)
    # Each device is reached once before host keys must be known.
    hosts = itertools.chain(fleet.hosts, iter(lambda: chance.choice(fleet.hosts), None))
    opened = fleet.opened()
    wanted = {host: len(tunnels) for host, tunnels in fleet.open_tunnels().items()}
    for number, host in zip(range(COMMANDS), hosts):
        checking = (ACCEPT_NEW, STRICT, OFF)[number * 3 // COMMANDS]
        command = Shell.raw if number < len(fleet.hosts) else next(turns)
        command(Shell(fleet, host, checking))
        if command is Shell.absent:
            wanted[host] = 0
        elif command is not Shell.health and wanted[host] == 0:
            wanted[host] = 1
            opened[host] += 1
        # No more tunnels than necessary, whatever the order of the commands, and whatever happened to the hub.
        assert fleet.opened() == opened
        assert {each: len(tunnels) for each, tunnels in fleet.open_tunnels().items()} == wanted
        if number % 4 == 3:
            next(interruptions)(fleet)
    print(f"{COMMANDS} commands in {time.monotonic() - began:.1f} s")
    # Only one is known by the plain name, and the others are never confused with it.
    known = fleet.controller.known_hosts.read_text().splitlines()
    assert len(known) == len(fleet.hosts)
    assert len(known_keys(fleet, THING)) == 1


def known_keys(fleet: AccountFleet, name: str) -> list[str]:
    """The known host keys of a name."""
    command = ["ssh-keygen", "-F", name, "-f", fleet.controller.known_hosts]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if not line.startswith("#")]


PLAY = """
- hosts: a1:a2:b1:b2
  gather_facts: false
  tasks:
    - ansible.builtin.raw: cat $HOME/whoami
      register: shell
    - ansible.builtin.command: cat {{ '$HOME' }}/whoami
      args:
        expand_argument_vars: true
      register: module
    - iotops.tunnel.tunnel:
      register: tunnel
    - iotops.tunnel.health:
        return_content: true
      register: health
    - ansible.builtin.uri:
        url: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1') }}"
        return_content: true
      delegate_to: localhost
      connection: local
      register: page
    - ansible.builtin.copy:
        content: "{{ found | to_json }}"
        dest: "{{ results }}/{{ inventory_hostname }}"
        mode: "0600"
      delegate_to: localhost
      connection: local
      vars:
        found:
          answers:
            - "{{ shell.stdout | trim }}"
            - "{{ module.stdout | trim }}"
            - "{{ health.content }}"
            - "{{ page.content }}"
          region: "{{ tunnel.region }}"
          tunnel_id: "{{ tunnel.tunnel_id }}"
"""


@pytest.mark.parametrize(
    ("end", "host_keys"),
    [
        pytest.param(kill_hub, ACCEPT_NEW, id="killed-accept-new"),
        pytest.param(stop_hub, OFF, id="stopped-off", marks=pytest.mark.nightly),
    ],
)
def test_one_play_reaches_all_four(
    fleet: AccountFleet, tmp_path: Path, end: Callable[[AccountFleet], None], host_keys: dict[str, str]
) -> None:
    """The variables of each host override the environment, which belongs to another account."""
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAY)
    if fleet.controller.hub_status()["pid"]:
        end(fleet)
    disconnect(fleet)
    foreign = fleet.services["b2"].environment

    done = fleet.controller.playbook(playbook, "-e", f"results={tmp_path}", **foreign, **host_keys)

    assert done.returncode == 0, done.stdout + done.stderr
    tunnels = fleet.open_tunnels()
    for host in fleet.hosts:
        found = json.loads((tmp_path / host).read_text())
        assert found["answers"] == [host] * 4
        assert found["region"] == fleet.services[host].environment["AWS_REGION"]
        assert tunnels[host] == [found["tunnel_id"]]


TASK_ENVIRONMENTS = """
- hosts: gw
  gather_facts: false
  tasks:
    - ansible.builtin.raw: cat $HOME/whoami
      environment: "{{ environments[item] }}"
      loop: &each "{{ environments.keys() }}"
      register: raw
    - iotops.tunnel.tunnel:
      environment: "{{ environments[item] }}"
      loop: *each
      register: tunnel
    - iotops.tunnel.health:
        return_content: true
      environment: "{{ environments[item] }}"
      loop: *each
      register: health
    - ansible.builtin.debug:
        msg: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1', form='port') }}"
      environment: "{{ environments[item] }}"
      loop: *each
      register: endpoint
    - ansible.builtin.copy:
        content: "{{ found | to_json }}"
        dest: "{{ result }}"
        mode: "0600"
      delegate_to: localhost
      connection: local
      vars:
        found:
          raw: "{{ raw.results | map(attribute='stdout') | map('trim') }}"
          health: "{{ health.results | map(attribute='content') }}"
          tunnel: "{{ tunnel.results | map(attribute='tunnel_id') }}"
          ports: "{{ endpoint.results | map(attribute='msg') }}"
"""


def test_every_plugin_uses_the_environment_of_a_task(fleet: AccountFleet, tmp_path: Path) -> None:
    playbook, environments, result = (tmp_path / name for name in ("play.yml", "environments.json", "result"))
    playbook.write_text(TASK_ENVIRONMENTS)
    of_each = {host: service.environment for host, service in fleet.services.items()}
    environments.write_text(json.dumps({"environments": of_each}))

    done = fleet.controller.playbook(playbook, "-e", f"@{environments}", "-e", f"result={result}", **OFF)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    hosts = list(of_each)
    assert found["raw"] == hosts
    assert found["health"] == hosts
    assert [page(int(port)) for port in found["ports"]] == hosts
    assert found["tunnel"] == [tunnel_id for tunnels in fleet.open_tunnels().values() for tunnel_id in tunnels]


def test_the_hubs_status_distinguishes_the_accounts(fleet: AccountFleet) -> None:
    for host in fleet.hosts:
        Shell(fleet, host, OFF).health()
    rows = fleet.controller.hub_status()["tunnels"]
    assert len(rows) == len(fleet.hosts)
    assert len({row["account"] for row in rows}) == len(fleet.hosts)
    assert {row["thing"] for row in rows} == {THING}
    # A browser, which ignores ports, keeps their cookies apart.
    assert len({urlsplit(row["services"]["HTTP1"]["url"]).hostname for row in rows}) == len(fleet.hosts)
    by_tunnel = {row["tunnel_id"]: row["account"] for row in rows}
    for host, (tunnel_id,) in fleet.open_tunnels().items():
        environment = fleet.services[host].environment
        assert environment["AWS_REGION"] in by_tunnel[tunnel_id]
        assert environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"] in by_tunnel[tunnel_id]
