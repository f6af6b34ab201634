# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A status display of a few lines at the bottom of a terminal's output, below everything that is printed.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Callable, Sequence

NARROWEST = 16
"""Columns, and C(LOWEST) rows: a smaller terminal gets no status display."""
LOWEST = 4

_ERASE_BELOW = "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class LiveDisplay:
    """The lines of the display, and a way to print above them.

    Print inside of C(with display.suspended()). Only this process draws: in a child that is forked while the lines are
    shown, nothing is drawn or erased.

    Args:
        descriptor: of the terminal. It is written to directly: a child that is forked in that moment must not find the
            lock of a buffer taken.
        flush: writes out what others have printed so far.
    """

    def __init__(self, descriptor: int, flush: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._flush = flush
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._rows = 0
        self._lines: list[str] = []
        self._depth = 0

    @property
    def mine(self) -> bool:
        """Whether this process is the one that draws."""
        return os.getpid() == self._process

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines."""
        with self._lock:
            self._lines = list(lines)
            if not self._depth:
                self._write(self._erasure() + self._drawing())

    def suspended(self) -> _Suspension:
        """A context in which the lines are hidden."""
        return _Suspension(self)

    def size(self) -> os.terminal_size:
        """Return the current columns and rows, with defaults for a terminal that reports 0."""
        try:
            found = os.get_terminal_size(self._descriptor)
        except OSError:
            return os.terminal_size((80, 24))
        return os.terminal_size((found.columns or 80, found.lines or 24))

    def _erasure(self) -> str:
        """Go to the first line that was drawn, and erase from there.

        A terminal that became narrower meanwhile may have broken the lines into more rows, or not: terminals differ. A
        stale row that stays is a smaller evil than a lost one of somebody else's.
        """
        rows, self._rows = self._rows, 0
        return (f"\r\x1b[{rows}A" + _ERASE_BELOW) if rows else ""

    def _drawing(self) -> str:
        columns, rows = self.size()
        if columns < NARROWEST or rows < LOWEST:
            return ""
        shown = [cut(line, columns - 1) for line in self._lines[: rows - 2]]
        self._rows = len(shown)
        return "".join(f"{_NO_WRAP}{line}{_WRAP}\r\n" for line in shown)

    def _write(self, text: str) -> None:
        if not text:
            return
        self._flush()
        data = text.encode("utf-8", "replace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            # The terminal is gone, or accepts nothing now: that must not fail the play.
            self._rows = 0


class _Suspension:
    """See LiveDisplay.suspended. In a child process it does nothing: the lock might never be released there."""

    def __init__(self, block: LiveDisplay) -> None:
        self._block = block
        self._entered = False

    def __enter__(self) -> None:
        block = self._block
        if not block.mine:
            return
        self._entered = True
        block._lock.acquire()
        if not block._depth:
            block._write(block._erasure())
        block._depth += 1

    def __exit__(self, *_: object) -> None:
        block = self._block
        if not self._entered:
            return
        block._depth -= 1
        if not block._depth:
            block._write(block._drawing())
        block._lock.release()


def text_width(text: str) -> int:
    """The width of a text in columns. East Asian wide characters have two, combining ones and escape sequences none."""
    return sum(width for _char, width in _cells(text))


def cut(text: str, columns: int) -> str:
    """The text, truncated with an ellipsis if it is too wide; colours are reset at its end."""
    if text_width(text) <= columns:
        return text
    kept, used, coloured = [], 0, False
    for char, width in _cells(text):
        if used + width > columns - 1:
            break
        kept.append(char)
        used += width
        coloured = coloured or char.startswith("\x1b")
    return "".join(kept) + "…" + ("\x1b[0m" if coloured else "")


def _cells(text: str) -> list[tuple[str, int]]:
    """Return the characters, or whole escape sequences for colours, with the width of each in columns."""
    cells, position = [], 0
    while position < len(text):
        end = position + 1
        if text[position] == "\x1b":
            end = text.find("m", position) + 1 or len(text)
            cells.append((text[position:end], 0))
        else:
            cells.append((text[position], _columns(text[position])))
        position = end
    return cells


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
