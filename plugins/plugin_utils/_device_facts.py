# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts that a device may not set: options of the collection, and variables of Ansible itself.

Any module can return facts. Ansible turns them into variables that take precedence over those of the inventory and the
defaults of roles and, for the later items of a loop, over all others. A persistent cache restores them in the next run.
ansible-core removes some of these variables (C(clean_facts) in ansible.vars.clean): most options of the connection and
of become, and interpreters. The variable C(ansible_facts) still contains them all, without the prefix C(ansible_). It
does not contain what C(set_fact) sets, unless that is C(cacheable).

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ansible import constants

__all__ = ["REFUSED_NAMES", "DeviceFactsError", "refuse_device_facts"]

_PREFIX = "iotops_tunnel_"

# Names that real facts may have, because they cannot override a variable, even in a loop, or do no harm. ansible-core
# itself sets the fact C(ansible_facts) to the interpreter that it found for a delegated task.
_HARMLESS = {"ansible_facts", "ansible_forks", "ansible_limit", "ansible_verbosity", "ansible_version"}

# Other variables that ansible-core uses in plugins and templates.
_MAGIC = {
    "ansible_check_mode",
    "ansible_delegated_vars",
    "ansible_failed_result",
    "ansible_failed_task",
    "ansible_index_var",
    "ansible_loop_var",
    "ansible_search_path",
    "omit",
    "vars",
}

# Functions of Jinja and Ansible that templates in this collection call: a variable of the same name overrides them.
_FUNCTIONS = {"dict", "lookup", "now", "q", "query", "range", "undef"}

# Options of ansible.builtin.ssh that clean_facts does not remove.
_CONNECTION_OPTIONS = {
    "ansible_control_path",
    "ansible_control_path_dir",
    "ansible_host_key_checking",
    "ansible_private_key",
    "ansible_private_key_passphrase",
    "ansible_scp_executable",
    "ansible_sftp_batch_mode",
    "ansible_sftp_executable",
    "ansible_ssh_host_key_checking",
    "ansible_sshpass_prompt",
}

REFUSED_NAMES = frozenset(
    name.removeprefix("ansible_")
    for name in (constants.INTERNAL_STATIC_VARS - _HARMLESS) | _MAGIC | _FUNCTIONS | _CONNECTION_OPTIONS
)
"""Names in C(ansible_facts) that are refused, in addition to those of the collection."""

_MOST_NAMES = 5
_PLAIN_NAME = re.compile(r"\w{1,60}\Z", re.ASCII)


class DeviceFactsError(ValueError):
    """A device has set facts that it may not set. The text is a message for the operator."""


def refuse_device_facts(facts: Mapping | None, host: str) -> None:
    """Raise L(DeviceFactsError) if a device has set an option of the collection or a variable of Ansible itself.

    It only looks at names, so that it costs little in each task.

    Args:
        facts: the task's variable C(ansible_facts), unchanged.
        host: the host's name in the inventory, for the message.
    """
    names = _refused(facts or {})
    if names:
        # In that case, the given host name is what the device claims.
        who = "This host" if "inventory_hostname" in names else host
        raise DeviceFactsError(
            f"{who} has facts that no device may set: {_spelled(names)}. They are options of the collection, or "
            "variables of Ansible itself, and came from the result of a module or from the fact cache. Find out why "
            "the device sets them. 'meta: clear_facts' at the start of a play removes them, also from the cache; "
            "set_fact needs 'cacheable: false' for such variables."
        )


def _refused(facts: Mapping) -> list[str]:
    names = [name for name in facts if name in REFUSED_NAMES or str(name).startswith(_PREFIX)]
    # In a loop, ansible-core adds those of the previous item here (C(_execute) in ansible.executor.task_executor).
    inner = facts.get("ansible_facts")
    return names + _refused(inner) if isinstance(inner, Mapping) else names


def _spelled(names: Iterable[str]) -> str:
    """The first names, made safe for a message, because the device has chosen them."""
    every = sorted(set(names))
    shown = [name if _PLAIN_NAME.match(name) else ascii(name)[:60] for name in every[:_MOST_NAMES]]
    more = len(every) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
