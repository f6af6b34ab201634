# SPDX-License-Identifier: Apache-2.0
"""Notices that a file has been written."""

from __future__ import annotations

import os

__all__ = ["fingerprint"]


def fingerprint(path: str) -> str:
    """A string that changes when the file, or a file in the folder, is written; empty if there is none."""
    try:
        found = os.stat(path)
        inside = []
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                inside = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)
    except OSError:
        return ""
    return repr((found.st_mtime_ns, found.st_size, found.st_ino, inside))
