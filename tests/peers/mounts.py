# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system of its own that can be made read-only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["Mounted", "why_impossible"]


def why_impossible() -> str:
    """Why this machine does not allow mounts; empty if it does."""
    if os.geteuid() != 0:
        return "only root may mount"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"needs a root that may mount: {probe.stderr.strip()}" if probe.returncode else ""


class Mounted:
    """A tmpfs at a folder. Use it as a context manager: it goes away with what is in it.

    Args:
        options: as mount(8) has them, such as ``size=1m``.
    """

    def __init__(self, folder: Path, options: str = "size=4m") -> None:
        self.folder = folder
        self._options = options

    def __enter__(self) -> Mounted:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run("mount", "-t", "tmpfs", "-o", f"mode=0700,{self._options}", "tmpfs", str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._run("umount", "--lazy", str(self.folder))

    def make_read_only(self) -> None:
        self._run("mount", "-o", "remount,ro", str(self.folder))

    def make_writable(self) -> None:
        self._run("mount", "-o", "remount,rw", str(self.folder))

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
