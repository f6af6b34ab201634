# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples every process once a minute, and checks growth, descriptors, leftover files and leaked secrets at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from peers.process import REPOSITORY
from tunnelproxy.hub import client as hub

from .testbed import Testbed, ours

__all__ = ["Growth", "Sample", "Watch", "growths"]

INTERVAL = 60.0
FEWEST_SAMPLES = 6
GROWTH_SHARE = 0.05
GROWTH_BYTES = 3_000_000
LEAST_OF = 10
DESCRIPTORS_MORE = 8
IDLE_SECONDS = 120.0
MEGA = 1_000_000

# A token, in the files that contain tokens. IDs are shorter; ARNs contain other characters.
_SECRET = re.compile(rb"[A-Za-z0-9_+/=-]{40,}")
_TRACEBACK = b"Traceback (most recent call last)"
_TOKEN_FILES = ("hub/tunnels*.jsonl", "pump-*/agent/state/*")
_NOT_LOGS = {".jsonl", ".db", ".pem", ".html", ".pub", ".lock", ".sock"}


@dataclass(frozen=True)
class Sample:
    """One process at one time."""

    seconds: float
    name: str
    pid: int
    age: float
    rss: int
    pss: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Growth:
    """The growth of one process, or of a role that several processes had in turn.

    Attributes:
        what: the process, or the role.
        before, after: resident memory, in bytes: the least of the first minutes, and of the last.
        seconds: the time between the two.
    """

    what: str
    before: float
    after: float
    seconds: float

    @property
    def too_much(self) -> bool:
        """Whether it exceeds normal fluctuation."""
        return self.after > self.before * (1 + GROWTH_SHARE) + GROWTH_BYTES


def growths(samples: Sequence[Sample], warm_up: float) -> list[Growth]:
    """The growth of each process and each role after warm-up.

    Args:
        warm_up: seconds in which each kind of fault happens once. A fault uses memory, for twenty TLS handshakes at
            once for example, and the allocator keeps it for the next time. Only what grows again then is a leak.
    """
    lives: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.age >= warm_up:
            lives[f"{sample.name} (process {sample.pid})"].append(sample)
        if sample.seconds >= warm_up:
            lives[sample.name].append(sample)
    return [_growth(what, life) for what, life in lives.items() if len(life) >= FEWEST_SAMPLES]


