# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs processes as another user of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .process import REPOSITORY
from .users import as_user

__all__ = ["User", "why_impossible"]

_ASK = """
import json, sys
from tunnelproxy.hub import client
call, arguments = json.loads(sys.argv[1])
try:
    print(json.dumps({"result": getattr(client, call)(*arguments.pop("", ()), **arguments)}))
except client.HubError as error:
    print(json.dumps({"error": str(error), "code": error.code}))
"""


def why_impossible() -> str:
    """Why this machine does not let a test act as other users; empty if it does."""
    if os.geteuid() != 0:
        return "only root may act as other users"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"needs a root that may mount: {probe.stderr.strip()}" if probe.returncode else ""


class User:
    """Runs programs as a user.

    Args:
        number: the ID of the user and of the group.
        folder: a folder that every user may enter.
        environment: the environment of the user's shell.
    """

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.number = number
        self.home = folder / f"home-{number}"
        self.home.mkdir(mode=0o700)
        os.chown(self.home, number, number)
        self.environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environment}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments."""
        return subprocess.run(
            [*as_user(str(self.number), "--clear-groups"), sys.executable, *arguments],
            cwd=REPOSITORY,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def tunnelproxy(self, *arguments: str, **environment: str) -> str:
        """Run ``tunnelproxy``, and return what it printed."""
        done = self.run("-m", "tunnelproxy", *arguments, **environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def ask(self, call: str, /, *positional: object, env: Mapping[str, str] | None = None, **arguments: object) -> Any:
        """Call a function of the hub's client, and return its result, or the sentence that it raises."""
        request = json.dumps([call, {"": positional, **arguments}])
        done = self.run("-c", _ASK, request, **(env or {}))
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return said["error"] if "error" in said else said["result"]
