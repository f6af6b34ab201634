# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrong clock for a process and its children, with libfaketime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

__all__ = ["FakedClock", "faketime_library"]


class FakedClock:
    """A clock that is wrong until it is set. ``environment`` is the environment of the processes that use it.

    Args:
        says: the time, in libfaketime's format: ``@1970-01-01 00:00:00`` at the start of a process, or ``-2d``.
    """

    def __init__(self, file: Path, says: str) -> None:
        self._file = file
        self._file.write_text(says)
        self.environment = {
            "LD_PRELOAD": faketime_library(),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            # Timers use the monotonic clock, which setting the time does not change.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "TZ": "UTC",
        }

    def set(self) -> None:
        """Correct the clock, as NTP does."""
        self._file.write_text("+0")


def faketime_library() -> str:
    """The library for ``LD_PRELOAD``."""
    if shutil.which("faketime") is None:
        raise RuntimeError("faketime is not installed: sudo apt-get install faketime")
    # The program knows the path of its library.
    printed = subprocess.run(
        ["faketime", "-m", "-f", "+0", "sh", "-c", "echo $LD_PRELOAD"], check=True, capture_output=True, text=True
    )
    return printed.stdout.strip()
