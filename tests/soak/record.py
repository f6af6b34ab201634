# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in a soak, and which of it a fault excuses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["AFTERMATH_SECONDS", "Record", "Trouble", "Window"]

AFTERMATH_SECONDS = 5.0
"""After a fault's recovery: what was under way then may still fail, as its own time-outs run out."""


@dataclass(frozen=True)
class Trouble:
    """Something that failed.

    Attributes:
        kind: ``play``, ``terminal`` or ``page``.
        thing: the device.
        began: when the piece of work began that failed, in seconds of :func:`time.time`.
        ended: when it failed.
        words: what was said.
        cut: whether a connection was cut that had been good, and not merely a new one failed.
        never: whether no fault excuses it, such as wrong bytes.
    """

    kind: str
    thing: str
    began: float
    ended: float
    words: str
    cut: bool = False
    never: bool = False


@dataclass
class Window:
    """A fault, from its injection to the recovery.

    Attributes:
        troubled: devices to which new work may fail.
        cut: devices whose connections may end.
        began: when it was injected.
        undone: when its cause was removed; 0 while it lasts.
        recovered: when the probe found all well; 0 while it has not.
        failure: what was not as it must be.
        figures: what was measured.
    """

    fault: str
    troubled: frozenset[str]
    cut: frozenset[str]
    began: float
    undone: float = 0.0
    recovered: float = 0.0
    failure: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def excuses(self, trouble: Trouble) -> bool:
        """Whether a piece of work failed because of this fault."""
        things = self.cut if trouble.cut else self.troubled | self.cut
        end = self.recovered + AFTERMATH_SECONDS if self.recovered else float("inf")
        return not trouble.never and trouble.thing in things and trouble.began <= end and trouble.ended >= self.began


class Record:
    """Collects from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.began = time.time()
        self.done: Counter[str] = Counter()
        """How much work of each kind was done, and found good."""
        self.troubles: list[Trouble] = []
        self.windows: list[Window] = []
        self.notes: list[str] = []
        """What is wrong and belongs to no device, such as a process that ended by itself."""

    def good(self, kind: str, number: int = 1) -> None:
        """Count work that was done."""
        with self._lock:
            self.done[kind] += number

    def trouble(
        self, kind: str, thing: str, began: float, words: str, *, cut: bool = False, never: bool = False
    ) -> None:
        """Note work that failed just now."""
        with self._lock:
            self.troubles.append(Trouble(kind, thing, began, time.time(), " ".join(words.split()), cut, never))

    def note(self, words: str) -> None:
        """Note what is wrong."""
        with self._lock:
            self.notes.append(f"{self.at(time.time())}: {words}")

    def open_window(self, fault: str, troubled: Iterable[str], cut: Iterable[str]) -> Window:
        """A fault is about to be injected."""
        window = Window(fault, frozenset(troubled), frozenset(cut), time.time())
        with self._lock:
            self.windows.append(window)
        return window

    def at(self, moment: float) -> str:
        """A moment of the soak, as minutes and seconds."""
        seconds = int(moment - self.began)
        return f"{seconds // 60}:{seconds % 60:02}"

    def unexcused(self) -> list[Trouble]:
        """What failed and no fault excuses."""
        return [trouble for trouble in self.troubles if not any(window.excuses(trouble) for window in self.windows)]

    def violations(self) -> list[str]:
        """What is not as it must be, as sentences."""
        found = [
            f"{self.at(trouble.ended)}: {trouble.kind} on {trouble.thing}"
            f"{' was cut' if trouble.cut else ''} while no fault explains it: {trouble.words}"
            for trouble in self.unexcused()
        ]
        found += [
            f"{self.at(window.began)}: {window.fault}: {window.failure}" for window in self.windows if window.failure
        ]
        return found + self.notes

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        excused = Counter(
            f"{window.fault}: {trouble.kind}"
            for trouble in self.troubles
            for window in self.windows
            if window.excuses(trouble)
        )
        return {
            "done": dict(self.done),
            "faults": [
                {
                    "fault": window.fault,
                    "minute": round((window.began - self.began) / 60, 2),
                    "lasted": round(window.undone - window.began, 1),
                    "recovered after": round(window.recovered - window.undone, 1) if window.recovered else None,
                    "failure": window.failure,
                    **window.figures,
                }
                for window in self.windows
            ],
            "excused": dict(excused),
            "troubles": [{**asdict(t), "at": self.at(t.ended)} for t in self.troubles],
        }
