# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Background processes: starting them, waiting until they are ready, and ending all of them for certain."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["Failure", "adopt_orphans", "descendants", "end", "start", "start_time", "wait_for"]

READY_SECONDS = 20.0
TERMINATE_SECONDS = 8.0
KILL_SECONDS = 2.0
PR_SET_CHILD_SUBREAPER = 36

T = TypeVar("T")


class Failure(Exception):
    """The demo cannot go on; the text is a sentence for the user."""


def adopt_orphans() -> None:
    """Become the parent of what our children leave behind (prctl(2)), such as the hub and ssh's control masters."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches only us, with its output in a file."""
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603  our own commands
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
        )


def wait_for(process: subprocess.Popen[bytes], log: Path, pattern: str, what: str) -> re.Match[str]:
    """Wait until a process has logged a match of a regular expression, and return the match.

    Raises:
        Failure: it ended first, or took too long; says what it was.
    """

    def look() -> re.Match[str] | None:
        ended = process.poll() is not None
        text = log.read_text(errors="replace")
        match = re.search(pattern, text)
        if match is None and ended:
            last = (text.strip().splitlines() or ["without a word"])[-1]
            raise Failure(f"{what} ended at once, with status {process.returncode}: {last}")
        return match

    match = _poll(look, READY_SECONDS)
    if match is None:
        raise Failure(f"{what} was not ready within {READY_SECONDS:.0f} s; its log is {log}")
    return match


def end(processes: Collection[tuple[int, int]]) -> None:
    """End processes, given as process IDs and start times, with all that they have started: ask, then kill."""
    targets = set(processes)
    for pid, _ in processes:
        targets |= descendants(pid)
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        _signal(targets, number)
        if _poll(lambda: not _alive(targets), seconds):
            return


def descendants(pid: int) -> set[tuple[int, int]]:
    """Children of a process, their children, and so on, as process IDs and start times."""
    children: dict[int, list[tuple[int, int]]] = {}
    for child_pid, parent, started in _all_processes():
        children.setdefault(parent, []).append((child_pid, started))
    found: set[tuple[int, int]] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child[0])
    return found


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, or None if it is gone: tells it from a later one of its ID."""
    stat = _stat(pid)
    return None if stat is None else stat[1]


def _alive(processes: Collection[tuple[int, int]]) -> bool:
    # Adopted orphans stay zombies until somebody waits for them.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return any(start_time(pid) == started for pid, started in processes)


def _signal(processes: Collection[tuple[int, int]], number: signal.Signals) -> None:
    for pid, started in processes:
        if start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _all_processes() -> Iterator[tuple[int, int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            stat = _stat(int(entry.name))
            if stat is not None:
                yield int(entry.name), *stat


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time of a process, by proc_pid_stat(5); the name, in brackets, may itself hold anything."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19])


def _poll(look: Callable[[], T | None], seconds: float) -> T | None:
    """Return what ``look`` finds as soon as it finds something; None when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)
