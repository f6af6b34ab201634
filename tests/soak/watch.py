# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at every process each minute, and afterwards at what is left: growth, descriptors, files, secrets."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
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

from .environment import Field, ours

__all__ = ["Growth", "Sample", "Watch", "growths"]

INTERVAL = 60.0
FEWEST_SAMPLES = 6
GROWTH_SHARE = 0.05
GROWTH_BYTES = 3_000_000
DESCRIPTORS_MORE = 8
IDLE_SECONDS = 120.0
MEGA = 1_000_000

# What a token looks like, in the files where there are some. IDs are shorter; ARNs have other characters.
_SECRET = re.compile(rb"[A-Za-z0-9_+/=-]{40,}")
_TRACEBACK = b"Traceback (most recent call last)"
_TOKEN_FILES = ("hub/tunnels*.jsonl", "pump-*/agent/state/*")
_NOT_LOGS = {".jsonl", ".db", ".pem", ".html", ".pub", ".lock", ".sock"}


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

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
    """How a process, or a role that several processes have had, has grown.

    Attributes:
        what: the process, or the role.
        before, after: medians of resident bytes.
        seconds: between the two.
    """

    what: str
    before: float
    after: float
    seconds: float

    @property
    def too_much(self) -> bool:
        """Whether it is more than what memory does by itself."""
        return self.after > self.before * (1 + GROWTH_SHARE) + GROWTH_BYTES


def growths(samples: Sequence[Sample], warm_up: float) -> list[Growth]:
    """The growth of each process since it was warm, and of each role since the soak was.

    Args:
        warm_up: seconds in which each kind of fault happens once. A fault takes memory, such as for twenty TLS
            handshakes at once, and the allocator keeps it for the next time: only what grows again at the next is lost.
    """
    lives: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.age >= warm_up:
            lives[f"{sample.name} (process {sample.pid})"].append(sample)
        if sample.seconds >= warm_up:
            lives[sample.name].append(sample)
    return [_growth(what, life) for what, life in lives.items() if len(life) >= FEWEST_SAMPLES]


def _growth(what: str, life: Sequence[Sample]) -> Growth:
    before, after = (statistics.median(sample.rss for sample in part) for part in (life[:3], life[-3:]))
    return Growth(what, before, after, life[-1].seconds - life[0].seconds)


