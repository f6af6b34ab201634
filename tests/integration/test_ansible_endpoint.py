# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup of service addresses, and hosts from the inventory of things, with real devices and tunnels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.fleet import Fleet
from tunnelproxy.service.state.store import Store


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("device-1", "device-2") as running:
        yield running


PLAYBOOK = """
- hosts: device-1
  gather_facts: false
  vars:
    its_name: device-2
    endpoint: iotops.tunnel.endpoint
  tasks:
    - ansible.builtin.uri:
        url: "{{ lookup(endpoint, 'HTTP1', path='/index.html') }}"
        return_content: true
      delegate_to: localhost
      connection: local
      register: own
    - ansible.builtin.uri:
        url: "{{ lookup(endpoint, 'HTTP1') }}"
        return_content: true
      delegate_to: localhost
      connection: local
      vars:
        iotops_tunnel_thing: "{{ its_name }}"
      register: other
    - ansible.builtin.copy:
        content: "{{ found | to_json }}"
        dest: "{{ result }}"
        mode: "0600"
      delegate_to: localhost
      connection: local
      vars:
        found:
          pages: ["{{ own.content }}", "{{ other.content }}"]
          url: "{{ lookup(endpoint, 'HTTP1', scheme='https', path='/a?b=c') }}"
          page: "{{ lookup(endpoint, 'HTTP1', form='page', path='/a?b=c') }}"
          host_port: "{{ lookup(endpoint, 'HTTP1', thing='device-2', form='host_port') }}"
          ports: "{{ query(endpoint, 'HTTP1', 'HTTP1', form='port') }}"
"""


def test_the_endpoint_of_a_service_reaches_the_thing(fleet: Fleet, tmp_path: Path) -> None:
    playbook, result = tmp_path / "work.yml", tmp_path / "result"
    playbook.write_text(PLAYBOOK)
    done = fleet.controller.playbook(playbook, "-e", f"result={result}")
    assert done.returncode == 0, done.stdout + done.stderr

    found = json.loads(result.read_text())
    port, other = (fleet.tunnel(thing)["services"]["HTTP1"]["port"] for thing in ("device-1", "device-2"))
    assert found["pages"] == ["device-1 is well\n", "device-2 is well\n"]
    assert found["url"] == f"https://127.0.0.1:{port}/a?b=c"
    assert found["page"] == f"http://device-1.localhost:{port}/a?b=c"
    assert found["host_port"] == f"127.0.0.1:{other}"
    assert found["ports"] == [port, port]


FAILURES = {
    "'HTTP1', thing='nobody', open='never'": "there is no tunnel to nobody",
    "'SSH1'": "The hub has no port for SSH1 of device-1: SSH services have none. Use another service",
    "'HTTP2'": "does not offer HTTP2",
    "'HTTP 1'": "'HTTP 1' cannot be the name of a service",
    "'HTTP1', thing='-o'": "'-o' cannot be the name of a thing",
    "'HTTP1', path='x'": "Write path='/x'.",
    "'HTTP1', form='word'": "host_port",
    # No device waits for this token.
    "'HTTP1', thing='nobody', wait_for_destination=0": "the device nobody did not connect to its tunnel",
}


def test_failures_are_one_sentence_and_a_missing_tunnel_is_opened(fleet: Fleet, tmp_path: Path) -> None:
    tasks = [
        {"ansible.builtin.debug": {"msg": f"{{{{ lookup('iotops.tunnel.endpoint', {each}) }}}}"}, "ignore_errors": True}
        for each in FAILURES
    ]
    playbook = tmp_path / "work.yml"
    playbook.write_text(json.dumps([{"hosts": "device-1", "gather_facts": False, "tasks": tasks}]))
    done = fleet.controller.playbook(playbook)

    said = " ".join((done.stdout + done.stderr).split())
    assert f"ignored={len(FAILURES)}" in said
    assert [words for words in FAILURES.values() if words not in said] == [], said
    assert "Traceback" not in said
    summaries = fleet.service.boto3_client().list_tunnels(thingName="nobody")["tunnelSummaries"]
    assert [summary["status"] for summary in summaries] == ["OPEN"]


def test_a_service_whose_port_is_off_has_no_endpoint(fleet: Fleet) -> None:
    fleet.controller.tunnel("device-1", ports=["HTTP1=off"])
    try:
        message = "{{ lookup('iotops.tunnel.endpoint', 'HTTP1') }}"
        said = fleet.controller.run("ansible", "device-1", "-m", "ansible.builtin.debug", "-a", f'msg="{message}"')
    finally:
        fleet.controller.tunnel("device-1", ports=["HTTP1=any"])
    words = "The hub has no port for HTTP1 of device-1. For one, set iotops_tunnel_ports to HTTP1=any."
    assert words in " ".join((said.stdout + said.stderr).split())


def test_hosts_from_the_inventory_of_things_are_reached(fleet: Fleet, tmp_path: Path) -> None:
    store = Store(fleet.service.state_dir / "service.db")
    for thing in fleet.devices:
        store.put_thing(thing, "demo", {"user": next(iter(fleet.devices.values())).ssh_user})
    store.close()
    common = json.loads(fleet.controller.inventory.read_text())["devices"]["vars"]
    path = tmp_path / "fleet.things.yml"
    compose = {"ansible_user": "thing_attributes.user", "ansible_host": "'named-' ~ thing_name"}
    path.write_text(
        json.dumps({"plugin": "iotops.tunnel.things", "hostname": "'the-' ~ thing_name", "compose": compose})
    )
    extra = {name: value for name, value in common.items() if name not in ("ansible_connection", "ansible_user")}
    done = fleet.controller.run("ansible", "-i", path, "all", "-m", "ansible.builtin.ping", "-e", json.dumps(extra))
    assert done.stdout.count("SUCCESS") == len(fleet.devices), done.stdout + done.stderr
    assert "the-device-2 | SUCCESS" in done.stdout
