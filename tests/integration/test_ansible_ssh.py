# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.ssh: Ansible with real ssh, through real tunnels, to three devices with an sshd each."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.collection import Controller, Outcome
from peers.device import Sshd
from peers.fleet import Fleet
from peers.troubleshooting import assert_documented

THINGS = ("device-1", "device-2", "device:3")
HOSTS = ("device-1", "device-2", "device-3")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(*THINGS) as running:
        yield running


@pytest.fixture
def controller(fleet: Fleet) -> Iterator[Controller]:
    """The controller, without ssh processes of earlier tests."""
    fleet.controller.disconnect()
    return fleet.controller


def words(outcomes: dict[str, Outcome]) -> set[str]:
    return {outcome.word for outcome in outcomes.values()}


def test_the_second_run_reuses_hub_tunnels_and_ssh_connections(fleet: Fleet, controller: Controller) -> None:
    before = controller.hub_status()
    assert words(controller.module("ansible.builtin.ping")) == {"SUCCESS"}
    sockets = {path: path.stat().st_ino for path in controller.control_sockets()}
    assert words(controller.module("ansible.builtin.ping")) == {"SUCCESS"}
    after = controller.hub_status()

    assert len(sockets) == len(THINGS)
    assert {path: path.stat().st_ino for path in controller.control_sockets()} == sockets
    assert after["pid"] == before["pid"]
    assert [row["tunnel_id"] for row in after["tunnels"]] == [row["tunnel_id"] for row in before["tunnels"]]
    assert [row["services"]["SSH1"]["connections"] for row in after["tunnels"]] == [1, 1, 1]


def test_each_host_reaches_its_own_device(fleet: Fleet, controller: Controller) -> None:
    for host, device in zip(HOSTS, fleet.devices.values()):
        done = controller.run("ansible", host, "-m", "ansible.builtin.raw", "-a", "echo port=${SSH_CONNECTION##* }")
        assert f"port={device.sshd.port}" in done.stdout


