# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thing that a task works on.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.template import Templar
from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name


def thing_of_task(option: str | None, task_vars: dict, templar: Templar) -> str:
    """Return the option C(thing_name), else the variable C(iotops_tunnel_thing), else the inventory host's name.

    With C(delegate_to) that is the host that the task is for, not the one that it is delegated to.
    """
    variable = task_vars.get("iotops_tunnel_thing")
    try:
        return valid_name("thing", option or templar.template(variable) or task_vars["inventory_hostname"])
    except ValueError as error:
        raise AnsibleActionFail(f"{error} Set thing_name, or iotops_tunnel_thing for this host.") from error
