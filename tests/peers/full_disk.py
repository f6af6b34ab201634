# SPDX-License-Identifier: GPL-3.0-or-later
"""A small disk of its own, which can be filled to the last byte, and emptied again."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

__all__ = ["SmallDisk", "why_impossible"]


def why_impossible() -> str:
    """Why this machine does not allow it; empty if it does."""
    return "" if os.geteuid() == 0 else "only root may mount"


class SmallDisk:
    """A tmpfs. Use it as a context manager: everything goes with it.

    Args:
        path: where to mount it; made when it is not there.
        kib: its size.
    """

    def __init__(self, path: Path, kib: int = 1024) -> None:
        self.path = path
        self._kib = kib
        self._ballast = path / "ballast"

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self._kib}k", "tmpfs", self.path], check=True, capture_output=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily: a process that is being killed may still have a file there.
        subprocess.run(["umount", "-l", self.path], check=True, capture_output=True)

    def fill(self) -> None:
        """Leave not a byte."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def empty(self) -> None:
        """Undo :meth:`fill`."""
        self._ballast.unlink()

    def remount(self, option: str) -> None:
        """Such as ``ro``."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True, capture_output=True)