class Watch:
    """Looks on while the soak runs."""

    def __init__(self, field: Field, warm_up: float) -> None:
        self._field = field
        self._warm_up = warm_up
        self._record = field.record
        self.samples: list[Sample] = []
        self.idle: dict[str, dict[str, int]] = {}
        """Descriptors of each process before and after, with no connection open."""
        self._zombies: set[int] = set()
        self._files: set[Path] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, each minute is sampled."""
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
        for name, process in self._field.processes().items():
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
        """The descriptors and files that there are before the load, while all tunnels are open and nothing runs."""
        self._wait_until_idle()
        self.idle = {name: {"before": process.num_fds()} for name, process in self._field.processes().items()}
        self._files = self._state_files()

    def check_end(self) -> None:
        """Compare, once nothing runs anymore."""
        self._field.controller.disconnect()
        self._wait_until_idle()
        deadline = time.monotonic() + IDLE_SECONDS
        more = self._more_descriptors()
        # Pooled connections and control processes end by themselves, a minute after their last use.
        while more and time.monotonic() < deadline:
            time.sleep(1)
            more = self._more_descriptors()
        for words in more:
            self._record.note(words)
        self._sample_idle("after")
        self._check_tunnels()
        self._check_files()
        for growth in growths(self.samples, self._warm_up):
            if growth.too_much:
                self._record.note(
                    f"{growth.what} has grown from {growth.before / MEGA:.1f} to {growth.after / MEGA:.1f} MB "
                    f"in {growth.seconds / 60:.0f} minutes"
                )
        self._check_secrets()
        self._check_tracebacks()

    def _sample_idle(self, when: str) -> None:
        for name, process in self._field.processes().items():
            with contextlib.suppress(psutil.Error):
                self.idle.setdefault(name, {})[when] = process.num_fds()

    def _more_descriptors(self) -> list[str]:
        self._sample_idle("after")
        return [
            f"{name} has {counts.get('after', 0)} descriptors, and had {counts.get('before', 0)}"
            for name, counts in self.idle.items()
            if counts.get("after", 0) > counts.get("before", 0) + DESCRIPTORS_MORE
        ]

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while (open_ones := self._connections()) and time.monotonic() < deadline:
            time.sleep(0.5)
        if open_ones:
            self._record.note(f"the hub has {open_ones} connections, and nothing runs")

    def _connections(self) -> int:
        with contextlib.suppress(hub.HubError):
            rows = (hub.status() or {}).get("tunnels", [])
            return sum(service["connections"] for row in rows for service in row["services"].values())
        return 0

    def _check_tunnels(self) -> None:
        for thing in self._field.things:
            count = len(self._field.open_tunnels(thing))
            if count != 1:
                self._record.note(f"{thing} has {count} open tunnels; each but one is paid for in vain")

    def _state_files(self) -> set[Path]:
        field = self._field
        folders = [field.hub_disk.path, field.service.state_dir, Path(os.environ["TMPDIR"])]
        folders += [device.agent.folder for device in field.devices.values()]
        return {_stem(path) for folder in folders for path in (*folder.glob("*"), *folder.glob("state/*"))}

    def _check_files(self) -> None:
        self._record.notes += [f"left over: {path}" for path in sorted(self._state_files() - self._files)]
        sockets = self._field.controller.control_sockets()
        if sockets:
            self._record.note(f"control sockets of ssh are left over: {sockets}")
        for folder in (Path("/"), REPOSITORY, self._field.folder, self._field.controller.home):
            for path in (*folder.glob("core"), *folder.glob("core.[0-9]*")):
                if path.is_file() and path.stat().st_mtime > self._record.began:
                    self._record.note(f"a process has crashed: {path}")

    # Zombies and secrets

    def _look_for_zombies(self) -> None:
        found = set()
        parents = {process.pid for process in ours(self._field.folder)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.ppid() in parents and process.status() == psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
        # Who has just ended is one for a moment.
        for pid in found & self._zombies:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                parent = process.parent()
                name = parent.name() if parent else "nobody"
                self._record.note(f"{process.name()} (process {pid}) is a zombie for a minute, left by {name}")
        self._zombies = found

    def _learn_secrets(self) -> None:
        for pattern in _TOKEN_FILES:
            for path in self._field.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        self._field.secrets |= {found.decode() for found in _SECRET.findall(path.read_bytes())}

    def _look_at_command_lines(self) -> None:
        for process in ours(self._field.folder):
            with contextlib.suppress(psutil.Error):
                words = "\0".join(process.cmdline())
                if any(secret in words for secret in self._field.secrets):
                    self._record.note(f"a secret is on the command line of {process.name()}")

    def _check_secrets(self) -> None:
        secrets = [secret.encode() for secret in self._field.secrets]
        for path in self._logs():
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if any(secret in content for secret in secrets):
                    self._record.note(f"a secret is in {path}")

    def _check_tracebacks(self) -> None:
        for path in self._logs():
            count = path.read_bytes().count(_TRACEBACK)
            # Python's own web server, which stands for a device's, prints one for each client that leaves early.
            if count and path.name != "http.log":
                self._record.note(f"{count} tracebacks are in {path}")

    def _logs(self) -> list[Path]:
        field = self._field
        found = [field.service._log, *field.folder.glob("*.log"), *field.folder.glob("pump-*/**/*.log")]
        for folder in (field.hub_disk.path, field.service.state_dir):
            found += [path for path in folder.glob("*log*") if path.suffix not in _NOT_LOGS]
        return found

    def save_logs(self, folder: Path) -> None:
        """Keep the logs, for those who look for a cause."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in self._logs():
            there = folder / path.relative_to(self._field.folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "secrets looked for": len(self._field.secrets),
            "descriptors when idle": self.idle,
            "growth": [asdict(growth) for growth in growths(self.samples, self._warm_up)],
            "samples": [asdict(sample) for sample in self.samples],
        }


def _stem(path: Path) -> Path:
    """A file's path; a rotated log is the same as its first."""
    return path.with_name(re.sub(r"\.\d+$", "", path.name))
