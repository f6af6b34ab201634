# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading the connection plugin in Ansible's workers, each of which is forked for one task of one host."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys

from ansible import constants
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.connection import ssh
from ansible.plugins.doc_fragments import connection_pipelining
from ansible_collections.iotops.tunnel.plugins.doc_fragments import account, opening
from ansible_collections.iotops.tunnel.plugins.doc_fragments.ssh import options_of


def import_module(name):
    """Import a module of this collection from its bytecode, as Python does; Ansible's loader compiles it each time."""
    if name in sys.modules:
        return sys.modules[name]
    package, leaf = name.rsplit(".", 1)
    folder = os.path.dirname(importlib.import_module(package).__file__)
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, f"{leaf}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setattr(sys.modules[package], leaf, module)
    return module


def define_options(name, documentation):
    """Tell Ansible the options of a connection that extends ssh, before it reads them from the documentation.

    It would do so with a loader that marks each value with its place in the file, in each worker: 20 ms of processor
    time, where this takes 4. ansible-playbook has read those of ssh itself before it forks; then it is 1.

    Elsewhere than in a worker it is left to Ansible, and so it is where a template would have to be marked as trusted:
    how that is done depends on the release of ansible-core.

    Args:
        name: the plugin's Python module, which is what Ansible calls it.
        documentation: the plugin's own; it extends iotops.tunnel.opening, .account and .ssh, and connection_pipelining.
    """
    if multiprocessing.parent_process() is None:
        return
    try:
        options = dict(constants.config.get_configuration_definitions("connection", "ssh"))
        define = constants.config.initialize_plugin_configuration_definitions
    except AttributeError:
        # Ansible does not promise that there will always be these.
        return
    texts = [documentation, opening.ModuleDocFragment.DOCUMENTATION, account.ModuleDocFragment.DOCUMENTATION]
    if not options:
        texts += [ssh.DOCUMENTATION, connection_pipelining.ModuleDocFragment.DOCUMENTATION]
    if any("{{" in text for text in texts):
        return
    for text in reversed(texts):
        for option, fields in yaml_load(options_of(text, unwanted=("description:",)))["options"].items():
            options[option] = {**options.get(option, {}), **(fields or {})}
    define("connection", name, options)
