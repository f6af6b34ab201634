# SPDX-License-Identifier: GPL-3.0-or-later
"""A compromised device tries to set options, paths and hosts; none of its answers has an effect.

All hostile hosts are one device, with a different Python for each attempt, which sends the answers. Facts in a
persistent cache are still there in the next run.
"""

from __future__ import annotations

import json
import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from peers.fleet import Fleet
from peers.hostile import hostile_python
from peers.page import Page
from peers.process import free_port
from peers.troubleshooting import assert_documented

LIAR, VICTIM = "valve", "pump"
SECRET = "the controller's own secret"
REFUSED = "has facts that no device may set"

DIAGNOSIS: dict[str, Any] = {"severity": "ok", "findings": [], "skipped_sections": [], "facts": {}, "seconds": 0.1}

# The tasks for each hostile host, after its answer: whatever the outcome, the next attempt is made, too.
SESSION = """
- hosts: liars
  gather_facts: false
  ignore_errors: true
  ignore_unreachable: true
  tasks:
    - name: Answer
      ansible.builtin.ping:
      when: try != 'in-a-loop'

    - name: Run a command
      ansible.builtin.raw: touch "$HOME/try-{{ try }}-{{ item }}"
      loop: [a]

    - name: Answer twice
      ansible.builtin.ping:
      loop: [1, 2]
      when: try == 'in-a-loop'

    - name: Copy a file
      ansible.builtin.copy:
        content: x
        dest: "{{ remote }}/{{ try }}"
        mode: "0600"
      when: try in ['programs', 'ssh', 'host-keys', 'control-path']

    - name: Say where its pages are
      ansible.builtin.debug:
        msg: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1') }}"
      when: try in ['thing', 'host-name', 'policy']

    - name: Ask how it is
      iotops.tunnel.health:
      when: try in ['thing', 'host-name']

    - name: Do something on the controller
      ansible.builtin.command: "true"
      delegate_to: localhost
      connection: local
      when: try in ['delegated', 'connection', 'interpreter', 'become']

    - name: Close its tunnel
      iotops.tunnel.tunnel:
        state: absent
      when: try in ['thing', 'host-name']

- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Show who is where
      ansible.builtin.debug:
        msg: "GROUPS {{ groups | to_json }}"
"""


