# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks rolling_fix and rotate, and the health gate, through real tunnels to real devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from peers.fleet import Fleet

THINGS = ("device-1", "device-2", "device-3")

FIX = """
- name: Note that the fix was here, and change the page
  ansible.builtin.raw: >-
    touch {{ roots[inventory_hostname] }}/fixed;
    echo {{ inventory_hostname }} is {{ 'sick' if inventory_hostname == breaks else 'well' }}
    >{{ roots[inventory_hostname] }}/index.html
"""

GATE = """
- hosts: devices
  gather_facts: false
  roles:
    - iotops.tunnel.health
  tasks:
    - name: Go on
      ansible.builtin.debug:
        msg: "goes on with {{ inventory_hostname }}"
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(*THINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def as_new(fleet: Fleet) -> None:
    for thing, device in fleet.devices.items():
        (device.http.root / "fixed").unlink(missing_ok=True)
        (device.http.root / "index.html").write_text(f"{thing} is well\n")


def run(fleet: Fleet, playbook: object, folder: Path, **variables: Any) -> CompletedProcess[str]:
    """Run a playbook in a folder, with a gate that requires the page to say that the device is well."""
    gate = {"iotops_tunnel_health_content": "is well", "iotops_tunnel_health_wait": 1, "iotops_tunnel_health_delay": 1}
    roots = {thing: str(device.http.root) for thing, device in fleet.devices.items()}
    extra = {"iotops_tunnel_become": False, "roots": roots, "breaks": "nobody", **gate, **variables}
    return fleet.controller.playbook(playbook, "-e", json.dumps(extra), PWD=str(folder))


def fixed(fleet: Fleet) -> list[str]:
    """The devices on which the fix was run."""
    return [thing for thing, device in fleet.devices.items() if (device.http.root / "fixed").exists()]


def test_an_unhealthy_device_stops_the_fix_before_later_batches(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "fix.yml").write_text(FIX)
    fix = {"iotops_tunnel_fix_tasks": "fix.yml", "iotops_tunnel_serial": 1}
    ran = run(fleet, "iotops.tunnel.rolling_fix", tmp_path, breaks="device-2", **fix)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    reason = "device-2 was not healthy within 1 s: / answered, but its body does not match 'is well'."
    assert reason in " ".join(ran.stdout.split())
    assert fixed(fleet) == ["device-1", "device-2"]


def test_an_unreachable_device_stops_the_fix_before_later_batches(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "fix.yml").write_text(FIX)
    fix = {"iotops_tunnel_fix_tasks": "fix.yml", "iotops_tunnel_serial": [2, 1]}
    fleet.devices["device-2"].stop_proxy()
    try:
        ran = run(fleet, "iotops.tunnel.rolling_fix", tmp_path, **fix)
    finally:
        fleet.connect_anew("device-2")
    assert ran.returncode != 0, ran.stdout + ran.stderr
    assert "device-2 is not connected to its tunnel" in ran.stdout + ran.stderr
    assert "device-3 is not changed, because of device-2 in an earlier batch." in " ".join(ran.stdout.split())
    assert fixed(fleet) == ["device-1"]


def test_a_role_fixes_all_devices_if_all_stay_healthy(fleet: Fleet, tmp_path: Path) -> None:
    tasks = tmp_path / "roles" / "mend" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text(FIX)
    fleet.controller.environment["ANSIBLE_ROLES_PATH"] = str(tmp_path / "roles")
    ran = run(fleet, "iotops.tunnel.rolling_fix", tmp_path, iotops_tunnel_fix_role="mend")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert fixed(fleet) == list(THINGS)


def test_a_missing_tasks_file_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    ran = run(fleet, "iotops.tunnel.rolling_fix", tmp_path, iotops_tunnel_fix_tasks="missing.yml")
    assert ran.returncode != 0
    assert f"({tmp_path}/missing.yml does not exist)" in " ".join(ran.stdout.split())
    assert fixed(fleet) == []


def test_the_gate_can_skip_an_unhealthy_device(fleet: Fleet, tmp_path: Path) -> None:
    (fleet.devices["device-1"].http.root / "index.html").write_text("sick\n")
    playbook = tmp_path / "gate.yml"
    playbook.write_text(GATE)
    ran = run(fleet, playbook, tmp_path, iotops_tunnel_health_otherwise="end_host")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "device-1 was not healthy within 1 s" in ran.stdout
    assert "goes on with device-1" not in ran.stdout
    assert "goes on with device-2" in ran.stdout


def test_rotation_revokes_the_old_tokens_and_writes_new_ones(fleet: Fleet, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    before = {thing: fleet.tunnel(thing)["tunnel_id"] for thing in THINGS}
    ran = run(fleet, "iotops.tunnel.rotate", tmp_path, iotops_tunnel_destination_token_dir=str(tokens))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for thing, device in fleet.devices.items():
        token = (tokens / thing).read_text()
        assert token not in ran.stdout + ran.stderr
        assert fleet.tunnel(thing)["tunnel_id"] == before[thing]
        device.start_proxy(token)
        device.wait_connected(before[thing])
    ping = fleet.controller.playbook("iotops.tunnel.ping")
    assert ping.returncode == 0, ping.stdout + ping.stderr


def test_rotation_of_the_source_token_interrupts_nothing(fleet: Fleet, tmp_path: Path) -> None:
    ran = run(fleet, "iotops.tunnel.rotate", tmp_path, iotops_tunnel_rotate="source", iotops_tunnel_hosts="device-1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert fleet.controller.module("ansible.builtin.ping", "device-1")["device-1"].word == "SUCCESS"


def test_rotation_opens_no_tunnel_if_there_is_none(fleet: Fleet, tmp_path: Path) -> None:
    services = {"iotops_tunnel_services": ["SSH1"], "iotops_tunnel_hosts": "device-1"}
    ran = run(fleet, "iotops.tunnel.rotate", tmp_path, **services)
    assert ran.returncode == 2
    assert "There is no open tunnel to device-1 with these services" in " ".join(ran.stdout.split())
    tunnels = fleet.service.boto3_client().list_tunnels(thingName="device-1")["tunnelSummaries"]
    assert len(tunnels) == 1
