# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user sees: steps with an explanation, the commands, and their output."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

__all__ = ["Console"]

BOLD, DIM, GREEN, RED, CYAN = "1", "2", "32", "31", "36"
WIDEST = 100


class Console:
    """Writes to standard output, in colour only on a terminal.

    Args:
        steps: the number of steps in the scenario.
    """

    def __init__(self, steps: int) -> None:
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._steps = steps
        self._step = 0
        self._width = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)

    def step(self, title: str, explanation: str) -> None:
        """Begin the next step, and explain it in a line or two."""
        self._step += 1
        self._print()
        self._print(self._paint(f"[{self._step}/{self._steps}] {title}", BOLD))
        self.explain(explanation)

    def explain(self, text: str) -> None:
        """Print an explanation, wrapped to the width of the terminal."""
        self._print(
            textwrap.fill(text, self._width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        )

    def command(self, line: str, prompt: str = "$") -> None:
        """Print a command as the user would type it."""
        self._print(f"  {self._paint(prompt, DIM)} {self._paint(line, CYAN)}")

    def output(self, line: str) -> None:
        """Print a line of a command's output."""
        self._print(f"  {self._paint('|', DIM)} {line}".rstrip())

    def success(self, text: str) -> None:
        """Print a message of success."""
        self._print(f"\n{self._paint(text, GREEN)}")

    def failure(self, text: str) -> None:
        """Print an error message."""
        self._print(f"\n{self._paint(text, RED)}")

    def plain(self, text: str) -> None:
        """Print text as it is."""
        self._print(text)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def _print(self, text: str = "") -> None:
        print(text, flush=True)
