# SPDX-License-Identifier: GPL-3.0-or-later
"""A terminal: a real pty, and an emulator that renders its screen."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

__all__ = ["Terminal"]


class Terminal:
    """Runs a command on its own terminal.

    Attributes:
        seen: the screen after each change, as lines.
        raw: everything that was written to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        columns: int = 100,
        rows: int = 24,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = os.openpty()
        self.raw = b""
        self.seen: list[list[str]] = []
        self.resize(columns, rows)
        self._process = subprocess.Popen(
            # Make it the controlling terminal, which prompts need.
            ["setsid", "--ctty", *command],
            cwd=folder,
            env=dict(environment),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        """Resize the terminal, like a user who drags its corner."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def lines(self) -> list[str]:
        """The lines on the screen, without empty ones at the end."""
        lines = [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def all_lines(self) -> list[str]:
        """The lines on the screen and those that have scrolled off it."""
        width = self._screen.columns
        gone = ["".join(row[column].data for column in range(width)).rstrip() for row in self._screen.history.top]
        return gone + self.lines()

    def run_until(self, condition: Callable[[list[str]], bool], seconds: float = 60.0) -> bool:
        """Read until the condition is true for the screen, or the command exits; return whether it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not select.select([self._master], [], [], deadline - time.monotonic())[0]:
                break
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return False
            self.raw += data
            self._stream.feed(data)
            self.seen.append(self.lines())
            if condition(self.seen[-1]):
                return True
        raise AssertionError(f"not within {seconds:.0f} s; the screen shows:\n" + "\n".join(self.lines()))

    def finish(self) -> int:
        """Read until the command exits, and return its exit status."""
        self.run_until(lambda _lines: False)
        os.close(self._master)
        return self._process.wait(10)
