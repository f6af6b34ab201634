# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the ssh connection that is installed here, whichever release of ansible-core that is."""

from __future__ import annotations

import json

import yaml
from ansible.module_utils.common.yaml import SafeLoader  # libyaml's, where there is one
from ansible.plugins.connection import ssh

# These speak of ansible-core's releases; in a collection's documentation they would be read as this collection's.
_CORE_RELEASE_KEYS = ("version_added", "deprecated")


class ModuleDocFragment:
    """Options of C(ansible.builtin.ssh): 24 in ansible-core 2.18, 28 in 2.19, and read from it rather than copied."""

    # An instance attribute on purpose: ansible-test's sanity checks import the class without a usable ansible-core.
    def __init__(self):
        # In each worker, and so for each task of each host: 6 ms, where yaml.safe_load takes 32.
        options = yaml.load(ssh.DOCUMENTATION, Loader=SafeLoader)["options"]  # noqa: S506
        self.DOCUMENTATION = json.dumps({"options": _without_core_releases(options)})


def _without_core_releases(value):
    if isinstance(value, dict):
        return {key: _without_core_releases(item) for key, item in value.items() if key not in _CORE_RELEASE_KEYS}
    if isinstance(value, list):
        return [_without_core_releases(item) for item in value]
    return value
