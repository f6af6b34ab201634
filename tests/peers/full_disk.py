# SPDX-License-Identifier: GPL-3.0-or-later
"""A small disk that can be filled to the last byte, emptied, and made read-only."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

__all__ = ["SmallDisk", "why_impossible"]


def why_impossible() -> str:
    """Why this machine does not allow such a disk; empty if it does."""
    if os.geteuid() != 0:
        return "only root may mount"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"needs a root that may mount: {probe.stderr.strip()}" if probe.returncode else ""


class SmallDisk:
    """A tmpfs. Use it as a context manager, which removes it at the end.

    Args:
        path: the mount point; it is created if it does not exist.
        kib: its size.
        options: further options of mount(8), such as ``nr_inodes=1``.
    """

    def __init__(self, path: Path, kib: int = 1024, *options: str) -> None:
        self.path = path
        self._options = ",".join(("mode=0700", f"size={kib}k", *options))
        self._ballast = path / "ballast"

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._run("mount", "-t", "tmpfs", "-o", self._options, "tmpfs", str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily: a process that is being killed may still have a file open.
        self._run("umount", "--lazy", str(self.path))

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)

    def empty(self) -> None:
        """Undo :meth:`fill`."""
        self._ballast.unlink()

    def remount(self, option: str) -> None:
        """Remount the disk read-only (``ro``) or writable (``rw``)."""
        self._run("mount", "-o", f"remount,{option}", str(self.path))

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
