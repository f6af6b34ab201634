# SPDX-License-Identifier: GPL-3.0-or-later
"""A compromised device: its Python does not run modules, but answers each with what the attacker has chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["hostile_python"]

# Common return values of modules, so that no task fails before the attack can have an effect.
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
        path: the path of the program; its answer is written next to it.
        facts: the ``ansible_facts`` of its answers.
        answer: further content of its answers.
    """
    text = json.dumps({**PLAUSIBLE, **answer, "ansible_facts": dict(facts)})
    path.with_suffix(".json").write_text(text)
    # With pipelining there is no argument: the module arrives on standard input.
    path.write_text(f"#!/bin/sh\n[ $# -gt 0 ] || cat >/dev/null\nexec cat '{path.with_suffix('.json')}'\n")
    path.chmod(0o755)
    return path
