# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.tunnel_info against the real tunneling service, and credentials set for all modules at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from peers.collection import Controller, Outcome
from peers.service import TunnelingService

INFO = "iotops.tunnel.tunnel_info"


@pytest.fixture(scope="module")
def controller(service: TunnelingService) -> Iterator[Controller]:
    hosts = {"thing-a": {}, "alias": {"iotops_tunnel_thing": "thing-b"}}
    environment = {
        "IOTOPS_TUNNEL_OWNER": "alice@jump1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        **service.environment,
    }
    with Controller(environment, hosts, {"iotops_tunnel_unregistered": True}) as machine:
        yield machine


@pytest.fixture(scope="module")
def tunnels(service: TunnelingService) -> dict[str, str]:
    """IDs of tunnels, by description."""
    client = service.boto3_client()

    def opened(thing: str, site: str) -> str:
        tunnel_id: str = client.open_tunnel(
            description="for a test",
            destinationConfig={"thingName": thing, "services": ["SSH1", "HTTP1"]},
            tags=[{"key": "site", "value": site}],
        )["tunnelId"]
        return tunnel_id

    ids = {"south": opened("thing-a", "south"), "north": opened("thing-a", "north"), "closed": opened("thing-a", "")}
    client.close_tunnel(tunnelId=ids["closed"])
    # One page has 100.
    ids["oldest"], *_ = [opened("thing-b", "north") for _ in range(101)]
    return ids


def info(controller: Controller, host: str, *options: str, **arguments: Any) -> Outcome:
    return controller.module(INFO, host, *options, **arguments)[host]


def ids(outcome: Outcome) -> list[str]:
    assert outcome.word == "SUCCESS", outcome.message
    return [tunnel["tunnel_id"] for tunnel in outcome.result["tunnels"]]


def test_returns_the_open_tunnels_of_a_thing_newest_first(
    controller: Controller, service: TunnelingService, tunnels: dict[str, str]
) -> None:
    outcome = info(controller, "thing-a", "--check")

    assert ids(outcome) == [tunnels["north"], tunnels["south"]]
    assert outcome.result["region"] == "us-east-1"
    assert re.fullmatch(rf"\d{{12}}/us-east-1 at {urlsplit(service.api).netloc}", outcome.result["account"])
    tunnel = outcome.result["tunnels"][0]
    assert tunnel.pop("created_at") < tunnel.pop("expires_at")
    assert tunnel.pop("tunnel_arn").endswith(f":tunnel/{tunnels['north']}")
    assert tunnel == {
        "tunnel_id": tunnels["north"],
        "status": "open",
        "thing_name": "thing-a",
        "services": ["SSH1", "HTTP1"],
        "description": "for a test",
        "owner": None,
        "tags": {"site": "north"},
        "source": "disconnected",
        "destination": "disconnected",
        "lifetime": 720,
    }


def test_returns_the_tunnels_of_all_things_from_all_pages(controller: Controller, tunnels: dict[str, str]) -> None:
    found = ids(info(controller, "thing-a", all_things=True, tags={"site": "north"}))
    assert len(found) == 102
    assert found[-2:] == [tunnels["oldest"], tunnels["north"]]


CLOSED = """
- hosts: thing-a
  gather_facts: false
  tasks:
    - iotops.tunnel.tunnel_info:
        status: closed
      register: found
      failed_when: found.tunnels | map(attribute='tunnel_id') != [closed]
    - iotops.tunnel.tunnel_info:
        tunnel_id: "{{ closed }}"
      register: found
      failed_when: found.tunnels != []
    - iotops.tunnel.tunnel_info:
        tunnel_id: "{{ closed }}"
        thing_name: thing-b
        status: any
      register: found
      failed_when: found.tunnels[0].status != 'closed'
    - iotops.tunnel.tunnel_info:
        tunnel_id: no-such-tunnel
      register: found
      failed_when: found.tunnels != []
"""


def test_returns_closed_tunnels_on_request_and_nothing_for_unknown_ones(
    controller: Controller, tunnels: dict[str, str], tmp_path: Path
) -> None:
    playbook = tmp_path / "work.yml"
    playbook.write_text(CLOSED)
    done = controller.playbook(playbook, "-e", f"closed={tunnels['closed']}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_failure_is_reported_in_one_sentence(controller: Controller) -> None:
    outcome = info(controller, "thing-a", access_key="AKIAWRONG", secret_key="wrong")
    assert outcome.word == "FAILED"
    assert outcome.message.startswith("Could not list the tunnels of thing-a: the AWS keys in AWS_ACCESS_KEY_ID")
    assert " are not accepted (UnrecognizedClientException): check them" in outcome.message


PLAYBOOK = """
- hosts: thing-a
  gather_facts: false
  module_defaults:
    group/iotops.tunnel.aws:
      access_key: "{{ lookup('env', 'THE_KEY') }}"
      secret_key: "{{ lookup('env', 'THE_SECRET') }}"
      region: us-east-1
  tasks:
    - iotops.tunnel.tunnel:
        services: [HTTP1]
      register: opened
    - iotops.tunnel.tunnel_info:
        tunnel_id: "{{ opened.tunnel_id }}"
      register: found
    - ansible.builtin.assert:
        that:
          - found.tunnels[0].tunnel_id == opened.tunnel_id
          - found.tunnels[0].owner == 'alice@jump1'
    - iotops.tunnel.tunnel:
        state: absent
    - iotops.tunnel.tunnel_info:
        access_key: AKIAWRONG
      register: refused
      failed_when: "'are not accepted' not in refused.msg"
"""


def test_credentials_can_be_set_once_for_all_modules(
    controller: Controller, service: TunnelingService, tmp_path: Path
) -> None:
    playbook = tmp_path / "work.yml"
    playbook.write_text(PLAYBOOK)
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": ""}
    environment = service.environment
    done = controller.playbook(
        playbook,
        **nobody,
        THE_KEY=environment["AWS_ACCESS_KEY_ID"],
        THE_SECRET=environment["AWS_SECRET_ACCESS_KEY"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert environment["AWS_SECRET_ACCESS_KEY"] not in done.stdout

    without = controller.module(INFO, "thing-a", env=nobody)["thing-a"]
    assert without.word == "FAILED"
    assert "there are no AWS credentials" in without.message


def test_every_module_with_credentials_is_in_the_group(controller: Controller) -> None:
    done = controller.run("ansible-doc", "--json", "-t", "module", *(f"iotops.tunnel.{each}" for each in ALL_MODULES))
    assert done.returncode == 0, done.stderr
    taking = {name for name, each in json.loads(done.stdout).items() if "access_key" in each["doc"]["options"]}
    runtime = yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text())
    assert sorted(taking) == sorted(runtime["action_groups"]["aws"])
    assert {"iotops.tunnel.tunnel", INFO} <= taking
    for name in taking:
        group = json.loads(done.stdout)[name]["doc"]["attributes"]["action_group"]
        assert group["membership"] == ["iotops.tunnel.aws"]


COLLECTION = Path(__file__).parents[2]
ALL_MODULES = [path.stem for path in sorted((COLLECTION / "plugins" / "modules").glob("[a-z]*.py"))]
