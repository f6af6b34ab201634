# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The C(environment) of the task for which a lookup runs. Ansible does not pass the task to a lookup.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import FrameType

from ansible.executor.task_executor import TaskExecutor
from ansible.template import Templar


def task_environment(templar: Templar) -> dict[str, str]:
    """Return it, templated; empty if no task is running, as in the keywords of a play.

    The task is found in the stack frame that executes it: ansible-core 2.18 to 2.21 all template a task's arguments
    below it.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        executor = frame.f_locals.get("self")
        if isinstance(executor, TaskExecutor):
            found = executor._task.environment or []
            layers = found if isinstance(found, list) else [found]
            return _merged(templar.template(layer) for layer in layers if layer)
        frame = frame.f_back
    return {}


def _merged(layers: Iterable[object]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for layer in layers:
        if isinstance(layer, Mapping):
            merged.update({str(name): str(value) for name, value in layer.items()})
    return merged
