# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the outcome of each task on each host, with its times, to the file ``SOAK_OUTCOMES``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: soak_outcomes
short_description: Outcome of each task, with its times
type: notification
description:
  - One line of JSON for each task on each host, in the file that E(SOAK_OUTCOMES) names.
"""


class CallbackModule(CallbackBase):
    """For the soak only."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "soak_outcomes"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[str, float] = {}
        self._path = Path(os.environ["SOAK_OUTCOMES"])

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._began[host.get_name()] = time.time()

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._write("unreachable", result)

    def _write(self, state: str, result: Any) -> None:
        host = result._host.get_name()
        line = {
            "host": host,
            "task": result._task.get_name(),
            "state": state,
            "began": self._began.get(host, time.time()),
            "ended": time.time(),
            "message": "" if state == "ok" else str(result._result.get("msg", "")),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
