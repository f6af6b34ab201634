# SPDX-License-Identifier: GPL-3.0-or-later
"""Old releases of libraries, as in Linux distributions, downloaded once to ``.cache/``."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from .process import REPOSITORY

__all__ = ["old_library"]


def old_library(requirement: str) -> Path:
    """A folder for PYTHONPATH with one release of a library, such as ``websockets==10.4``, without its dependencies."""
    folder = REPOSITORY / ".cache" / "old-libraries" / requirement
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{requirement}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_name(f"{requirement}.partial")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--upgrade", "--target", partial, requirement], check=True, capture_output=True)
            partial.rename(folder)
    return folder
