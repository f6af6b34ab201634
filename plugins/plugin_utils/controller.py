# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a module on the controller, whatever host it is the turn of.

A device cannot be reached before its tunnel is open; and what a module prints and is given must not pass through the
connection of a device, which logs it. The controller's own interpreter is the one that has boto3 beside Ansible.
"""

from __future__ import annotations

import os
import sys
import tempfile

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils.exchange import EXCHANGE_VARIABLE, Exchange
from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import AWS_OPTIONS

# A module gets these as environment variables, by way of a private file.
_NOT_FOR_ARGUMENTS = set(AWS_OPTIONS) - {"validate_certs"}


class ControllerAction(ActionBase):
    """An action whose modules run on the controller, without become, delegation, or the task's C(environment)."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def task_environment(self) -> dict[str, str]:
        """The task's C(environment), templated. It is kept off command lines, where it would be seen."""
        environment: dict[str, str] = {}
        self._compute_environment_string(environment)
        return environment

    def run_with_keys(
        self, module: str, options: dict, task_vars: dict, aws: dict[str, str]
    ) -> tuple[dict, dict[str, str]]:
        """Run a module that calls the control API, as C(aws) says. Return its result, and tokens by end.

        It may have got tokens even if it failed afterwards.
        """
        given = {name: value for name, value in options.items() if value is not None}
        arguments = {name: value for name, value in given.items() if name not in _NOT_FOR_ARGUMENTS}
        descriptor, path = tempfile.mkstemp(prefix="iotops-tunnel-", dir=constants.DEFAULT_LOCAL_TMP)
        os.close(descriptor)
        try:
            exchange = Exchange(path)
            exchange.put_environment(aws)
            result = self.run_on_controller(module, arguments, task_vars, environment={EXCHANGE_VARIABLE: path})
            return result, exchange.tokens()
        finally:
            os.unlink(path)

    def run_on_controller(self, module: str, arguments: dict, task_vars: dict, *, environment: dict[str, str]) -> dict:
        """Run a module and return its result. C(environment) is seen by everybody: no secrets."""
        task, connection, play_context = self._task, self._connection, self._play_context
        self._play_context = play_context.copy()
        # A device's shell (ansible_shell_executable, ansible_shell_type) need not exist here.
        self._play_context.executable = constants.DEFAULT_EXECUTABLE
        self._play_context.shell = None
        self._connection = self._local_connection()
        self._task = task.copy(exclude_parent=True)
        self._task.delegate_to = None
        self._task.environment = [environment]
        try:
            variables = {**task_vars, "ansible_python_interpreter": sys.executable}
            return self._execute_module(module_name=module, module_args=arguments, task_vars=variables)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
            self._task, self._connection, self._play_context = task, connection, play_context

    def _local_connection(self):
        connection = self._shared_loader_obj.connection_loader.get("ansible.builtin.local", self._play_context)
        # Arguments go through a pipe, and no copy of them lies in a file.
        connection.set_options(direct={"pipelining": True})
        connection._shell.set_options()
        return connection
