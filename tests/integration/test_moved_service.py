# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunneling service that moves to another port, or gets another authority: what still works, and the messages.

Its things and tunnels remain, because they are in its state directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from peers.agent import AgentProcess
from peers.device import Sshd, make_ssh_key
from peers.process import free_port, wait_for
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from tunnelproxy.hub import client


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService("--mqtt-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def agent(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("device")
    with ExitStack() as stack:
        sshd = Sshd(folder / "sshd", make_ssh_key(folder / "key"))
        stack.callback(sshd.stop)
        service.add_thing("pump", folder / "pump", "--services", f"SSH1={sshd.port}")
        with (folder / "pump" / "agent.yml").open("a") as configuration:
            configuration.write("state_dir: state\n")
        yield stack.enter_context(AgentProcess(folder / "pump"))


@pytest.fixture(scope="module", autouse=True)
def controller(
    service: TunnelingService, agent: AgentProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pytest.MonkeyPatch]:
    """The operator's environment, as ``service env`` first printed it."""
    with pytest.MonkeyPatch.context() as patch:
        learn(service, patch)
        patch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path_factory.mktemp("hub")))
        yield patch
        client.stop()


def learn(service: TunnelingService, patch: pytest.MonkeyPatch) -> None:
    """Do what the operator does: ``eval "$(tunnelproxy service env)"``."""
    for name, value in service.read_environment().items():
        patch.setenv(name, value)


def ensure() -> str:
    tunnel_id: str = client.ensure("pump", open_policy="reuse", services=("SSH1",))["tunnel_id"]
    return tunnel_id


def answers() -> bool:
    try:
        stream = client.open_stream("pump", "SSH1", timeout=5)
    except client.HubError:
        return False
    said = os.read(stream, 4)
    os.close(stream)
    return said == b"SSH-"


def test_hub_and_agent_must_be_configured_for_another_data_port(
    service: TunnelingService, agent: AgentProcess, controller: pytest.MonkeyPatch
) -> None:
    tunnel_id, before = ensure(), service.data
    service.stop()
    service.start("--data-port", str(free_port()))

    with pytest.raises(client.HubError) as caught:
        client.open_stream("pump", "SSH1")
    assert_documented("Tunnel not linked", str(caught.value))
    assert f"cannot reach {before}" in str(caught.value)
    wait_for(lambda: agent.count(f"cannot reach {before}: connection refused"), "the agent logs what it cannot reach")

    learn(service, controller)
    assert ensure() == tunnel_id
    assert not answers()
    configuration = agent.folder / "agent.yml"
    configuration.write_text(configuration.read_text().replace(before, service.data))
    agent.stop()
    agent.start()
    wait_for(answers, "the device answers in the same tunnel")
    assert ensure() == tunnel_id


def test_another_authority_is_trusted_by_the_hub_and_by_a_reconfigured_agent(
    service: TunnelingService, agent: AgentProcess, controller: pytest.MonkeyPatch
) -> None:
    tunnel_id = ensure()
    wait_for(answers, "the device answers")
    service.stop()
    for folder in ("keys", "ca"):
        shutil.rmtree(service.state_dir / folder)
    service.start()

    learn(service, controller)
    wait_for(lambda: agent.count("certificate"), "the agent logs that it does not trust the certificate")
    shutil.copy(service.ca_pem, agent.folder / "ca.pem")
    agent.stop()
    agent.start()
    wait_for(answers, "the device answers")
    assert ensure() == tunnel_id


def test_the_operator_must_be_told_of_another_control_port(
    service: TunnelingService, controller: pytest.MonkeyPatch
) -> None:
    """Held tunnels continue; for the hub it is another service, and it opens a tunnel there."""
    wait_for(answers, "the device answers")
    service.stop()
    before = service.api
    service.start("--api-port", str(free_port()))
    wait_for(answers, "held tunnels continue")
    with pytest.raises(client.HubError) as caught:
        client.ensure("valve", open_policy="reuse", services=("SSH1",))
    assert_documented("Control API not reachable", str(caught.value))
    assert before in str(caught.value)
    learn(service, controller)
    ensure()
    assert answers()
