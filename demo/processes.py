# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Background processes: start them, wait until they are ready, and stop all of them reliably."""

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
    """The demo cannot continue; the text is a sentence for the user."""


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, such as the hub and ssh's control masters (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in its own session, so that Ctrl-C reaches only the demo, with its output in a file."""
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
    """Wait until the log of a process matches a regular expression, and return the match.

    Raises:
        Failure: the process exited first, or took too long.
    """

    def look() -> re.Match[str] | None:
        ended = process.poll() is not None
        text = log.read_text(errors="replace")
        match = re.search(pattern, text)
        if match is None and ended:
            last = (text.strip().splitlines() or ["no output"])[-1]
            raise Failure(f"{what} exited with status {process.returncode} while starting: {last}")
        return match

    match = _poll(look, READY_SECONDS)
    if match is None:
        raise Failure(f"{what} was not ready within {READY_SECONDS:.0f} s; see its log, {log}")
    return match


def end(processes: Collection[tuple[int, int]]) -> None:
    """Stop processes, given as process IDs and start times, and their descendants: first SIGTERM, then SIGKILL."""
    targets = set(processes)
    for pid, _ in processes:
        targets |= descendants(pid)
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        _signal(targets, number)
        if _poll(lambda: not _alive(targets), seconds):
            return


def descendants(pid: int) -> set[tuple[int, int]]:
    """All descendants of a process, as process IDs and start times."""
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
    """The start time of a process, in clock ticks since boot, or None if it has exited.

    It distinguishes the process from a later one with the same ID.
    """
    stat = _stat(pid)
    return None if stat is None else stat[1]


def _alive(processes: Collection[tuple[int, int]]) -> bool:
    # Adopted orphans stay zombies until this process waits for them.
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
    """Parent and start time of a process (proc_pid_stat(5)). The name, in parentheses, may contain any character."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19])


def _poll(look: Callable[[], T | None], seconds: float) -> T | None:
    """Return what ``look`` returns as soon as it is true; its last result when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)
