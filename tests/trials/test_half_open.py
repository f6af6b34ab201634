# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer vanishes silently (its packets are dropped in both directions), on each leg: when does each end notice,
and how soon does everything work again?

The leg to a page's client is not tested: it is on the hub's own machine, where no packets are lost.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from peers.agent import AgentProcess
from peers.device import Sshd, make_ssh_key
from peers.namespace import NetworkNamespace, why_impossible
from peers.process import Process, wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

pytestmark = [
    pytest.mark.skipif(bool(why_impossible()), reason=why_impossible()),
    pytest.mark.timeout(500),
]

NOTICED_WITHIN = 150.0
BACK_WITHIN = 40.0


class Legs:
    """A device in a namespace, an operator in another, and an SSH server that the device reaches over its network."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.device = stack.enter_context(NetworkNamespace())
        self.operator = stack.enter_context(NetworkNamespace())
        self.service = stack.enter_context(TunnelingService("--host", self.device.here, "--mqtt-port", "0", "-v", "4"))
        subprocess.run(
            ["ip", "-n", self.operator.name, "route", "add", "default", "via", self.operator.here], check=True
        )
        self.sshd = Sshd(folder / "sshd", make_ssh_key(folder / "key"), host=self.device.here)
        stack.callback(self.sshd.stop)
        services = f"SSH1={self.device.here}:{self.sshd.port}"
        self.service.add_thing("pump", folder / "pump", "--services", services)
        configuration = folder / "pump" / "agent.yml"
        configuration.write_text(f"{configuration.read_text()}\nallow: ['{self.device.here}:{self.sshd.port}']\n")
        self.agent = stack.enter_context(AgentProcess(folder / "pump", enter=self.device.enter))
        environment = {**os.environ, **self.service.environment, "IOTOPS_TUNNEL_DIR": str(folder / "hub")}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        Path(folder / "hub").mkdir(mode=0o700)
        command = [*self.operator.enter, sys.executable, "-m", "tunnelproxy", "hub", "run", "--idle-seconds", "600"]
        self.hub = stack.enter_context(Process(command, folder / "hub.log", environment))
        self.hub.wait_for_output("ready")
        self.tunnel_id = client.ensure("pump", open_policy="reuse", services=("SSH1",))["tunnel_id"]

    @property
    def data_port(self) -> int:
        return int(self.service.data.rpartition(":")[2])

    @property
    def broker_port(self) -> int:
        return int(self.service.mqtt.rpartition(":")[2])

    def answers(self) -> bool:
        """Whether the device's SSH server answers."""
        with suppress(client.HubError):
            stream = client.open_stream("pump", "SSH1", timeout=2)
            said = os.read(stream, 4)
            os.close(stream)
            return said == b"SSH-"
        return False

    def state(self, end: str) -> str:
        """The state of an end of the tunnel, according to the service."""
        tunnel = self.service.boto3_client().describe_tunnel(tunnelId=self.tunnel_id)["tunnel"]
        return str(tunnel[f"{end}ConnectionState"]["status"])

    def noticed(self, what: str, condition: Callable[[], object]) -> float:
        """Wait until one side notices, and print when."""
        wait_for(condition, what, NOTICED_WITHIN)
        seconds = time.monotonic() - self.since
        print(f"{what}: after {seconds:.0f} s")
        return seconds

    def drop(self, place: NetworkNamespace, port: int) -> None:
        place.drop_packets(port)
        self.since = time.monotonic()

    def back(self, place: NetworkNamespace, condition: Callable[[], object]) -> None:
        place.pass_packets()
        self.since = time.monotonic()
        wait_for(condition, "everything works again", BACK_WITHIN)
        print(f"works again: {time.monotonic() - self.since:.1f} s after the packets pass")


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Legs]:
    with ExitStack() as stack:
        running = Legs(stack, tmp_path_factory.mktemp("legs"))
        wait_for(running.answers, "the device answers")
        yield running


def descriptors(pid: int) -> int:
    return psutil.Process(pid).num_fds()


def established(port: int) -> int:
    """How many connections of a port of this machine the kernel has."""
    listed = subprocess.run(
        ["ss", "-Htn", "state", "established", f"( sport = :{port} )"], capture_output=True, text=True, check=True
    )
    return len(listed.stdout.splitlines())


@pytest.mark.parametrize("asked", [False, True], ids=["idle", "asked for connections"])
def test_service_to_agent(legs: Legs, asked: bool) -> None:
    """If connections are requested, the service has sent data that is not acknowledged."""
    before, at_the_service = legs.agent.count("trying again"), descriptors(legs.service.pid)
    legs.drop(legs.device, legs.data_port)

    def look(condition: Callable[[], object]) -> Callable[[], object]:
        return lambda: (asked and legs.answers(), condition())[1]

    legs.noticed(f"the agent (asked: {asked})", look(lambda: legs.agent.count("trying again") > before))
    legs.noticed(f"the service (asked: {asked})", look(lambda: legs.state("destination") == "DISCONNECTED"))
    with pytest.raises(client.HubError) as caught:
        client.open_stream("pump", "SSH1", timeout=2)
    print(f"the operator reads: {caught.value}")
    legs.back(legs.device, legs.answers)
    wait_for(lambda: descriptors(legs.service.pid) <= at_the_service + 1, "the service has closed the old connection")


def test_operator_to_service(legs: Legs) -> None:
    assert legs.answers()
    legs.drop(legs.operator, legs.data_port)
    legs.noticed("the hub", lambda: legs.hub.output().count("trying again"))
    legs.noticed("the service", lambda: legs.state("source") == "DISCONNECTED")
    with pytest.raises(client.HubError) as caught:
        client.open_stream("pump", "SSH1", timeout=2)
    print(f"the operator reads: {caught.value}")
    legs.back(legs.operator, legs.answers)


def test_agent_to_broker(legs: Legs) -> None:
    before = legs.agent.count("waiting for notifications")
    assert established(legs.broker_port) == 1
    legs.drop(legs.device, legs.broker_port)
    legs.noticed("the agent", lambda: re.search("MQTT broker .* trying again", legs.agent.output()))
    legs.noticed("the broker", lambda: established(legs.broker_port) == 0)
    assert legs.answers(), "its tunnel is not affected"
    legs.back(legs.device, lambda: legs.agent.count("waiting for notifications") > before)


@pytest.mark.parametrize("typed", [False, True], ids=["idle", "with data on its way"])
def test_agent_to_ssh_server(legs: Legs, typed: bool) -> None:
    stream = client.open_stream("pump", "SSH1")
    opened = descriptors(legs.agent.pid)
    legs.drop(legs.device, legs.sshd.port)
    if typed:
        os.write(stream, b"SSH-2.0-nobody\r\n")
    legs.noticed(f"the agent (typed: {typed})", lambda: descriptors(legs.agent.pid) < opened)
    legs.noticed("the operator", lambda: _has_ended(stream))
    os.close(stream)
    legs.back(legs.device, legs.answers)


def _has_ended(stream: int) -> bool:
    os.set_blocking(stream, False)
    try:
        while os.read(stream, 4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
