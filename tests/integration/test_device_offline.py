# SPDX-License-Identifier: GPL-3.0-or-later
"""A device without a network, for seconds, or for as many as ``TEST_OFFLINE`` says; ``make test-fleet`` takes 60.

All packets in and out of its namespace are dropped, without an error to either side.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from peers.agent import AgentProcess
from peers.device import Sshd, make_ssh_key
from peers.namespace import NetworkNamespace, why_impossible
from peers.process import wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())

OFFLINE_SECONDS = float(os.environ.get("TEST_OFFLINE", "2"))
BACK_WITHIN = 30.0


@pytest.fixture(scope="module")
def place() -> Iterator[NetworkNamespace]:
    with NetworkNamespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def service(place: NetworkNamespace) -> Iterator[TunnelingService]:
    with TunnelingService("--host", place.here, "--mqtt-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def agent(
    place: NetworkNamespace, service: TunnelingService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    """The agent of the thing ``pump``, and the sshd behind it, both in the namespace."""
    folder = tmp_path_factory.mktemp("device")
    sshd = Sshd(folder / "sshd", make_ssh_key(folder / "key"), enter=place.enter)
    service.add_thing("pump", folder / "pump", "--services", f"SSH1={sshd.port},HTTP1={sshd.port}")
    with AgentProcess(folder / "pump", enter=place.enter) as running:
        yield running
    sshd.stop()


@pytest.fixture(scope="module", autouse=True)
def _controller(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in service.environment.items():
            patch.setenv(name, value)
        patch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path_factory.mktemp("hub")))
        yield
        client.stop()


def answers() -> bool:
    """Whether the device's sshd answers through its tunnel."""
    with suppress(client.HubError), socket.socket(fileno=client.open_stream("pump", "SSH1", timeout=1)) as stream:
        return stream.recv(8) == b"SSH-2.0-"
    return False


def offline(place: NetworkNamespace) -> None:
    """Disconnect the network for some time."""
    place.drop_packets()
    # This is not a wait for a condition: the time without a network is what is tested.
    time.sleep(OFFLINE_SECONDS)
    place.pass_packets()


def test_the_tunnel_recovers_without_help(
    place: NetworkNamespace, service: TunnelingService, agent: AgentProcess
) -> None:
    tunnel_id = client.ensure("pump", open_policy="reuse")["tunnel_id"]
    assert answers()

    offline(place)
    began = time.monotonic()
    wait_for(answers, "the device answers", BACK_WITHIN)
    print(f"reachable {time.monotonic() - began:.1f} s after {OFFLINE_SECONDS:.0f} s without network")
    assert client.ensure("pump", open_policy="reuse")["tunnel_id"] == tunnel_id


def test_it_joins_a_tunnel_that_is_opened_after_the_outage(
    place: NetworkNamespace, service: TunnelingService, agent: AgentProcess
) -> None:
    # An earlier tunnel, so that the hub's start is not part of the measured time.
    closed = client.ensure("pump", open_policy="reuse")["tunnel_id"]
    service.boto3_client().close_tunnel(tunnelId=closed)
    wait_for(lambda: agent.count("ended: Tunnel closed"), "the agent has left it")

    offline(place)
    began = time.monotonic()
    assert client.ensure("pump", open_policy="reuse", wait=BACK_WITHIN)["tunnel_id"] != closed
    assert answers()
    print(f"a new tunnel joined {time.monotonic() - began:.1f} s after {OFFLINE_SECONDS:.0f} s without network")
