# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder shared by all processes that run tests in parallel."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["shared_folder"]

_VARIABLE = "TEST_SHARED_DIR"


def shared_folder() -> Path:
    """The folder. The first process creates it, and removes it when it exits; its children use the same folder."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="tests-")
        atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
    return Path(os.environ[_VARIABLE])
