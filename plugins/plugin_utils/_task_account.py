# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of a task's thing, and the owner of its tunnels, for action plugins.

From strong to weak: the task's options; the variables C(iotops_tunnel_*) of the host that the task is for; the task's
C(environment); the environment; the section C([iotops_tunnel]) of ansible.cfg.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from ansible_collections.iotops.tunnel.plugins.module_utils._tunnel_options import AWS_OPTIONS
from ansible_collections.iotops.tunnel.plugins.plugin_utils._aws_environment import caller_for, opener_for
from ansible_collections.iotops.tunnel.plugins.plugin_utils._device_facts import DeviceFactsError, refuse_device_facts
from ansible_collections.iotops.tunnel.tunnelproxy.hub.client import Caller

CONNECTION = "iotops.tunnel.ssh"

_VARIABLES = {**AWS_OPTIONS, "owner": {"type": "str"}, "unregistered": {"type": "bool"}}


class TaskAccount:
    """The account with which a task's action plugin calls the hub.

    Args:
        action: the action plugin.
        options: the task's options, validated; None if not set.
        task_vars: the variables of the host that the task is for.

    Attributes:
        caller: the caller of the hub.
        owner: the owner of new tunnels.
        unregistered: whether to open tunnels to things that are not in the registry.
    """

    def __init__(self, action: ActionBase, options: dict, task_vars: dict) -> None:
        variables = _host_variables(action._templar, task_vars)
        defaults = configured_options()
        try:
            self.caller: Caller = caller_for(
                options, variables=variables, task_environment=_task_environment(action), defaults=defaults
            )
        except ValueError as error:
            # With a cause, ansible-core would append that error's message.
            raise AnsibleActionFail(str(error)) from None
        self.owner, self.unregistered = opener_for(self.caller, options, variables, defaults)


def caller_of_task(action: ActionBase, options: dict, task_vars: dict) -> Caller:
    """Return the account for a task; see C(TaskAccount)."""
    return TaskAccount(action, options, task_vars).caller


def check_facts_of_task(task_vars: dict) -> None:
    """Fail the task if the device has set an option of the collection or a variable of Ansible itself."""
    try:
        refuse_device_facts(task_vars.get("ansible_facts"), task_vars["inventory_hostname"])
    except DeviceFactsError as error:
        raise AnsibleActionFail(str(error)) from None


def _host_variables(templar: Templar, task_vars: dict) -> dict:
    """The options that the host's variables set, converted to the types of the options."""
    found = {
        name: templar.template(task_vars[f"iotops_tunnel_{name}"])
        for name in _VARIABLES
        if task_vars.get(f"iotops_tunnel_{name}") is not None
    }
    checked = ArgumentSpecValidator({name: _VARIABLES[name] for name in found}).validate(found)
    if checked.error_messages:
        raise AnsibleActionFail(
            f"The variables iotops_tunnel_* of {task_vars['inventory_hostname']}: {' '.join(checked.error_messages)}"
        )
    return checked.validated_parameters


def _task_environment(action: ActionBase) -> dict[str, str]:
    """The task's C(environment), templated."""
    environment: dict = {}
    action._compute_environment_string(environment)
    return {name: str(value) for name, value in environment.items() if value is not None}


def configured_options() -> dict:
    """The values from ansible.cfg, and defaults: the connection plugin has all of these options."""
    name = connection_loader.get(CONNECTION, class_only=True)._load_name
    known = constants.config.get_configuration_definitions("connection", name)
    return {
        option: constants.config.get_config_value(option, plugin_type="connection", plugin_name=name)
        for option in _VARIABLES
        if option in known
    }
