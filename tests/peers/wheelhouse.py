# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheelhouses: a wheel of this repository, and the wheels of the agent's dependencies."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .process import REPOSITORY

__all__ = ["make_wheelhouse"]


def make_wheelhouse(folder: Path, version: str, python_version: str, others: Path | None = None) -> Path:
    """Fill a folder as described in the README of the role.

    Args:
        version: the version in the name and metadata of this repository's wheel; nothing else differs.
        python_version: the device's, such as 3.11.
        others: a wheelhouse from which to take all other wheels.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("LICENSES", "tunnelproxy"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    marked = source / "tunnelproxy" / "__init__.py"
    marked.write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{version}"', marked.read_text()))
    wheels = folder / "wheels"
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, source)
    (wheel,) = wheels.glob("*.whl")
    if others is not None:
        for other in others.glob("*.whl"):
            if not other.name.startswith("iot_tunnelproxy-"):
                shutil.copy(other, wheels)
        return wheels
    platform = f"manylinux2014_{_machine()}"
    target = ["--only-binary=:all:", "--python-version", python_version, "--platform", platform]
    _pip("download", *target, "--dest", wheels, f"{wheel}[agent]")
    return wheels


def _machine() -> str:
    return subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}"
