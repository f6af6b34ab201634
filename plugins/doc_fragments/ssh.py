# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the ssh connection of the installed ansible-core."""

from __future__ import annotations

import json
from typing import Any

from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.connection import ssh

# These refer to releases of ansible-core. In the documentation of a collection, they would mean releases of that.
_CORE_RELEASE_KEYS = ("version_added", "deprecated")


class ModuleDocFragment:
    """Options of C(ansible.builtin.ssh): 24 in ansible-core 2.18, 28 in 2.19. They are read from it, not copied."""

    # An instance attribute: ansible-test's sanity checks import the class without a usable ansible-core.
    def __init__(self) -> None:
        # JSON is YAML.
        self.DOCUMENTATION = json.dumps({"options": _without_releases(yaml_load(ssh.DOCUMENTATION)["options"])})


def _without_releases(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_releases(item) for key, item in value.items() if key not in _CORE_RELEASE_KEYS}
    return [_without_releases(item) for item in value] if isinstance(value, list) else value
