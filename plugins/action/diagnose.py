# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin of iotops.tunnel.diagnose: gives the module the time on the controller, and validates its result.

A compromised device may return anything. Whatever the module itself never returns is dropped here: facts, which would
become variables, and everything else that has a meaning for Ansible.
"""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.findings import SEVERITIES, worst
from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import bounded

RULE = "clock_offset_seconds"

NONSENSE = (
    "The device's answer is not a valid diagnosis. Check whether its Python, and the device itself, can be trusted."
)

# Characters of JSON. A diagnosis with 200 messages of each log has a quarter of that.
ANSWER_LIMIT = 1024 * 1024

# The keys of ansible-core's results for a module that failed, and for a job that has only been started.
_OF_A_FAILURE = ("rc", "module_stdout", "module_stderr", "exception")
_OF_A_JOB = ("ansible_job_id", "started", "finished", "results_file")


class ActionModule(ActionBase):
    """Runs the module on the device."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp=None, task_vars=None):
        """Return the module's result, without a clock offset that the task itself explains."""
        result = super().run(tmp, task_vars)
        started = time.time()
        arguments = {"controller_time": started, **self._task.args}
        said = self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val)
        result.update(_own_words(said))
        if "controller_time" not in self._task.args:
            _take_off(result, time.time() - started)
        return result


def _own_words(said: dict) -> dict:
    """Return a valid result of the module, or a failure."""
    words: dict = {"changed": False}
    # The interpreter that ansible-core found. It has already removed any such fact that the device returned.
    found = {name: value for name, value in _facts(said).items() if str(name).startswith("discovered_interpreter_")}
    if found:
        words["ansible_facts"] = found
    if said.get("failed"):
        words.update({key: said[key] for key in _OF_A_FAILURE if key in said})
        words.update(failed=True, msg=bounded(str(said.get("msg") or "")))
    elif "ansible_job_id" in said:
        words.update({key: said[key] for key in _OF_A_JOB if key in said})
    elif _is_diagnosis(said):
        findings = bounded(said["findings"])
        words.update(
            severity=worst(findings),
            findings=findings,
            skipped_sections=bounded(said["skipped_sections"]),
            facts=bounded(said["facts"]),
            seconds=said.get("seconds"),
        )
    else:
        words.update(failed=True, msg=NONSENSE)
    return words


def _facts(said: dict) -> dict:
    facts = said.get("ansible_facts")
    return facts if isinstance(facts, dict) else {}


def _is_diagnosis(said: dict) -> bool:
    findings: Any
    skipped_sections: Any
    facts: Any
    findings, skipped_sections, facts = (said.get(key) for key in ("findings", "skipped_sections", "facts"))
    return (
        _are_texts(findings, ("section", "severity", "rule", "message"))
        and all(finding["severity"] in SEVERITIES for finding in findings)
        and said.get("severity") == worst(findings)
        and _are_texts(skipped_sections, ("section", "reason"))
        and isinstance(facts, dict)
        and all(isinstance(section, dict) for section in facts.values())
        and isinstance(said.get("seconds"), (int, float, type(None)))
        and len(json.dumps([findings, skipped_sections, facts], default=str)) <= ANSWER_LIMIT
    )


def _are_texts(rows, keys: tuple) -> bool:
    """Whether these are dictionaries of strings with exactly those keys."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and set(row) == set(keys) and all(isinstance(value, str) for value in row.values())
        for row in rows
    )


def _take_off(result: dict, seconds: float) -> None:
    """Remove a clock offset that is not larger than the duration of the task.

    It takes a while until the device reads its clock, on a busy controller much longer than a second.
    """
    clock: dict = result.get("facts", {}).get("time", {})
    offset = clock.get("controller_offset_s")
    if isinstance(offset, (int, float)) and 0 < offset <= seconds:
        clock["controller_offset_s"] = 0.0
        result["findings"] = [each for each in result["findings"] if each["rule"] != RULE]
        result["severity"] = worst(result["findings"])