def test_delegation_reaches_the_delegate(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    playbook = tmp_path / "delegate.yml"
    playbook.write_text("""
- hosts: device-1
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo {{ item }}=${SSH_CONNECTION##* }
      delegate_to: "{{ item }}"
      loop: [device-3, device-1, device-2]
      changed_when: false
      register: there
    - ansible.builtin.debug:
        msg: "{{ there.results | map(attribute='stdout') | list }}"
""")
    done = controller.playbook(playbook)
    for host, device in zip(HOSTS, fleet.devices.values()):
        assert f'"{host}={device.sshd.port}' in done.stdout


@pytest.mark.parametrize(
    "thing",
    [
        "{{ inventory_hostname }}",
        "{{ inventory_hostname.split('.')[0] | lower }}",
        "device-{{ inventory_hostname | regex_replace('^.*-', '') }}",
        "{{ things[inventory_hostname] }}",
    ],
)
def test_a_thing_built_from_inventory_hostname_is_the_delegates(
    fleet: Fleet, controller: Controller, tmp_path: Path, thing: str
) -> None:
    """ansible-core templates a delegate's variables with the name of the host that the task is for."""
    playbook = tmp_path / "delegate.yml"
    playbook.write_text(f"""
- hosts: device-1
  gather_facts: false
  vars:
    iotops_tunnel_thing: "{thing}"
    things: {{device-1: device-1, device-2: device-2}}
  tasks:
    - ansible.builtin.raw: echo here=${{SSH_CONNECTION##* }}
      changed_when: false
    - ansible.builtin.raw: echo there=${{SSH_CONNECTION##* }}
      delegate_to: device-2
      changed_when: false
    - ansible.builtin.raw: echo back=${{SSH_CONNECTION##* }}
      changed_when: false
""")
    done = controller.playbook(playbook, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    for word, device in (("here", "device-1"), ("there", "device-2"), ("back", "device-1")):
        assert f"{word}={fleet.devices[device].sshd.port}" in done.stdout


@pytest.mark.parametrize("default", ["", " | default('eu-north-1')"])
def test_a_lookup_by_the_delegates_name_need_not_work_for_the_host(
    fleet: Fleet, controller: Controller, tmp_path: Path, default: str
) -> None:
    region = fleet.service.environment["AWS_REGION"]
    playbook = tmp_path / "delegate.yml"
    playbook.write_text(f"""
- hosts: localhost
  gather_facts: false
  vars:
    accounts: {{device-2: {{region: {region}}}}}
  tasks:
    - ansible.builtin.raw: echo there=${{SSH_CONNECTION##* }}
      delegate_to: device-2
      connection: iotops.tunnel.ssh
      changed_when: false
""")
    own = tmp_path / "host_vars" / "device-2.yml"
    own.parent.mkdir()
    own.write_text(f'iotops_tunnel_region: "{{{{ accounts[inventory_hostname].region{default} }}}}"\n')
    done = controller.playbook(playbook, "-v")
    assert f"there={fleet.devices['device-2'].sshd.port}" in done.stdout, done.stdout


def test_a_delegates_literal_thing_is_reached(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    inventory = json.loads(controller.inventory.read_text())
    hosts = inventory["devices"]["hosts"]
    inventory["devices"]["hosts"] = {
        "device": hosts["device-1"],
        "backup": {**hosts["device-2"], "iotops_tunnel_thing": "device-2"},
    }
    other, playbook = tmp_path / "other.json", tmp_path / "delegate.yml"
    other.write_text(json.dumps(inventory))
    playbook.write_text("""
- hosts: device
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo there=${SSH_CONNECTION##* }
      delegate_to: backup
      changed_when: false
""")
    done = controller.playbook(playbook, "-v", "-i", other)
    assert f"there={fleet.devices['device-2'].sshd.port}" in done.stdout, done.stdout


def test_with_a_delegate_a_task_variable_built_from_inventory_hostname_is_refused(
    fleet: Fleet, controller: Controller, tmp_path: Path
) -> None:
    """There, inventory_hostname could mean the host or the delegate."""
    playbook = tmp_path / "delegate.yml"
    playbook.write_text("""
- hosts: device-1
  gather_facts: false
  tasks:
    - ansible.builtin.raw: echo there=${SSH_CONNECTION##* }
      delegate_to: device-2
      vars:
        iotops_tunnel_thing: "{{ inventory_hostname }}"
      changed_when: false
""")
    done = controller.playbook(playbook, "-v")
    assert "UNREACHABLE" in done.stdout
    told = re.search(r"delegate_to: device-2 is ambiguous: .*? in the task\.", done.stdout)
    assert told, done.stdout
    assert_documented("Delegate", told[0])
    assert not re.search(r"there=\d", done.stdout)


def test_resetting_and_waiting_open_no_other_tunnel(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    playbook = tmp_path / "reset.yml"
    playbook.write_text("""
- hosts: devices
  gather_facts: false
  tasks:
    - ansible.builtin.ping:
    - ansible.builtin.meta: reset_connection
    - ansible.builtin.wait_for_connection:
        timeout: 20
    - ansible.builtin.command: echo {{ item }}
      changed_when: false
      loop: [1, 2]
""")
    tunnels = [row["tunnel_id"] for row in controller.hub_status()["tunnels"]]
    done = controller.playbook(playbook)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["tunnel_id"] for row in controller.hub_status()["tunnels"]] == tunnels


def test_a_killed_hub_is_restarted(fleet: Fleet, controller: Controller) -> None:
    pid = controller.hub_status()["pid"]
    controller.disconnect()
    subprocess.run(["kill", "-9", str(pid)], check=True)

    assert words(controller.module("ansible.builtin.ping")) == {"SUCCESS"}
    assert controller.hub_status()["pid"] != pid


def test_the_proxy_command_takes_precedence_over_the_users_arguments(fleet: Fleet, controller: Controller) -> None:
    arguments = "-o ProxyCommand=/bin/false -o HostKeyAlias=other -o ServerAliveInterval=7"
    done = controller.run("ansible", "device-1", "-m", "ansible.builtin.ping", "-vvv", ANSIBLE_SSH_EXTRA_ARGS=arguments)

    assert "SUCCESS" in done.stdout, done.stdout
    command = next(line for line in done.stdout.splitlines() if "SSH: EXEC ssh" in line)
    assert command.index("ServerAliveInterval=7") < command.index("ServerAliveInterval=15")


def test_the_users_shell_is_not_started(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    """With a socket as input and no parent bash, as under cron, bash would run ~/.bashrc, and ssh read its output."""
    (tmp_path / ".bashrc").write_text(f"touch {tmp_path}/read\necho Welcome, operator\n")
    cron = {"SHELL": "/bin/bash", "SHLVL": "0", "HOME": str(tmp_path)}
    done = controller.run("ansible", "device-1", "-m", "ansible.builtin.raw", "-a", "echo $SSH_CONNECTION", **cron)
    assert "CHANGED" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "read").exists()


def test_each_argument_is_logged_with_its_reason(fleet: Fleet, controller: Controller) -> None:
    said = controller.run("ansible", "device-1", "-m", "ansible.builtin.raw", "-a", "true", "-vvv").stdout
    (command,) = [line for line in said.splitlines() if "SSH: EXEC ssh" in line]
    explained = "".join(line for line in said.splitlines() if re.search(r"> SSH: .+: \(", line))
    options = re.findall(r"-o (?:'((?:[^']|'\"'\"')+)'|(\S+))", command)
    assert len(options) > 10
    for quoted, plain in options:
        assert f"(-o)({quoted or plain}".replace("'\"'\"'", "'") in explained
    assert "reach SSH1 of device-1 through the hub" in explained


def test_a_changed_host_key_is_refused(fleet: Fleet, controller: Controller) -> None:
    keys = controller.known_hosts.read_text()
    controller.known_hosts.write_text(fleet.devices["device-2"].sshd.host_key_line("device-1"))
    try:
        outcome = controller.module("ansible.builtin.ping", "device-1")["device-1"]
    finally:
        controller.known_hosts.write_text(keys)

    assert outcome.word == "UNREACHABLE"
    assert_documented("Host key changed", outcome.message)
    assert "ssh-keygen -R device-1" in outcome.message


def test_an_unknown_host_key_is_refused(fleet: Fleet, controller: Controller) -> None:
    keys = controller.known_hosts.read_text()
    controller.known_hosts.write_text("")
    try:
        outcome = controller.module("ansible.builtin.ping", "device-1")["device-1"]
    finally:
        controller.known_hosts.write_text(keys)

    assert outcome.word == "UNREACHABLE"
    assert_documented("Host key not known", outcome.message)


def test_a_device_without_sshd_is_reported_as_refusing_ssh1(fleet: Fleet, controller: Controller) -> None:
    device = fleet.devices["device-1"]
    device.sshd.stop()
    try:
        outcomes = [controller.module("ansible.builtin.ping", "device-1")["device-1"]]
        outcomes.append(
            controller.module("ansible.builtin.copy", "device-1", content="x", dest="/nowhere/x")["device-1"]
        )
    finally:
        device.sshd = Sshd(device.folder, device.ssh_key, device.sshd.host_key)
        fleet.connect_anew(device.thing)

    for outcome in outcomes:
        assert outcome.word == "UNREACHABLE"
        assert_documented("Service refused", outcome.message)


def test_a_device_that_is_not_connected_is_reported(fleet: Fleet, controller: Controller) -> None:
    device = fleet.devices["device-2"]
    device.stop_proxy()
    try:
        outcome = controller.module("ansible.builtin.ping", "device-2")["device-2"]
    finally:
        fleet.connect_anew(device.thing)

    assert outcome.word == "UNREACHABLE"
    assert "device-2 is not connected to its tunnel" in outcome.message


NOBODY = ("-e", "iotops_tunnel_thing=nobody")


def tunnels_to_nobody(fleet: Fleet) -> list[str]:
    summaries = fleet.service.boto3_client().list_tunnels(thingName="nobody")["tunnelSummaries"]
    return [summary["tunnelId"] for summary in summaries if summary["status"] == "OPEN"]


def test_a_thing_without_a_tunnel_is_unreachable_if_none_may_be_opened(fleet: Fleet, controller: Controller) -> None:
    never = (*NOBODY, "-e", "iotops_tunnel_open=never")
    outcome = controller.module("ansible.builtin.ping", "device-1", *never)["device-1"]
    assert outcome.word == "UNREACHABLE"
    assert "there is no tunnel to nobody" in outcome.message
    assert tunnels_to_nobody(fleet) == []


def test_wait_for_connection_opens_one_tunnel_and_respects_its_timeout(fleet: Fleet, controller: Controller) -> None:
    waiting = ("-a", "timeout=2 sleep=1 connect_timeout=1", *NOBODY, "-e", "iotops_tunnel_wait=60")
    outcome = controller.module("ansible.builtin.wait_for_connection", "device-1", *waiting)["device-1"]
    assert outcome.word != "SUCCESS"
    assert "nobody did not connect to its tunnel" in outcome.message
    assert outcome.result["elapsed"] < 30
    (tunnel_id,) = tunnels_to_nobody(fleet)
    fleet.service.boto3_client().close_tunnel(tunnelId=tunnel_id, delete=True)


def test_a_tunnel_is_opened_for_a_thing_without_one(fleet: Fleet, controller: Controller) -> None:
    first = controller.module("ansible.builtin.ping", "device-1", *NOBODY, "-e", "iotops_tunnel_wait=1")["device-1"]
    second = controller.module("ansible.builtin.ping", "device-1", *NOBODY)["device-1"]
    (tunnel_id,) = tunnels_to_nobody(fleet)
    fleet.service.boto3_client().close_tunnel(tunnelId=tunnel_id, delete=True)
    assert (first.word, second.word) == ("UNREACHABLE", "UNREACHABLE")
    assert "the device nobody did not connect to its tunnel" in first.message
    assert "the device nobody is not connected to its tunnel" in second.message


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("iotops_tunnel_thing=-oProxyCommand=x", "cannot be the name of a thing"),
        ("iotops_tunnel_service=a;b", "cannot be the name of a service"),
        ("iotops_tunnel_service=VNC1", "does not offer VNC1"),
    ],
)
def test_bad_names_make_a_host_unreachable(fleet: Fleet, controller: Controller, variable: str, sentence: str) -> None:
    outcome = controller.module("ansible.builtin.ping", "device-1", "-e", variable)["device-1"]
    assert outcome.word == "UNREACHABLE"
    assert sentence in outcome.message


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("iotops_tunnel_health_path", "foo", "Set iotops_tunnel_health_path for nobody"),
        ("iotops_tunnel_health_status", ["well"], "Set iotops_tunnel_health_status for nobody"),
        ("iotops_tunnel_health_service", "HTTP2", "HTTP2 to iotops_tunnel_services"),
    ],
)
def test_an_invalid_health_check_is_refused_before_a_tunnel_is_opened(
    fleet: Fleet, controller: Controller, variable: str, value: object, sentence: str
) -> None:
    settings = {"iotops_tunnel_thing": "nobody", "iotops_tunnel_health_check": True, "iotops_tunnel_wait": 0}
    asked = json.dumps({**settings, variable: value})
    outcome = controller.module("ansible.builtin.ping", "device-1", "-e", asked)["device-1"]
    assert outcome.word == "UNREACHABLE"
    assert sentence in outcome.message
    assert tunnels_to_nobody(fleet) == []


def test_a_held_tunnel_may_have_services_that_new_ones_would_not(fleet: Fleet, controller: Controller) -> None:
    settings = {"iotops_tunnel_health_check": True, "iotops_tunnel_services": ["SSH1"]}
    outcome = controller.module("ansible.builtin.ping", "device-1", "-e", json.dumps(settings))["device-1"]
    assert outcome.word == "SUCCESS", outcome.message


def test_a_refused_login_quotes_ssh(fleet: Fleet, controller: Controller) -> None:
    outcome = controller.module("ansible.builtin.ping", "device-1", "-e", "ansible_ssh_private_key_file=/dev/null")
    assert outcome["device-1"].word == "UNREACHABLE"
    assert "Permission denied" in outcome["device-1"].message
