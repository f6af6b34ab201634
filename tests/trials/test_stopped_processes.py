# SPDX-License-Identifier: GPL-3.0-or-later
"""Each process is stopped in turn (SIGSTOP), for ``TEST_STOPPED`` seconds, by default 90.

A running task continues or fails; a task that starts meanwhile gets an error message within bounded time; and once the
process continues, so does everything else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest

from peers.fleet import AgentFleet
from peers.process import stopped, wait_for

SECONDS = float(os.environ.get("TEST_STOPPED", "90"))
ANSWER_WITHIN = 90.0
SHARED_WITHIN = 120.0
"""ssh closes a connection without an answer after a minute, and Ansible then opens another."""

BACK_WITHIN = 40.0
FRESH = {"ANSIBLE_SSH_ARGS": "-C"}
"""A separate connection: without ControlPersist, Ansible does not share connections."""

pytestmark = pytest.mark.timeout(300 + 2 * SECONDS)


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    with AgentFleet("pump") as running:
        running.controller.timeout = 300.0
        yield running


def hub(fleet: AgentFleet) -> list[int]:
    return [fleet.controller.hub_status()["pid"]]


def service(fleet: AgentFleet) -> list[int]:
    return [fleet.service.pid]


def broker(fleet: AgentFleet) -> list[int]:
    return [child.pid for child in psutil.Process(fleet.service.pid).children() if child.name() == "mosquitto"]


def agent(fleet: AgentFleet) -> list[int]:
    return [fleet.agents["pump"].pid]


def sshd(fleet: AgentFleet) -> list[int]:
    server = psutil.Process(fleet.devices["pump"].sshd.process.pid)
    return [server.pid, *(child.pid for child in server.children(recursive=True) if "sshd" in child.name())]


def control_process(fleet: AgentFleet) -> list[int]:
    (pid,) = hub(fleet)
    return [child.pid for child in psutil.Process(pid).children() if "control" in child.cmdline()]


def ssh(fleet: AgentFleet) -> list[int]:
    """The ssh process with the connection that all tasks share."""
    paths = [str(path) for path in fleet.controller.control_sockets()]
    return [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if any(path in word for word in each.info["cmdline"] or () for path in paths)
        and "[mux]" in each.info["cmdline"][0]
    ]


def ping(fleet: AgentFleet, **environment: str) -> str:
    """Ping the device, and return the operator's message: ``pong``, or the error."""
    done = fleet.controller.run("ansible", "pump", "-m", "ansible.builtin.ping", **environment)
    if done.returncode == 0:
        return "pong"
    said = re.search(r'"msg": "((?:[^"\\]|\\.)*)"', done.stdout)
    return said[1].encode().decode("unicode_escape") if said else done.stdout + done.stderr


def timed(call: Callable[[], str]) -> tuple[float, str]:
    began = time.monotonic()
    said = call()
    return time.monotonic() - began, said


@pytest.mark.parametrize(
    "which", [hub, service, broker, agent, sshd, control_process, ssh], ids=lambda each: each.__name__
)
def test_a_stopped_process(fleet: AgentFleet, which: Callable[[AgentFleet], list[int]], tmp_path: Path) -> None:
    assert ping(fleet) == "pong"
    flag = tmp_path / "runs"
    flag.touch()
    work = f"touch {flag}.begun; n=0; while [ -e {flag} ]; do n=$((n+1)); echo $n; sleep 0.1; done; echo well"
    with ThreadPoolExecutor(8) as pool:
        task: Future[CompletedProcess[str]] = pool.submit(
            fleet.controller.run, "ansible", "pump", "-m", "raw", "-a", work
        )
        wait_for(Path(f"{flag}.begun").exists, "the long task has begun", 90)
        pids = which(fleet)
        assert pids, f"there is no {which.__name__} to stop"
        try:
            with stopped(*pids):
                until = time.monotonic() + SECONDS
                meanwhile = {
                    "a task of its own": pool.submit(timed, lambda: ping(fleet, **FRESH)),
                    "a task on the shared connection": pool.submit(timed, lambda: ping(fleet)),
                    "hub status": pool.submit(timed, lambda: hub_status(fleet)),
                    "a new tunnel": pool.submit(timed, lambda: open_another(fleet)),
                }
                # This is not a wait for a condition: the duration is what is tested.
                time.sleep(max(0.0, until - time.monotonic()))
            began = time.monotonic()
            wait_for(lambda: ping(fleet, **FRESH) == "pong", "a new task succeeds", BACK_WITHIN)
            print(f"\n{which.__name__}: a new task succeeds {time.monotonic() - began:.1f} s after {SECONDS:.0f} s")
            for what, each in meanwhile.items():
                took, said = each.result(300)
                print(f"{which.__name__}: {what}, begun meanwhile: after {took:.0f} s: {said}")
        finally:
            flag.unlink()
        ended = task.result(120)
        print(f"{which.__name__}: the task from before: {'went on' if 'well' in ended.stdout else ended.stdout}")
    for what, each in meanwhile.items():
        took, said = each.result()
        within = SHARED_WITHIN if "shared" in what else ANSWER_WITHIN
        # While ssh's own process is stopped, tasks wait for it, as with plain ssh.
        if which is not ssh and said not in ("pong", "opened"):
            assert took < within, f"{what} took {took:.0f} s: {said}"


def hub_status(fleet: AgentFleet) -> str:
    done = fleet.controller.run("tunnelproxy", "hub", "status")
    return (done.stdout + done.stderr).strip().splitlines()[0]


def open_another(fleet: AgentFleet) -> str:
    """Like another operator, without a held tunnel: all calls are made again."""
    outcome = fleet.controller.tunnel(
        "pump",
        env={"IOTOPS_TUNNEL_DIR": str(fleet.controller.home / "h2"), "IOTOPS_TUNNEL_OWNER": "another"},
        thing_name="pump",
    )
    fleet.controller.run("tunnelproxy", "hub", "stop", IOTOPS_TUNNEL_DIR=str(fleet.controller.home / "h2"))
    return "opened" if outcome.word in ("SUCCESS", "CHANGED") else outcome.message
