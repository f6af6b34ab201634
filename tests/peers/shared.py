# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made once for all the processes that run tests side by side."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["shared_folder"]

_VARIABLE = "TEST_SHARED_DIR"


def shared_folder() -> Path:
    """A folder that goes away with the process which asks first; those that it starts have the same."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="tests-")
        atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
    return Path(os.environ[_VARIABLE])
