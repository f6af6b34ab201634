# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the ssh connection that is installed here, whichever release of ansible-core that is."""

from __future__ import annotations

from ansible.plugins.connection import ssh

# These speak of ansible-core's releases; in a collection's documentation they would be read as this collection's.
_CORE_RELEASE_KEYS = ("version_added:", "deprecated:")


class ModuleDocFragment:
    """Options of C(ansible.builtin.ssh): 24 in ansible-core 2.18, 28 in 2.19, and read from it rather than copied."""

    # An instance attribute on purpose: ansible-test's sanity checks import the class without a usable ansible-core.
    def __init__(self):
        self.DOCUMENTATION = options_of(ssh.DOCUMENTATION)


def options_of(documentation, *, unwanted=_CORE_RELEASE_KEYS):
    """The options of a plugin's documentation, as YAML, without some keys and what they hold.

    Cut out, not parsed: each worker does it, and so each task of each host, and to parse and write it again takes 6 ms.
    """
    lines = iter(documentation.splitlines())
    options = [next(line for line in lines if line.strip() == "options:")]
    left_out = None
    for line in lines:
        depth = _depth(line)
        if depth is not None and depth <= _depth(options[0]):
            break
        if left_out is not None and (depth is None or depth > left_out):
            continue
        left_out = depth if line.lstrip().startswith(unwanted) else None
        if left_out is None:
            options.append(line)
    return "\n".join(options)


def _depth(line):
    """How far a line is indented, or None for an empty one."""
    return len(line) - len(line.lstrip()) if line.strip() else None
