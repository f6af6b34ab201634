# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin iotops.tunnel.check_facts: fails for a host if its device has set variables that it may not set."""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.plugin_utils._device_facts import DeviceFactsError, refuse_device_facts


class ActionModule(ActionBase):
    """Checks the host's facts, on the controller."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return an empty result, or fail."""
        result = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        try:
            refuse_device_facts(task_vars.get("ansible_facts"), task_vars["inventory_hostname"])
        except DeviceFactsError as error:
            # With a cause, ansible-core would append that error's message.
            raise AnsibleActionFail(str(error)) from None
        result["changed"] = False
        return result
