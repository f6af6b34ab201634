# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the connection plugin, for Ansible's workers. This rests on internals of ansible-core's configuration.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import multiprocessing

from ansible import constants
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.connection import ssh
from ansible_collections.iotops.tunnel.plugins.doc_fragments import account, opening


def define_options(name: str, documentation: str) -> None:
    """Define the options of a connection that extends ssh, before Ansible reads them from its documentation.

    Ansible forks a worker for each task of each host. Each would read the documentation with a loader that records the
    position of each value. That takes 44 ms of processor time in place of 27 with
    ansible-playbook (medians of 48 workers each, on a busy machine).

    In a process that is not a worker, nothing is defined, and Ansible reads the documentation. The same holds if an
    option is a template: how a template is marked as trusted depends on the release of ansible-core.

    Args:
        name: the plugin's Python module, which is the plugin's name for Ansible.
        documentation: the plugin's own. It extends iotops.tunnel.opening, .account and .ssh.
    """
    if multiprocessing.parent_process() is None:
        return
    try:
        # ansible-playbook has read the options of ssh before it forks; ansible has not.
        options = dict(constants.config.get_configuration_definitions("connection", "ssh"))
        define = constants.config.initialize_plugin_configuration_definitions
    except AttributeError:
        # A later ansible-core may not have these.
        return
    texts = [documentation, opening.ModuleDocFragment.DOCUMENTATION, account.ModuleDocFragment.DOCUMENTATION]
    if not options:
        texts.append(ssh.DOCUMENTATION)
    if any("{{" in text for text in texts):
        return
    for text in reversed(texts):
        for option, fields in yaml_load(text)["options"].items():
            options[option] = {**options.get(option, {}), **(fields or {})}
    define("connection", name, options)
