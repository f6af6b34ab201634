# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.health and the collection's playbooks, against real HTTP servers behind real tunnels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from peers.device import HttpServer
from peers.fleet import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("device-1", "device-2") as running:
        yield running


def row_of(output: str, thing: str) -> str:
    """A thing's row in the table."""
    (row,) = [line for line in output.splitlines() if line.strip().startswith(f'"{thing} ')]
    return row


def test_returns_status_latency_and_the_state_of_both_ends(fleet: Fleet) -> None:
    outcomes = fleet.controller.module("iotops.tunnel.health", return_content=True)

    for thing, outcome in outcomes.items():
        assert outcome.word == "SUCCESS", outcome.message
        assert outcome.result["thing_name"] == thing
        assert outcome.result["status"] == 200
        assert outcome.result["content"] == f"{thing} is well\n"
        assert outcome.result["latency_ms"] > 0
        assert outcome.result["round_trip_ms"] is None or outcome.result["round_trip_ms"] > 0
        assert (outcome.result["source"], outcome.result["destination"]) == ("connected", "connected")


def test_returns_no_content_unless_asked(fleet: Fleet) -> None:
    assert "content" not in fleet.controller.module("iotops.tunnel.health", "device-1")["device-1"].result


def test_no_http_proxy_is_used(fleet: Fleet) -> None:
    environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    outcome = fleet.controller.module("iotops.tunnel.health", "device-1", env=environment)["device-1"]
    assert outcome.word == "SUCCESS", outcome.message


def test_an_unexpected_status_is_a_failure(fleet: Fleet) -> None:
    outcome = fleet.controller.module("iotops.tunnel.health", "device-1", path="/missing")["device-1"]
    assert outcome.word == "FAILED"
    assert outcome.message == "device-1 answered /missing with status 404, not 200."
    expected = fleet.controller.module("iotops.tunnel.health", "device-1", path="/missing", status_code=[200, 404])
    assert expected["device-1"].word == "SUCCESS"


def test_a_thing_without_a_tunnel_is_a_failure(fleet: Fleet) -> None:
    outcome = fleet.controller.module("iotops.tunnel.health", "device-1", thing_name="nobody")["device-1"]
    assert outcome.word == "FAILED"
    assert "there is no tunnel to nobody" in outcome.message


def test_a_service_that_is_not_offered_is_a_failure(fleet: Fleet) -> None:
    outcome = fleet.controller.module("iotops.tunnel.health", "device-1", service="HTTP2")["device-1"]
    assert outcome.word == "FAILED"
    assert "does not offer HTTP2" in outcome.message


def test_a_device_without_a_web_server_is_reported_as_refusing_http1(fleet: Fleet) -> None:
    device = fleet.devices["device-1"]
    device.http.stop()
    try:
        outcome = fleet.controller.module("iotops.tunnel.health", "device-1")["device-1"]
    finally:
        device.http = HttpServer(device.folder, "device-1 is well\n")
        fleet.connect_anew("device-1")
    assert outcome.word == "FAILED"
    assert "device-1 refused HTTP1" in outcome.message


def test_ssh_checks_the_health_once_per_connection(fleet: Fleet) -> None:
    fleet.controller.disconnect()
    check = ("-e", "iotops_tunnel_health_check=true", "-e", "iotops_tunnel_health_path=/?before-ssh")
    for _ in range(2):
        outcome = fleet.controller.module("ansible.builtin.ping", "device-1", *check)["device-1"]
        assert outcome.word == "SUCCESS", outcome.message
    assert fleet.devices["device-1"].http.process.output().count("GET /?before-ssh") == 1


def test_neither_health_nor_ssh_needs_a_port(fleet: Fleet) -> None:
    check = ("-e", "iotops_tunnel_health_check=true", "-e", "iotops_tunnel_ports=HTTP1=off")
    fleet.controller.disconnect()
    assert fleet.controller.module("ansible.builtin.ping", "device-2", *check)["device-2"].word == "SUCCESS"
    assert fleet.tunnel("device-2")["services"]["HTTP1"]["port"] is None
    health = fleet.controller.module("iotops.tunnel.health", "device-2")["device-2"]
    assert (health.word, health.result.get("url")) == ("SUCCESS", None)
    anywhere = fleet.controller.tunnel("device-2", ports=["HTTP1=any"])
    assert anywhere.word == "CHANGED"
    assert anywhere.result["ports"] == {"HTTP1": fleet.tunnel("device-2")["services"]["HTTP1"]["port"]}
    assert anywhere.result["urls"] == {"HTTP1": f"http://device-2.localhost:{anywhere.result['ports']['HTTP1']}/"}
    assert fleet.controller.tunnel("device-2", ports=["HTTP1=any"]).word == "SUCCESS"


def test_any_host_is_set_by_a_variable_and_reset_by_the_module(fleet: Fleet) -> None:
    fleet.controller.module("ansible.builtin.ping", "device-2", "-e", "iotops_tunnel_ports=HTTP1=any,any-host")
    assert fleet.tunnel("device-2")["services"]["HTTP1"]["any_host"] is True
    assert "(any host)" in fleet.controller.hub("status")
    assert fleet.controller.tunnel("device-2", ports=["HTTP1=any,any-host"]).word == "SUCCESS"
    assert fleet.controller.tunnel("device-2", ports=["HTTP1=any"]).word == "CHANGED"
    assert fleet.tunnel("device-2")["services"]["HTTP1"]["any_host"] is False


def test_the_playbooks_ping_and_show_a_table(fleet: Fleet) -> None:
    ping = fleet.controller.playbook("iotops.tunnel.ping")
    assert ping.returncode == 0, ping.stdout + ping.stderr

    health = fleet.controller.playbook("iotops.tunnel.health")
    assert health.returncode == 0, health.stdout + health.stderr
    for thing in fleet.devices:
        assert row_of(health.stdout, thing).split()[1:4] == ["connected", "connected", "200"]


def test_the_health_playbook_names_unhealthy_devices_and_fails(fleet: Fleet) -> None:
    fleet.devices["device-2"].stop_proxy()
    try:
        health = fleet.controller.playbook("iotops.tunnel.health")
    finally:
        fleet.connect_anew("device-2")

    assert health.returncode != 0
    assert "device-2 is not connected to its tunnel" in row_of(health.stdout, "device-2")
    assert "failed=0" in next(line for line in health.stdout.splitlines() if line.startswith("device-1 "))


def test_the_open_playbook_reuses_open_tunnels(fleet: Fleet) -> None:
    again = fleet.controller.playbook("iotops.tunnel.open", "-e", "iotops_tunnel_wait=10")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout
    assert "changed=1" not in again.stdout


def test_the_close_playbook_closes_all_tunnels() -> None:
    with Fleet("device-1", "device-2") as fleet:
        close = fleet.controller.playbook("iotops.tunnel.close")
        assert close.returncode == 0, close.stdout + close.stderr
        tunnels = fleet.service.boto3_client().list_tunnels()["tunnelSummaries"]
        assert {tunnel["status"] for tunnel in tunnels} == {"CLOSED"}
        assert fleet.controller.hub_status()["tunnels"] == []
