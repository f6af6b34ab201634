# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin of iotops.tunnel.tunnel_info: runs the module on the controller."""

from __future__ import annotations

from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import INFO_OPTIONS, REQUIRED_TOGETHER
from ansible_collections.iotops.tunnel.plugins.plugin_utils.aws_environment import aws_environment
from ansible_collections.iotops.tunnel.plugins.plugin_utils.controller import ControllerAction
from ansible_collections.iotops.tunnel.plugins.plugin_utils.thing import thing_of_task


class ActionModule(ControllerAction):
    """Looks through the module."""

    def run(self, tmp=None, task_vars=None):
        """Return the module's result."""
        super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(INFO_OPTIONS, required_together=REQUIRED_TOGETHER)
        if not options["tunnel_id"] and not options["all_things"]:
            options["thing_name"] = thing_of_task(options["thing_name"], task_vars, self._templar)
        aws = aws_environment(options, self.task_environment())
        result, _tokens = self.run_with_keys("iotops.tunnel.tunnel_info", options, task_vars, aws)
        return result
