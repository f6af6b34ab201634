# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.tunnel against the real tunneling service, with a real hub on the controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from peers.collection import Controller, Outcome
from peers.service import TunnelingService
from tunnelproxy.hub.tags import valid_owner
from tunnelproxy.service.state.store import Store

OWNER = "alice@jump1"


@pytest.fixture(scope="module")
def machine(service: TunnelingService) -> Iterator[Controller]:
    hosts: dict[str, dict[str, str]] = {"thing-a": {}, "alias": {"iotops_tunnel_thing": "thing-b"}}
    environment = {"IOTOPS_TUNNEL_OWNER": OWNER, **service.environment}
    with Controller(environment, hosts, {"iotops_tunnel_unregistered": True}) as controller:
        yield controller


@pytest.fixture
def controller(machine: Controller, service: TunnelingService) -> Iterator[Controller]:
    """The machine, for a test that leaves tunnels open."""
    yield machine
    client = service.boto3_client()
    for thing in ("thing-a", "thing-b"):
        for tunnel_id in open_tunnels(service, thing):
            client.close_tunnel(tunnelId=tunnel_id)
    machine.hub("stop")
    (machine.home / "hub" / "tunnels.jsonl").unlink(missing_ok=True)


def described(service: TunnelingService, outcome: Outcome) -> dict[str, Any]:
    tunnel: dict[str, Any] = service.boto3_client().describe_tunnel(tunnelId=outcome.result["tunnel_id"])["tunnel"]
    return tunnel


def open_tunnels(service: TunnelingService, thing: str) -> list[str]:
    summaries = service.boto3_client().list_tunnels(thingName=thing)["tunnelSummaries"]
    return [summary["tunnelId"] for summary in summaries if summary["status"] == "OPEN"]


def test_opens_a_tunnel_that_the_hub_holds(controller: Controller, service: TunnelingService) -> None:
    outcome = controller.tunnel("thing-a", description="for a test", lifetime=30, tags={"site": "north"})

    assert outcome.word == "CHANGED", outcome.message
    tunnel = described(service, outcome)
    assert tunnel["status"] == "OPEN"
    assert tunnel["description"] == "for a test"
    assert tunnel["timeoutConfig"]["maxLifetimeTimeoutMinutes"] == 30
    assert tunnel["destinationConfig"] == {"thingName": "thing-a", "services": ["SSH1", "HTTP1"]}
    assert {tag["key"]: tag["value"] for tag in tunnel["tags"]} == {
        "site": "north",
        "iotops:managed-by": "iotops.tunnel",
        "iotops:owner": OWNER,
    }
    assert tunnel["sourceConnectionState"]["status"] == "CONNECTED"
    assert outcome.result["destination"] == "disconnected"
    (held,) = controller.hub_status()["tunnels"]
    assert held["tunnel_id"] == outcome.result["tunnel_id"]
    assert outcome.result["ports"] == {"HTTP1": held["services"]["HTTP1"]["port"]}


