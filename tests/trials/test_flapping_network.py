# SPDX-License-Identifier: GPL-3.0-or-later
"""A device with a flapping network, for ``TEST_FLAPPING`` seconds, by default 120."""

from __future__ import annotations

import os
import re
import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from peers.agent import AgentProcess
from peers.collection import Controller
from peers.device import Sshd, make_ssh_key
from peers.namespace import NetworkNamespace, why_impossible
from peers.process import Process, wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

SECONDS = float(os.environ.get("TEST_FLAPPING", "120"))
BACK_WITHIN = 15.0

pytestmark = [
    pytest.mark.skipif(bool(why_impossible()), reason=why_impossible()),
    pytest.mark.timeout(300 + 2 * SECONDS),
]


@dataclass
class Scenario:
    """A device in its own network, and an operator."""

    namespace: NetworkNamespace
    service: TunnelingService
    agent: AgentProcess
    controller: Controller
    key: Path

    def processes(self) -> dict[str, int]:
        return {"hub": self.controller.hub_status()["pid"], "service": self.service.pid, "agent": self.agent.pid}

    def descriptors(self) -> dict[str, int]:
        return {name: psutil.Process(pid).num_fds() for name, pid in self.processes().items()}

    def links(self) -> list[str]:
        """Each link that the agent has made."""
        return re.findall("connected to .* .channel-id", self.agent.output())

    def ssh(self, command: str) -> list[str | Path]:
        """An ssh command line that runs a command on the device; output before a disconnection is kept."""
        (row,) = self.controller.hub_status()["tunnels"]
        connector = shlex.join(client.connector_command("pump", "SSH1", account=row["account"]))
        known = f"UserKnownHostsFile={self.controller.known_hosts}"
        options = (f"ProxyCommand={connector}", "ProxyUseFdpass=yes", known, "ServerAliveInterval=15")
        return ["ssh", *(word for option in options for word in ("-o", option)), "-i", self.key, "root@pump", command]

    def run(self, command: str) -> tuple[bool, float, str]:
        """Run a command on a separate connection; return whether it succeeded, its duration, and Ansible's output."""
        began = time.monotonic()
        done = self.controller.run("ansible", "pump", "-m", "raw", "-a", command, ANSIBLE_SSH_ARGS="-C")
        return done.returncode == 0, time.monotonic() - began, done.stdout


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("device")
    with ExitStack() as stack:
        namespace = stack.enter_context(NetworkNamespace())
        service = stack.enter_context(TunnelingService("--host", namespace.here, "--mqtt-port", "0"))
        key = make_ssh_key(folder / "key")
        sshd = Sshd(folder / "sshd", key, enter=namespace.enter)
        stack.callback(sshd.stop)
        service.add_thing("pump", folder / "pump", "--services", f"SSH1={sshd.port},HTTP1={sshd.port}")
        agent = stack.enter_context(AgentProcess(folder / "pump", enter=namespace.enter))
        variables = {"ansible_user": "root", "ansible_ssh_private_key_file": str(key)}
        controller = stack.enter_context(Controller(service.environment, {"pump": {}}, variables))
        controller.known_hosts.write_text(sshd.host_key_line("pump"))
        yield Scenario(namespace, service, agent, controller, key)


@contextmanager
def flapping(namespace: NetworkNamespace, away: float, there: float) -> Iterator[None]:
    """Drop all packets for ``away`` seconds, pass them for ``there``, and so on."""
    over = threading.Event()

    def flap() -> None:
        while not over.is_set():
            namespace.drop_packets()
            over.wait(away)
            namespace.pass_packets()
            over.wait(there)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(flap)
        try:
            yield
        finally:
            over.set()
            done.result()


@pytest.mark.parametrize("seconds", [2.5, 5.0])
def test_a_flapping_network(scenario: Scenario, seconds: float, tmp_path: Path) -> None:
    assert scenario.run("true")[0]
    before, links = scenario.descriptors(), len(scenario.links())
    # A line every 0.2 s, from before the first flap until after the last.
    session = scenario.ssh(f"for n in $(seq {int((SECONDS + 10) * 5)}); do echo line $n; sleep 0.2; done")
    with Process(session, tmp_path / "session.log", scenario.controller.environment) as long:
        long.wait_for_output("line 1\n")
        results = []
        with flapping(scenario.namespace, seconds, seconds):
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                results.append(scenario.run("echo well"))
        began = time.monotonic()
        wait_for(lambda: scenario.run("true")[0], "a new command succeeds", BACK_WITHIN)
        back = time.monotonic() - began
        survived = long.wait(60) == 0
    for log in (scenario.agent.output(), (scenario.controller.home / "hub" / "hub.log").read_text()):
        print(*re.findall(".*(?:trying again|broke).*", log), sep="\n")
    good = sorted(took for succeeded, took, _ in results if succeeded)
    assert good, results
    lines = [line for line in long.output().splitlines() if line.startswith("line ")]
    print(
        f"away and there for {seconds} s each: {len(good)} of {len(results)} commands succeed, in "
        f"{good[len(good) // 2]:.1f} s (median), {good[-1]:.1f} s (longest); "
        f"the agent connected {len(scenario.links()) - links} times; "
        f"{back:.1f} s after the last flap a command had succeeded; the long session "
        f"{'survives' if survived else 'breaks'}, after {len(lines)} lines"
    )
    assert lines == [f"line {number + 1}" for number in range(len(lines))], "nothing is lost within a session"
    for succeeded, _, words in results:
        if not succeeded:
            print(words)
            assert "UNREACHABLE" in words
    with suppress(AssertionError):
        wait_for(lambda: scenario.descriptors() == before, "descriptors as before", 75)
    after = scenario.descriptors()
    print(f"descriptors before: {before}, after: {after}")
    assert all(after[name] <= before[name] + 2 for name in before)
