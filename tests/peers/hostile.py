# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that somebody has taken over: its Python runs no module, and gives an answer of its own choice to each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["hostile_python"]

# What many modules return, so that no task stumbles before the try has had its effect.
PLAUSIBLE: dict[str, Any] = {
    "changed": False,
    "rc": 0,
    "stdout": "",
    "stdout_lines": [],
    "ping": "pong",
    "dest": "/dev/null",
    "path": "/dev/null",
    "stat": {"exists": True, "isdir": False},
}


def hostile_python(path: Path, facts: Mapping[str, Any], answer: Mapping[str, Any]) -> Path:
    """Make a program for ``ansible_python_interpreter``, and return its path.

    Args:
        path: where; what it answers lies beside it.
        facts: the ``ansible_facts`` of its answers.
        answer: what else is in them.
    """
    text = json.dumps({**PLAUSIBLE, **answer, "ansible_facts": dict(facts)})
    path.with_suffix(".json").write_text(text)
    # Without an argument, with pipelining, the module comes by its standard input.
    path.write_text(f"#!/bin/sh\n[ $# -gt 0 ] || cat >/dev/null\nexec cat '{path.with_suffix('.json')}'\n")
    path.chmod(0o755)
    return path