@pytest.mark.parametrize(
    ("port", "sentence"),
    [
        ("HTTP2=any", "has HTTP2, which is not a service of the tunnel"),
        ("SSH1=5555", "SSH1 cannot have a port"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_invalid_ports_are_refused_before_a_tunnel_is_opened(
    controller: Controller, service: TunnelingService, port: str, sentence: str, check: bool
) -> None:
    outcome = controller.tunnel("thing-a", *(["--check"] if check else []), ports=[port])
    assert outcome.word == "FAILED"
    assert sentence in outcome.message
    assert open_tunnels(service, "thing-a") == []


def test_reuses_an_open_tunnel(controller: Controller, service: TunnelingService) -> None:
    first = controller.tunnel("thing-a")
    second = controller.tunnel("thing-a")

    assert second.word == "SUCCESS"
    assert second.result["tunnel_id"] == first.result["tunnel_id"]
    assert second.result["ports"] == first.result["ports"]
    assert open_tunnels(service, "thing-a") == [first.result["tunnel_id"]]


def test_other_services_need_another_tunnel(controller: Controller) -> None:
    first = controller.tunnel("thing-a")
    other = controller.tunnel("thing-a", services=["HTTP1"])

    assert other.word == "CHANGED"
    assert other.result["tunnel_id"] != first.result["tunnel_id"]


def test_does_not_use_tunnels_that_it_did_not_open(controller: Controller, service: TunnelingService) -> None:
    config = {"thingName": "thing-a", "services": ["SSH1", "HTTP1"]}
    foreign = service.boto3_client().open_tunnel(destinationConfig=config)["tunnelId"]
    ours = controller.tunnel("thing-a")

    assert ours.result["tunnel_id"] != foreign
    assert controller.tunnel("thing-a", state="absent").result["closed"] == [ours.result["tunnel_id"]]
    assert open_tunnels(service, "thing-a") == [foreign]
    service.boto3_client().close_tunnel(tunnelId=foreign)


def test_the_inventory_can_name_the_thing(controller: Controller) -> None:
    assert controller.tunnel("alias").result["thing_name"] == "thing-b"


def test_concurrent_forks_get_the_same_tunnel(service: TunnelingService) -> None:
    hosts = {f"name-{number}": {"iotops_tunnel_thing": "thing-shared"} for number in range(4)}
    with Controller(service.environment, hosts, {"iotops_tunnel_unregistered": True}) as machine:
        outcomes = machine.module("iotops.tunnel.tunnel")

        assert len({outcome.result["tunnel_id"] for outcome in outcomes.values()}) == 1
        assert [outcome.word for outcome in outcomes.values()].count("CHANGED") == 1
        machine.tunnel("name-0", state="absent")


def test_check_mode_reports_changes_and_makes_none(controller: Controller, service: TunnelingService) -> None:
    would_open = controller.tunnel("thing-a", "--check")
    assert would_open.word == "CHANGED"
    assert "tunnel_id" not in would_open.result
    assert open_tunnels(service, "thing-a") == []

    opened = controller.tunnel("thing-a")
    assert controller.tunnel("thing-a", "--check").word == "SUCCESS"
    assert controller.tunnel("thing-a", "--check", rotate="all").word == "CHANGED"
    assert controller.tunnel("thing-a", "--check", state="absent").word == "CHANGED"
    assert open_tunnels(service, "thing-a") == [opened.result["tunnel_id"]]
    assert controller.hub_status()["tunnels"][0]["state"] == "connected"


def test_diff_shows_the_tags(controller: Controller, service: TunnelingService) -> None:
    outcome = controller.tunnel("thing-a", tags={"site": "north", "shelf": "1"})
    done = controller.run(
        "ansible", "thing-a", "-m", "iotops.tunnel.tunnel", "-a", '{"tags": {"site": "south"}}', "--diff"
    )

    assert '-        "site": "north"' in done.stdout
    assert '+        "site": "south"' in done.stdout
    tags = {tag["key"]: tag["value"] for tag in described(service, outcome)["tags"]}
    assert tags == {"site": "south", "iotops:managed-by": "iotops.tunnel", "iotops:owner": OWNER}


def test_a_hub_without_the_token_gets_a_new_one(controller: Controller) -> None:
    first = controller.tunnel("thing-a")
    controller.hub("stop")
    (controller.home / "hub" / "tunnels.jsonl").unlink()

    assert controller.tunnel("thing-a", "--check").word == "CHANGED"
    again = controller.tunnel("thing-a")
    assert again.word == "CHANGED"
    assert again.result["tunnel_id"] == first.result["tunnel_id"]
    assert controller.hub_status()["tunnels"][0]["state"] == "connected"


@pytest.mark.parametrize(
    ("end", "ends"), [("source", {"source"}), ("destination", {"destination"}), ("all", {"source", "destination"})]
)
def test_rotates_the_tokens_of_an_end(controller: Controller, end: str, ends: set[str]) -> None:
    first = controller.tunnel("thing-a", return_tokens=True)
    rotated = controller.tunnel("thing-a", rotate=end, return_tokens=True)

    assert rotated.word == "CHANGED", rotated.message
    assert set(rotated.result["tokens"]) == ends
    assert all(rotated.result["tokens"][each] != first.result["tokens"][each] for each in ends)
    assert controller.hub_status()["tunnels"][0]["state"] == "connected"


def test_returns_tokens_only_on_request(controller: Controller) -> None:
    assert "tokens" not in controller.tunnel("thing-a").result


def test_absent_closes_and_is_idempotent(controller: Controller, service: TunnelingService) -> None:
    controller.tunnel("thing-a")
    controller.tunnel("thing-a", services=["HTTP1"])

    closed = controller.tunnel("thing-a", state="absent")
    assert closed.word == "CHANGED"
    assert len(closed.result["closed"]) == 2
    assert open_tunnels(service, "thing-a") == []
    assert controller.hub_status()["tunnels"] == []
    assert controller.tunnel("thing-a", state="absent").word == "SUCCESS"
    for tunnel_id in (closed.result["closed"][0], "no-such-tunnel"):
        assert controller.tunnel("thing-a", state="absent", tunnel_id=tunnel_id).word == "SUCCESS"


def test_a_closed_tunnel_cannot_be_requested_as_present(controller: Controller) -> None:
    tunnel_id = controller.tunnel("thing-a").result["tunnel_id"]
    controller.tunnel("thing-a", state="absent")

    outcome = controller.tunnel("thing-a", tunnel_id=tunnel_id)
    assert outcome.word == "FAILED"
    assert "Leave out tunnel_id to open another." in outcome.message


def test_a_timeout_names_the_thing_and_keeps_the_tunnel(controller: Controller) -> None:
    outcome = controller.tunnel("thing-a", wait_for_destination=1)

    assert outcome.word == "FAILED"
    assert outcome.message.startswith("thing-a did not connect to tunnel")
    assert controller.hub_status()["tunnels"][0]["tunnel_id"] == outcome.result["tunnel_id"]


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ({"access_key": "AKIAWRONG", "secret_key": "wrong"}, {}, "are not accepted (UnrecognizedClientException)"),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are no AWS credentials: set"),
        ({"endpoint_url": "https://127.0.0.1:9"}, {}, "https://127.0.0.1:9 cannot be reached (Connection refused)"),
        ({"profile": "nobody"}, {}, "there is no profile nobody in /dev/null"),
        ({"region": "Not A Region"}, {}, "'Not A Region' is not the name of an AWS region"),
        ({"region": "eu-west-1"}, {}, "wrong region (Credential should be scoped to a valid region: 'us-east-1')"),
        ({"aws_ca_bundle": "/etc/ssl/certs/ca-certificates.crt"}, {}, "is not trusted"),
        ({"lifetime": 721}, {}, "A lifetime of 721 minutes is not possible."),
        ({"thing_name": "-oProxyCommand=x"}, {}, "cannot be the name of a thing"),
        ({"services": ["SSH 1"]}, {}, "cannot be the name of a service"),
        ({"access_key": "AKIAONLY"}, {}, "parameters are required together: access_key, secret_key"),
    ],
)
def test_bad_input_fails_with_one_sentence(
    machine: Controller, arguments: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", **environment}
    outcome = machine.tunnel("thing-a", env=environment, **arguments)

    assert outcome.word == "FAILED"
    assert words in outcome.message
    assert "Traceback" not in str(outcome.result)


def paid_for(service: TunnelingService) -> int:
    """How many tunnels were opened, according to the service's audit log."""
    lines = map(json.loads, (service.state_dir / "audit.log").read_text().splitlines())
    return sum(line.get("operation") == "OpenTunnel" and line["outcome"] == "ok" for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"thing_name": "pump-nroth", "unregistered": False},
            "the registry has no thing pump-nroth: did you mean pump-",
        ),
        ({"tunnel_endpoint": "127.0.0.1:9"}, "127.0.0.1:9"),
        ({"tunnel_endpoint": "127.0.0.1:port"}, "127.0.0.1:port"),
        ({"tunnel_capath": "/etc/ssl/certs/ca-certificates.crt"}, "certificate"),
        ({"services": ["SSH1", "SSH1"]}, "a tunnel carries at least one service, and each once"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_no_tunnel_is_paid_for_that_could_not_work(
    machine: Controller, service: TunnelingService, arguments: dict[str, Any], words: str, check: bool
) -> None:
    store = Store(service.state_dir / "service.db")
    store.put_thing("pump-north", None, {})
    store.close()
    before = paid_for(service)
    outcome = machine.tunnel("thing-a", *["--check"] * check, **arguments)

    assert outcome.word == "FAILED"
    assert outcome.message.startswith(f"Could not open a tunnel to {arguments.get('thing_name', 'thing-a')}: ")
    assert words in outcome.message
    assert paid_for(service) == before
    assert "tunnel_id" not in outcome.result


BOB = {"owner": "bob"}


def test_each_owner_has_separate_tunnels(controller: Controller, service: TunnelingService) -> None:
    alices = controller.tunnel("thing-a").result["tunnel_id"]
    bobs = controller.tunnel("thing-a", env={"IOTOPS_TUNNEL_OWNER": "bob"})
    assert bobs.word == "CHANGED"
    assert bobs.result["tags"]["iotops:owner"] == "bob"
    assert controller.tunnel("thing-a", **BOB).result["tunnel_id"] == bobs.result["tunnel_id"] != alices

    assert controller.tunnel("thing-a", state="absent", **BOB).result["closed"] == [bobs.result["tunnel_id"]]
    assert open_tunnels(service, "thing-a") == [alices]
    refused = controller.tunnel("thing-a", tunnel_id=alices, rotate="source", **BOB)
    assert refused.word == "FAILED"
    assert f"Tunnel {alices} belongs to {OWNER}, not to bob. " in refused.message
    assert controller.tunnel("thing-a", state="absent", tunnel_id=alices, **BOB).result["closed"] == [alices]


def test_the_owner_may_be_a_variable_of_the_host(controller: Controller) -> None:
    outcome = controller.tunnel("thing-a", "-e", "iotops_tunnel_owner=caf\u00e9;7", owner="")
    assert outcome.result["tags"]["iotops:owner"] == valid_owner("caf\u00e9;7")


def test_with_a_delegate_the_task_is_about_its_own_host(
    controller: Controller, service: TunnelingService, tmp_path: Path
) -> None:
    playbook = tmp_path / "play.yml"
    playbook.write_text("""
- hosts: thing-a
  gather_facts: false
  tasks:
    - iotops.tunnel.tunnel:
      delegate_to: alias
    - ansible.builtin.debug:
        msg: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1', open='never', timeout=1) }}"
      delegate_to: alias
""")
    done = controller.playbook(playbook)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [len(open_tunnels(service, thing)) for thing in ("thing-a", "thing-b")] == [1, 0]


def test_a_tunnel_is_taken_over_only_on_request(controller: Controller, service: TunnelingService) -> None:
    alices = controller.tunnel("thing-a").result["tunnel_id"]
    assert controller.tunnel("thing-a", "--check", take_over=True, **BOB).word == "CHANGED"

    taken = controller.tunnel("thing-a", take_over=True, return_tokens=True, tags={"site": "north"}, **BOB)
    assert taken.word == "CHANGED"
    assert taken.result["tunnel_id"] == alices
    assert set(taken.result["tokens"]) == {"source"}
    tags = {tag["key"]: tag["value"] for tag in described(service, taken)["tags"]}
    assert tags == {"site": "north", "iotops:managed-by": "iotops.tunnel", "iotops:owner": "bob"}
    assert controller.hub_status()["tunnels"][0]["state"] == "connected"
    assert controller.tunnel("thing-a", take_over=True, **BOB).word == "SUCCESS"

    other = controller.tunnel("thing-a").result["tunnel_id"]
    closed = controller.tunnel("thing-a", state="absent", take_over=True).result["closed"]
    assert sorted(closed) == sorted([alices, other])


NOBODY = dict.fromkeys(
    (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL_IOTSECURETUNNELING",
        "AWS_ENDPOINT_URL_IOT",
        "AWS_CA_BUNDLE",
        "AWSIOT_TUNNEL_ENDPOINT",
        "AWSIOT_TUNNEL_CAPATH",
    ),
    "",
)


def options_of(service: TunnelingService) -> dict[str, str]:
    """The options with which a service is reached."""
    environment = service.environment
    return {
        "access_key": environment["AWS_ACCESS_KEY_ID"],
        "secret_key": environment["AWS_SECRET_ACCESS_KEY"],
        "region": environment["AWS_REGION"],
        "endpoint_url": environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"],
        "aws_ca_bundle": environment["AWS_CA_BUNDLE"],
        "tunnel_endpoint": environment["AWSIOT_TUNNEL_ENDPOINT"],
        "tunnel_capath": environment["AWSIOT_TUNNEL_CAPATH"],
    }


def test_host_variables_determine_the_account(service: TunnelingService) -> None:
    variables = {f"iotops_tunnel_{name}": value for name, value in options_of(service).items()}
    key = variables["iotops_tunnel_secret_key"]
    variables |= {"iotops_tunnel_secret_key": "{{ lookup('env', 'THE_KEY') }}", "iotops_tunnel_unregistered": "yes"}
    hosts = {"here": variables, "there": {**variables, "iotops_tunnel_region": "eu-west-1"}}
    with Controller({**NOBODY, "THE_KEY": key}, hosts) as machine:
        outcomes = machine.module("iotops.tunnel.tunnel", env={"AWS_REGION": "eu-central-1"})
        assert outcomes["here"].word == "CHANGED", outcomes["here"].message
        assert outcomes["here"].result["region"] == "us-east-1"
        assert outcomes["here"].result["account"].endswith(f"/us-east-1 at {urlsplit(service.api).netloc}")
        assert "wrong region" in outcomes["there"].message
        assert machine.tunnel("there", region="us-east-1").word == "CHANGED"
        info = machine.module("iotops.tunnel.tunnel_info")
        assert info["here"].result["tunnels"][0]["tunnel_id"] == outcomes["here"].result["tunnel_id"]
        assert "wrong region" in info["there"].message
        machine.tunnel("here", state="absent")
        machine.tunnel("there", region="us-east-1", state="absent")

        wrong = machine.tunnel("here", "-e", "iotops_tunnel_validate_certs=maybe")
        assert "The variables iotops_tunnel_* of here: " in wrong.message
        assert "validate_certs" in wrong.message


def test_ansible_cfg_is_used_if_nothing_else_is_set(service: TunnelingService, tmp_path: Path) -> None:
    settings = {**options_of(service), "owner": "ini", "unregistered": "true"}
    config = tmp_path / "ansible.cfg"
    config.write_text("[iotops_tunnel]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    with Controller(NOBODY, {"thing-a": {}}) as machine:
        outcome = machine.tunnel("thing-a", env={"ANSIBLE_CONFIG": str(config)})
        assert outcome.word == "CHANGED", outcome.message
        assert outcome.result["tags"]["iotops:owner"] == "ini"
        refused = machine.tunnel("thing-a", env={"ANSIBLE_CONFIG": str(config), "AWS_REGION": "eu-west-1"})
        assert "wrong region" in refused.message
        machine.tunnel("thing-a", env={"ANSIBLE_CONFIG": str(config)}, state="absent")