def _growth(what: str, life: Sequence[Sample]) -> Growth:
    """Compare the least of some minutes: the allocator returns the memory of a burst only after a while."""
    part = min(LEAST_OF, len(life) // 2)
    before, after = (min(sample.rss for sample in samples) for samples in (life[:part], life[-part:]))
    return Growth(what, before, after, life[-1].seconds - life[0].seconds)


class Watch:
    """Monitors the processes while the soak runs."""

    def __init__(self, testbed: Testbed, warm_up: float) -> None:
        self._testbed = testbed
        self._warm_up = warm_up
        self._record = testbed.record
        self.samples: list[Sample] = []
        self.idle: dict[str, dict[str, int]] = {}
        """Descriptors of each process before and after the load, when no connection is open."""
        self._zombies: set[int] = set()
        self._files: set[Path] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample every minute inside the context."""
        ending = threading.Event()
        thread = threading.Thread(target=self._run, args=(ending,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join(30)
            self._sample()

    def _run(self, ending: threading.Event) -> None:
        while True:
            try:
                self._sample()
            except (psutil.Error, OSError) as error:
                print(f"a sample is missing: {error}", flush=True)
            if ending.wait(INTERVAL):
                return

    def _sample(self) -> None:
        now = time.time()
        for name, process in self._testbed.processes().items():
            with contextlib.suppress(psutil.Error, OSError):
                memory = process.memory_full_info()
                self.samples.append(
                    Sample(
                        seconds=round(now - self._record.began, 1),
                        name=name,
                        pid=process.pid,
                        age=round(now - process.create_time(), 1),
                        rss=memory.rss,
                        pss=memory.pss,
                        descriptors=process.num_fds(),
                        threads=process.num_threads(),
                    )
                )
        self._look_for_zombies()
        self._learn_secrets()
        self._look_at_command_lines()

    # Descriptors and files

    def note_start(self) -> None:
        """Record descriptors and files before the load, when all tunnels are open and nothing runs."""
        self._wait_until_idle()
        self.idle = {name: {"before": process.num_fds()} for name, process in self._testbed.processes().items()}
        self._files = self._state_files()

    def check_end(self) -> None:
        """Compare with the start, once nothing runs."""
        self._testbed.controller.disconnect()
        self._wait_until_idle()
        deadline = time.monotonic() + IDLE_SECONDS
        more = self._more_descriptors()
        # Pooled connections and control processes end a minute after their last use.
        while more and time.monotonic() < deadline:
            time.sleep(1)
            more = self._more_descriptors()
        for message in more:
            self._record.note(message)
        self._sample_idle("after")
        self._check_tunnels()
        self._check_files()
        for growth in growths(self.samples, self._warm_up):
            if growth.too_much:
                self._record.note(
                    f"{growth.what} grew from {growth.before / MEGA:.1f} to {growth.after / MEGA:.1f} MB "
                    f"in {growth.seconds / 60:.0f} minutes"
                )
        self._check_secrets()
        self._check_tracebacks()

    def _sample_idle(self, when: str) -> None:
        for name, process in self._testbed.processes().items():
            with contextlib.suppress(psutil.Error):
                self.idle.setdefault(name, {})[when] = process.num_fds()

    def _more_descriptors(self) -> list[str]:
        self._sample_idle("after")
        return [
            f"{name} has {counts.get('after', 0)} descriptors, up from {counts.get('before', 0)}"
            for name, counts in self.idle.items()
            if counts.get("after", 0) > counts.get("before", 0) + DESCRIPTORS_MORE
        ]

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while (open_ones := self._connections()) and time.monotonic() < deadline:
            time.sleep(0.5)
        if open_ones:
            self._record.note(f"the hub has {open_ones} connections although nothing runs")

    def _connections(self) -> int:
        with contextlib.suppress(hub.HubError):
            rows = (hub.status() or {}).get("tunnels", [])
            return sum(service["connections"] for row in rows for service in row["services"].values())
        return 0

    def _check_tunnels(self) -> None:
        for thing in self._testbed.things:
            count = len(self._testbed.open_tunnels(thing))
            if count != 1:
                self._record.note(f"{thing} has {count} open tunnels instead of one")

    def _state_files(self) -> set[Path]:
        testbed = self._testbed
        folders = [testbed.hub_disk.path, testbed.service.state_dir, Path(os.environ["TMPDIR"])]
        folders += [device.agent.folder for device in testbed.devices.values()]
        return {_stem(path) for folder in folders for path in (*folder.glob("*"), *folder.glob("state/*"))}

    def _check_files(self) -> None:
        self._record.notes += [f"leftover file: {path}" for path in sorted(self._state_files() - self._files)]
        sockets = self._testbed.controller.control_sockets()
        if sockets:
            self._record.note(f"leftover control sockets of ssh: {sockets}")
        for folder in (Path("/"), REPOSITORY, self._testbed.folder, self._testbed.controller.home):
            for path in (*folder.glob("core"), *folder.glob("core.[0-9]*")):
                if path.is_file() and path.stat().st_mtime > self._record.began:
                    self._record.note(f"a process crashed: {path}")

    # Zombies and secrets

    def _look_for_zombies(self) -> None:
        found = set()
        parents = {process.pid for process in ours(self._testbed.folder)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.ppid() in parents and process.status() == psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
        # A process is a zombie for a moment after it exits.
        for pid in found & self._zombies:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                parent = process.parent()
                name = parent.name() if parent else "nobody"
                self._record.note(
                    f"{process.name()} (process {pid}) has been a zombie for a minute; its parent is {name}"
                )
        self._zombies = found

    def _learn_secrets(self) -> None:
        for pattern in _TOKEN_FILES:
            for path in self._testbed.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        self._testbed.secrets |= {found.decode() for found in _SECRET.findall(path.read_bytes())}

    def _look_at_command_lines(self) -> None:
        for process in ours(self._testbed.folder):
            with contextlib.suppress(psutil.Error):
                words = "\0".join(process.cmdline())
                if any(secret in words for secret in self._testbed.secrets):
                    self._record.note(f"a secret is on the command line of {process.name()}")

    def _check_secrets(self) -> None:
        secrets = [secret.encode() for secret in self._testbed.secrets]
        for path in self._logs():
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if any(secret in content for secret in secrets):
                    self._record.note(f"{path} contains a secret")

    def _check_tracebacks(self) -> None:
        for path in self._logs():
            count = path.read_bytes().count(_TRACEBACK)
            # Python's HTTP server, which the devices run, prints one for each client that disconnects early.
            if count and path.name != "http.log":
                self._record.note(f"{path} contains {count} tracebacks")

    def _logs(self) -> list[Path]:
        testbed = self._testbed
        found = [testbed.service._log, *testbed.folder.glob("*.log"), *testbed.folder.glob("pump-*/**/*.log")]
        for folder in (testbed.hub_disk.path, testbed.service.state_dir):
            found += [path for path in folder.glob("*log*") if path.suffix not in _NOT_LOGS]
        return found

    def save_logs(self, folder: Path) -> None:
        """Keep the logs for analysis."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in self._logs():
            there = folder / path.relative_to(self._testbed.folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)

    def as_json(self) -> dict[str, Any]:
        """Everything, for the JSON report."""
        return {
            "secrets looked for": len(self._testbed.secrets),
            "descriptors when idle": self.idle,
            "growth": [asdict(growth) for growth in growths(self.samples, self._warm_up)],
            "samples": [asdict(sample) for sample in self.samples],
        }


def _stem(path: Path) -> Path:
    """The path of a file; for a rotated log, that of the current log."""
    return path.with_name(re.sub(r"\.\d+$", "", path.name))
