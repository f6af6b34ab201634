# SPDX-License-Identifier: GPL-3.0-or-later
"""Completed work, failures and faults of a soak, and which failures a fault excuses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["AFTERMATH_SECONDS", "Failure", "Record", "Window"]

AFTERMATH_SECONDS = 5.0
"""Work in progress when a fault recovers may still fail within this time, when its own timeout expires."""


@dataclass(frozen=True)
class Failure:
    """A piece of work that failed.

    Attributes:
        kind: ``play``, ``terminal`` or ``page``.
        thing: the device.
        began: when the work began, in seconds of :func:`time.time`.
        ended: when it failed.
        message: the error message.
        disconnected: whether an established connection ended, as opposed to a new one that failed.
        never_excused: whether no fault can excuse it: wrong bytes, for example.
    """

    kind: str
    thing: str
    began: float
    ended: float
    message: str
    disconnected: bool = False
    never_excused: bool = False


@dataclass
class Window:
    """The time of one fault, from its injection to the recovery.

    Attributes:
        affected: devices to which new work may fail.
        disconnected: devices whose connections may end.
        began: when it was injected.
        removed: when the fault was removed; 0 until then.
        recovered: when the probe first succeeded; 0 until then.
        violation: which requirement was not met.
        measurements: what the fault measured, by name.
    """

    fault: str
    affected: frozenset[str]
    disconnected: frozenset[str]
    began: float
    removed: float = 0.0
    recovered: float = 0.0
    violation: str = ""
    measurements: dict[str, float] = field(default_factory=dict)

    def excuses(self, failure: Failure) -> bool:
        """Whether the failure can be explained by this fault."""
        things = self.disconnected if failure.disconnected else self.affected | self.disconnected
        end = self.recovered + AFTERMATH_SECONDS if self.recovered else float("inf")
        return (
            not failure.never_excused
            and failure.thing in things
            and failure.began <= end
            and failure.ended >= self.began
        )


class Record:
    """Collects what happened, from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.began = time.time()
        self.done: Counter[str] = Counter()
        """How much work of each kind was completed and verified."""
        self.failures: list[Failure] = []
        self.windows: list[Window] = []
        self.notes: list[str] = []
        """Violations that concern no device's work, such as a process that exited unexpectedly."""

    def completed(self, kind: str, number: int = 1) -> None:
        """Count completed work."""
        with self._lock:
            self.done[kind] += number

    def failed(
        self,
        kind: str,
        thing: str,
        began: float,
        message: str,
        *,
        disconnected: bool = False,
        never_excused: bool = False,
    ) -> None:
        """Record work that failed just now."""
        with self._lock:
            self.failures.append(
                Failure(kind, thing, began, time.time(), " ".join(message.split()), disconnected, never_excused)
            )

    def note(self, message: str) -> None:
        """Record a violation."""
        with self._lock:
            self.notes.append(f"{self.at(time.time())}: {message}")

    def open_window(self, fault: str, affected: Iterable[str], disconnected: Iterable[str]) -> Window:
        """Record a fault that is about to be injected."""
        window = Window(fault, frozenset(affected), frozenset(disconnected), time.time())
        with self._lock:
            self.windows.append(window)
        return window

    def at(self, moment: float) -> str:
        """A time of the soak, as minutes and seconds since its start."""
        seconds = int(moment - self.began)
        return f"{seconds // 60}:{seconds % 60:02}"

    def unexcused(self) -> list[Failure]:
        """Failures that no fault excuses."""
        return [failure for failure in self.failures if not any(window.excuses(failure) for window in self.windows)]

    def violations(self) -> list[str]:
        """All violations, as sentences."""
        found = [
            f"{self.at(failure.ended)}: {failure.kind} on {failure.thing}"
            f"{' was disconnected' if failure.disconnected else ' failed'}, and no fault explains it: {failure.message}"
            for failure in self.unexcused()
        ]
        found += [
            f"{self.at(window.began)}: {window.fault}: {window.violation}"
            for window in self.windows
            if window.violation
        ]
        return found + self.notes

    def as_json(self) -> dict[str, Any]:
        """Everything, for the JSON report."""
        excused = Counter(
            f"{window.fault}: {failure.kind}"
            for failure in self.failures
            for window in self.windows
            if window.excuses(failure)
        )
        return {
            "done": dict(self.done),
            "faults": [
                {
                    "fault": window.fault,
                    "minute": round((window.began - self.began) / 60, 2),
                    "lasted": round(window.removed - window.began, 1),
                    "recovered after": round(window.recovered - window.removed, 1) if window.recovered else None,
                    "violation": window.violation,
                    **window.measurements,
                }
                for window in self.windows
            ],
            "excused": dict(excused),
            "failures": [{**asdict(t), "at": self.at(t.ended)} for t in self.failures],
        }
