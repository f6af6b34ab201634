# SPDX-License-Identifier: GPL-3.0-or-later
"""Fenced blocks of documentation pages, and a shell that runs those with commands, in order.

The first line of a fence names its language. ``sh`` is run, unless a comment on the line before says otherwise::

    <!-- not run: why -->
    <!-- stays until: words -->    the command keeps running; once it has printed these words, the next block is run

Blocks in other languages whose first line is ``# NAME`` are written to the file NAME.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .process import Process

__all__ = ["Block", "Shell", "blocks_of"]

_FENCE = re.compile(r"^(?:<!-- (not run|stays until): (.+?) -->\n)?```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.\w+)\n")
_SECONDS = 120


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    kind: str
    text: str
    not_run: str = ""
    stays_until: str = ""


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    content = page.read_text()
    found = []
    for match in _FENCE.finditer(content):
        mark, words, kind, text = match.groups()
        line = content.count("\n", 0, match.start(3)) + 1
        marks = {"not_run": words} if mark == "not run" else {"stays_until": words} if mark else {}
        found.append(Block(page.name, line, kind, text, **marks))
    return found


class Shell:
    """A user's shell: it keeps variables, functions and the working directory from one block to the next.

    Args:
        home: the initial working directory, and HOME.
        environment: the initial environment.
        instead: texts of the documentation, and their replacements here.
        prelude: commands before the first block.
    """

    def __init__(
        self, home: Path, environment: Mapping[str, str], instead: Mapping[str, str], prelude: str = ""
    ) -> None:
        self._home = home
        self._environment = {**environment, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        self._instead = instead
        self._memory = home / ".memory"
        self._memory.write_text(prelude)
        self._staying: list[Process] = []

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._staying):
            process.stop(signal.SIGTERM)

    def run(self, block: Block) -> str:
        """Run a block, or write it to its file; fail with its output if it fails. Return its output."""
        text = self._true_here(block.text)
        if block.kind != "sh":
            named = _FILE.match(text)
            if named:
                (self._home / named[1]).write_text(text)
            return ""
        if block.stays_until:
            self.stay(text, block.stays_until)
            return ""
        # Stop at a failing command, as a careful user would.
        script = f"source {shlex.quote(str(self._memory))}\nset -euo pipefail\n{text}\n{self._remember()}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, f"{block.page}, line {block.line}: {text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stay(self, text: str, until: str) -> None:
        """Run commands, the last of which keeps running, and wait until it has printed some words."""
        *before, last = text.strip().splitlines()
        lines = [f"source {shlex.quote(str(self._memory))}", f"cd {shlex.quote(str(self._home))}", "set -eu", *before]
        script = "\n".join([*lines, f"exec {last}"])
        process = Process(["bash", "-c", script], self._home / f"log-{len(self._staying)}", self._environment)
        self._staying.append(process)
        process.wait_for_output(re.escape(until), 30)

    def _remember(self) -> str:
        return f"{{ export -p; declare -f; printf 'cd %q\\n' \"$PWD\"; }} >{shlex.quote(str(self._memory))}"

    def _true_here(self, text: str) -> str:
        for there, here in self._instead.items():
            text = text.replace(there, here)
        return text
