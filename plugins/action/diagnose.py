# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin of iotops.tunnel.diagnose: tells the module the controller's clock, and allows for the way."""

from __future__ import annotations

import time

from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils.diagnosis.judgement import SEVERITIES, worst

RULE = "clock_offset_seconds"


class ActionModule(ActionBase):
    """Runs the module on the device."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp=None, task_vars=None):
        """Return the module's result, without a clock that only seems to be ahead."""
        result = super().run(tmp, task_vars)
        started = time.time()
        arguments = {"controller_time": started, **self._task.args}
        said = self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val)
        result.update(said)
        if "controller_time" not in self._task.args:
            _take_off(result, time.time() - started)
        return result


def _take_off(result: dict, seconds: float) -> None:
    """The task is on its way before the device looks at its clock, for a busy controller much longer than a second.

    An offset that this explains is none.
    """
    facts = result.get("facts")
    clock = facts.get("time") if isinstance(facts, dict) else None
    offset = clock.get("controller_offset_s") if isinstance(clock, dict) else None
    findings = result.get("findings")
    if not isinstance(offset, (int, float)) or not 0 < offset <= seconds or not isinstance(findings, list):
        return
    clock["controller_offset_s"] = 0.0
    # A hostile device may put anything here; the role finds that out.
    if all(isinstance(each, dict) and each.get("severity") in SEVERITIES for each in findings):
        result["findings"] = [each for each in findings if each.get("rule") != RULE]
        result["severity"] = worst(result["findings"])
