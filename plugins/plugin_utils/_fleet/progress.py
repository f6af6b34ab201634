# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The progress of a play: which hosts run which task, since when, and with which outcome. It prints nothing.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.failures import Failure

OUTCOMES = ("ok", "changed", "skipped", "ignored", "failed", "unreachable")


@dataclass
class TaskProgress:
    """One task, over all hosts.

    Attributes:
        name: as shown to the operator.
        began: start time, in seconds of a monotonic clock.
        hosts: number of its hosts, or None if that is not known.
        running: start time by host that is running it.
        outcomes: number of hosts that are done, by one of C(OUTCOMES).
        took: duration in seconds, by host that is done.
    """

    name: str
    began: float
    hosts: int | None = None
    running: dict[str, float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return sum(self.outcomes.values())


@dataclass
class HostTime:
    """How long a host ran tasks, in seconds, and its longest task."""

    total: float = 0.0
    longest: float = 0.0
    longest_task: str = ""


@dataclass
class FleetProgress:
    """A run of Ansible, over all its plays.

    Attributes:
        batch: hosts of the current play or, with C(serial), of its current batch.
        hosts: all hosts of all plays.
    """

    batch: list[str] = field(default_factory=list)
    hosts: dict[str, HostTime] = field(default_factory=dict)
    tasks: dict[str, TaskProgress] = field(default_factory=dict)
    tasks_begun: int = 0
    failed: dict[str, Failure] = field(default_factory=dict)
    unreachable: dict[str, Failure] = field(default_factory=dict)

    def play(self, hosts: Iterable[str]) -> None:
        """A play begins, or another batch of it."""
        self.batch = list(hosts)
        for host in self.batch:
            self.hosts.setdefault(host, HostTime())
        self.tasks.clear()

    def task(self, uuid: str, name: str, now: float, hosts: int | None = None) -> None:
        """A task begins."""
        if uuid not in self.tasks:
            self.tasks[uuid] = TaskProgress(name, now, hosts)
            self.tasks_begun += 1

    def begin(self, uuid: str, name: str, host: str, now: float) -> None:
        """A host begins a task."""
        self.task(uuid, name, now)
        self.tasks[uuid].running[host] = now

    def end(self, uuid: str, name: str, host: str, outcome: str, now: float) -> None:
        """A host has completed a task with one of C(OUTCOMES)."""
        self.task(uuid, name, now)
        task = self.tasks[uuid]
        seconds = now - task.running.pop(host, now)
        task.outcomes[outcome] += 1
        task.took[host] = seconds
        time = self.hosts.setdefault(host, HostTime())
        time.total += seconds
        if seconds >= time.longest:
            time.longest, time.longest_task = seconds, task.name

    def running(self) -> dict[str, float]:
        """The hosts that are running a task, and since when."""
        return {host: since for task in self.tasks.values() for host, since in task.running.items()}

    def active(self) -> list[TaskProgress]:
        """The tasks that hosts are running, the one with the most hosts first."""
        return sorted((task for task in self.tasks.values() if task.running), key=lambda task: -len(task.running))

    def left(self) -> list[str]:
        """Hosts of the batch that neither failed nor were unreachable."""
        return [host for host in self.batch if host not in self.failed and host not in self.unreachable]


def slowest(seconds: dict[str, float], count: int) -> list[tuple[str, float]]:
    """The hosts that took clearly longer than the median."""
    return longest(seconds, count, at_least=max(2.0, 1.3 * median(seconds.values()))) if seconds else []


def longest(seconds: dict[str, float], count: int, at_least: float = 1.0) -> list[tuple[str, float]]:
    """The hosts with the most seconds, except negligible ones."""
    worth = [(host, value) for host, value in seconds.items() if value >= at_least]
    return sorted(worth, key=lambda pair: -pair[1])[:count]


def spell_seconds(seconds: float) -> str:
    """Such as C(4 s), C(3 min 05 s), C(1 h 02 min)."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def spell_outcomes(outcomes: Counter[str]) -> str:
    """Such as C(47 ok, 2 changed, 1 unreachable)."""
    return ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES if outcomes[outcome]) or "nothing done"