@dataclass
class Scene:
    """A hostile device, a victim, and the places where the effects of an attack would appear."""

    fleet: Fleet
    folder: Path
    inventory: Path
    cache: Path
    tries: dict[str, dict[str, Any]]
    listener: socket.socket
    port: int
    before: dict[str, Any] = field(default_factory=dict)

    def play(self, playbook: object, *options: object, **environment: str) -> CompletedProcess[str]:
        return self.fleet.controller.playbook(playbook, "-i", self.inventory, "-f", "8", *options, **environment)

    def cached(self) -> dict[str, str]:
        """An environment with a persistent fact cache."""
        return {"ANSIBLE_CACHE_PLUGIN": "jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.cache)}

    def tunnels(self) -> set[str]:
        """The IDs of all open tunnels."""
        summaries = self.fleet.service.boto3_client().list_tunnels()["tunnelSummaries"]
        return {each["tunnelId"] for each in summaries if each["status"] == "OPEN"}

    def ports(self) -> dict[str, int | None]:
        """The addresses of the hostile device's services on the controller."""
        return {name: service["port"] for name, service in self.fleet.tunnel(LIAR)["services"].items()}

    def stolen(self) -> list[str]:
        """The files that an attack has created."""
        return [path.name for path in (self.folder / "stolen").glob("*")]

    def logins(self) -> int:
        """How many logins the victim has had."""
        return (self.fleet.devices[VICTIM].folder / "sshd.log").read_text().count("Accepted publickey")


def spy(path: Path, mark: Path) -> str:
    """A program that creates a file if it is run."""
    path.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    path.chmod(0o755)
    return str(path)


def tries(folder: Path, port: int, listener: socket.socket) -> dict[str, dict[str, Any]]:
    """The answers, by name: facts, and the other content under C(answer)."""
    mark = folder / "mark"
    stolen = {use: str(folder / "stolen" / use) for use in ("sockets", "report", "files", "tokens")}
    (folder / "secret").write_text(SECRET)
    (folder / "fix.yml").write_text(
        f"- ansible.builtin.file: {{path: {mark}, state: touch}}\n  delegate_to: localhost\n"
    )
    program = spy(folder / "spy", mark)
    theirs = {"ansible_python_interpreter": program, "ansible_connection": "local"}
    return {
        # Hosts.
        "thing": {"iotops_tunnel_thing": VICTIM},
        "in-a-loop": {"iotops_tunnel_thing": VICTIM},
        "host-name": {"inventory_hostname": VICTIM, "inventory_hostname_short": VICTIM, "group_names": ["honest"]},
        "connection": {"ansible_connection": "local", "ansible_host": "127.0.0.1", "ansible_port": port},
        "delegated": {"ansible_delegated_vars": {"localhost": theirs}, "delegated_vars": {"localhost": theirs}},
        "groups": {"groups": {"honest": []}, "hostvars": {}, "ansible_play_hosts": [], "ansible_play_hosts_all": []},
        "new-host": {"answer": {"add_host": {"host_name": "planted", "groups": ["honest"], "host_vars": {}}}},
        "new-group": {"answer": {"add_group": "honest", "parent_groups": ["all"]}},
        "keys-of-ansible": {
            "answer": {
                "_ansible_delegated_vars": {"ansible_delegated_host": VICTIM},
                "_ansible_facts_cacheable": True,
                "_ansible_notify": ["nobody"],
                "results": [{"add_host": {"host_name": "planted", "groups": ["honest"]}}],
            }
        },
        # Options.
        "ports": {"iotops_tunnel_ports": [f"HTTP1={port}"]},
        "policy": {"iotops_tunnel_open": "always", "iotops_tunnel_services": ["SSH1", "HTTP1", "VNC1"]},
        "service-address": {
            "iotops_tunnel_endpoint_url": f"https://127.0.0.1:{listener.getsockname()[1]}",
            "iotops_tunnel_access_key": "AKIAIOSFODNN7EXAMPLE",
            "iotops_tunnel_open": "always",
        },
        "programs": {"ansible_sftp_executable": program, "ansible_scp_executable": program},
        "host-keys": {"ansible_host_key_checking": False, "ansible_ssh_host_key_checking": False},
        "ssh": {"ansible_ssh_executable": program, "ansible_ssh_common_args": f"-o 'ProxyCommand={program}'"},
        "become": {"ansible_become": True, "ansible_become_method": "sudo", "ansible_become_exe": program},
        "interpreter": {"ansible_python_interpreter": program, "discovered_interpreter_python": program},
        # Paths.
        "control-path": {"ansible_control_path_dir": stolen["sockets"]},
        "report": {"iotops_tunnel_diagnose_dest": stolen["report"], "iotops_tunnel_diagnose_title": "Stolen"},
        "diagnosis": {
            "iotops_tunnel_diagnosis": {"host": VICTIM, "state": "ok", "headline": "Stolen"},
            "iotops_tunnel_diagnose__card": "<script>Stolen</script>",
            "iotops_tunnel_diagnose__check": "Stolen",
        },
        "functions": {"lookup": "x", "query": "x", "now": "x", "omit": stolen["files"], "vars": {}},
        "search-path": {"ansible_search_path": [stolen["files"]], "role_path": stolen["files"]},
        "token-folder": {"iotops_tunnel_destination_token_dir": stolen["tokens"]},
        "fix": {"iotops_tunnel_fix_tasks": str(folder / "fix.yml")},
        "agent": {"iotops_tunnel_agent_broker_key": str(folder / "secret"), "iotops_tunnel_agent_state": "absent"},
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hostile")
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(LIAR, VICTIM))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = free_port()
        answers = tries(folder, port, listener)
        hosts: dict[str, Any] = {}
        for name, facts in answers.items():
            answer = {**DIAGNOSIS, **facts.pop("answer", {})}
            python = hostile_python(folder / f"python-{name}", facts, answer)
            hosts[f"liar-{name}"] = {"ansible_python_interpreter": str(python), "try": name}
        common = json.loads(fleet.controller.inventory.read_text())["devices"]["vars"]
        common |= {"iotops_tunnel_become": False, "iotops_tunnel_diagnose_dest": str(folder / "out")}
        common |= {"iotops_tunnel_diagnose_sections": ["system"], "remote": str(folder / "copied")}
        liars = {"hosts": hosts, "vars": {**common, "iotops_tunnel_thing": LIAR}}
        inventory = folder / "hosts.json"
        inventory.write_text(json.dumps({"liars": liars, "honest": {"hosts": {VICTIM: {}}, "vars": common}}))
        yield Scene(fleet, folder, inventory, folder / "cache", answers, listener, port)


@pytest.fixture(scope="module")
def session(scene: Scene) -> CompletedProcess[str]:
    """The run after all hostile answers."""
    scene.before = {"tunnels": scene.tunnels(), "logins": scene.logins(), "ports": scene.ports()}
    playbook = scene.folder / "session.yml"
    playbook.write_text(SESSION)
    return scene.play(playbook, "-vvv", **scene.cached())


def test_the_other_device_is_not_affected(scene: Scene, session: CompletedProcess[str]) -> None:
    assert scene.logins() == scene.before["logins"]
    victims_port = scene.fleet.tunnel(VICTIM)["services"]["HTTP1"]["port"]
    assert f"http://127.0.0.1:{victims_port}" not in session.stdout
    assert not (Path.home() / "try-connection-a").exists()


def test_no_tunnel_is_opened_or_closed_or_moved(scene: Scene, session: CompletedProcess[str]) -> None:
    assert scene.tunnels() == scene.before["tunnels"]
    assert scene.ports() == scene.before["ports"]
    assert not select.select([scene.listener], [], [], 0)[0], "the keys of the operator went to the device's friend"


def test_no_program_runs_and_no_file_is_made_on_the_controller(scene: Scene, session: CompletedProcess[str]) -> None:
    assert not (scene.folder / "mark").exists()
    assert scene.stolen() == []
    assert "StrictHostKeyChecking=no" not in session.stdout


def test_hosts_and_groups_stay_as_they_were(scene: Scene, session: CompletedProcess[str]) -> None:
    _, found, rest = session.stdout.partition('"msg": "GROUPS ')
    assert found, session.stdout[-3000:] + session.stderr
    groups = json.loads(json.loads('"' + rest.partition("\n")[0].rstrip()))
    assert groups["honest"] == [VICTIM]
    assert sorted(groups["liars"]) == sorted(f"liar-{name}" for name in scene.tries)
    assert "planted" not in groups["all"]


def test_refusals_name_the_device(scene: Scene, session: CompletedProcess[str]) -> None:
    for name in ("thing", "in-a-loop", "ports", "programs", "host-keys", "control-path", "delegated", "groups"):
        assert f"liar-{name} {REFUSED}: " in session.stdout, name
    told = re.search(rf"liar-thing {REFUSED}: .*? such variables\.", session.stdout, re.DOTALL)
    assert told, session.stdout
    assert_documented("Facts of the device", " ".join(told[0].split()))
    assert f"This host {REFUSED}: group_names, inventory_hostname, inventory_hostname_short." in session.stdout


@pytest.mark.nightly
def test_the_report_is_in_its_folder_and_includes_all_devices(scene: Scene, session: CompletedProcess[str]) -> None:
    """With the facts of the session, from the cache."""
    ran = scene.play("iotops.tunnel.diagnose", **scene.cached())
    assert "report" not in scene.stolen()
    out = scene.folder / "out"
    page = Page((out / "report.html").read_text())
    assert page.errors == []
    assert {host for host, _ in page.devices} == {VICTIM, *(f"liar-{name}" for name in scene.tries)}
    states = dict(page.devices)
    for name in ("report", "diagnosis", "functions", "search-path", "host-name", "groups", "thing"):
        assert states[f"liar-{name}"] == "not diagnosed", name
        assert f"fatal: [liar-{name}]: FAILED!" in ran.stdout
    assert f"liar-report {REFUSED}" in page.text
    assert "Stolen" not in page.text
    assert "script" not in page.tags
    assert yaml.safe_load((out / "devices" / f"{VICTIM}.yml").read_text())["facts"]["system"]["uptime_minutes"] > 0


def test_tokens_and_tasks_come_from_the_operator(scene: Scene, session: CompletedProcess[str]) -> None:
    limit = ("--limit", f"liar-token-folder,liar-fix,{VICTIM}")
    opened = scene.play("iotops.tunnel.open", *limit, **scene.cached())
    assert f"liar-token-folder {REFUSED}" in opened.stdout
    assert f"ok: [{VICTIM}]" in opened.stdout
    fixed = scene.play("iotops.tunnel.rolling_fix", "--limit", "liar-fix", **scene.cached())
    assert f"liar-fix {REFUSED}: iotops_tunnel_fix_tasks." in fixed.stdout
    assert "tokens" not in scene.stolen()
    assert not (scene.folder / "mark").exists()
    assert scene.tunnels() == scene.before["tunnels"]


def test_no_file_of_the_controller_is_sent_to_a_device(scene: Scene, session: CompletedProcess[str]) -> None:
    """By plain SSH, as when the agent is first installed: only the role can refuse then."""
    device = scene.fleet.devices[LIAR]
    plain = {
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": "127.0.0.1",
        "ansible_port": device.sshd.port,
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        "iotops_tunnel_agent_broker_host": "broker.example",
    }
    inventory = json.loads(scene.inventory.read_text())
    inventory["liars"]["vars"] |= plain
    file = scene.folder / "plain.json"
    file.write_text(json.dumps(inventory))
    ran = scene.fleet.controller.playbook(
        "iotops.tunnel.install_agent", "-i", file, "--limit", "liar-agent", ANSIBLE_KEEP_REMOTE_FILES="1"
    )
    assert f"liar-agent {REFUSED}: iotops_tunnel_agent_broker_key, iotops_tunnel_agent_state." in ran.stdout
    places = (scene.fleet.controller.home / "remote", device.folder)
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


NAMES = {
    "all": "all.yml",
    "honest": "honest.yml",
    "localhost": "localhost.yml",
    "a/b": "a%2Fb.yml",
    "a%2Fb": "a%252Fb.yml",
    "..": "%2E..yml",
    "../../out": "%2E.%2F..%2Fout.yml",
    "d" * 300: None,
    "d" * 299 + "e": None,
}
"""Hosts whose names have a meaning elsewhere, and their files."""

SHAPES: dict[str, dict[str, Any]] = {
    "severity": {"severity": "splendid"},
    "severity-of-none": {"severity": None},
    "findings": {"findings": "<b>", "facts": [1], "skipped_sections": 7},
    "finding": {"severity": "splendid", "findings": [{"severity": "splendid", "message": "m", "section": "s"}]},
    "facts": {"facts": {"system": "x"}},
    "section": {"facts": {"system": {"os": "x", "load": 5}}},
    "failed": {"failed": True, "msg": {"a": "\x1b[31m"}, "severity": "ok"},
    "huge": {"facts": {"system": {"os": ["x" * 300] * 10000}}},
}
"""Answers that are not a diagnosis."""


@pytest.mark.nightly
def test_no_device_is_hidden_by_a_name_or_a_malformed_answer(scene: Scene) -> None:
    folder = scene.folder / "shapes"
    folder.mkdir()
    hosts: dict[str, Any] = {}
    dest = {
        "iotops_tunnel_diagnose_dest": str(scene.folder / "stolen" / "shapes"),
        "ansible_facts": {"iotops_tunnel_thing": VICTIM},
    }
    # A diagnosis with additional content.
    more = {
        **DIAGNOSIS,
        "unreachable": True,
        "skipped": True,
        "add_group": "honest",
        "msg": "\x1b[31m",
        "warnings": ["\x1b[31m"],
    }
    polite = hostile_python(folder / "polite", {**dest, "lookup": "x", "inventory_hostname": VICTIM}, more)
    # If a host has the name of a group, Ansible treats its variables as the group's.
    hosts |= {name: {} for name in NAMES}
    for name, shape in SHAPES.items():
        python = hostile_python(folder / f"python-{name}", dest, {**DIAGNOSIS, **shape})
        hosts[f"shape-{name}"] = {"ansible_python_interpreter": str(python)}
    inventory = json.loads(scene.inventory.read_text())
    out = folder / "out"
    inventory["liars"]["hosts"] = hosts
    inventory["liars"]["vars"]["ansible_python_interpreter"] = str(polite)
    for group in inventory.values():
        group["vars"]["iotops_tunnel_diagnose_dest"] = str(out)
    file = folder / "hosts.json"
    file.write_text(json.dumps(inventory))

    ran = scene.fleet.controller.playbook("iotops.tunnel.diagnose", "-i", file, "-f", "8")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    page = Page((out / "report.html").read_text())
    assert page.errors == []
    states = dict(page.devices)
    assert set(states) == {VICTIM, *hosts}
    assert {name: states[name] for name in NAMES} == dict.fromkeys(NAMES, "ok")
    assert {name: states[f"shape-{name}"] for name in SHAPES} == dict.fromkeys(SHAPES, "not diagnosed")
    shown = [line for line in ran.stdout.splitlines() if line.strip().startswith(('"failed', '"ok', '"notice'))]
    assert len(shown) >= len(NAMES) + len(SHAPES)

    assert "shapes" not in scene.stolen()
    files = {path.name for path in out.rglob("*") if path.is_file()}
    assert {name for name in NAMES.values() if name} <= files
    assert len(files) == len(hosts) + 2
    found = [yaml.safe_load(path.read_text())["host"] for path in (out / "devices").iterdir()]
    assert sorted(found) == sorted([VICTIM, *hosts])
