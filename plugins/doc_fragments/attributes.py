# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes of modules, such as check mode and diff mode, in ansible-core's wording."""

from __future__ import annotations


class ModuleDocFragment:
    """A module that extends this fragment states under C(attributes) how it supports each of them."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff
      mode.
"""

    # For modules that are action plugins, which run on the controller.
    ACTION = r"""
options: {}
attributes:
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the
      controller.
    support: full
    details: Runs entirely on the controller, whatever host the task is for.
  async:
    description: Supports being used with the C(async) keyword.
    support: none
  become:
    description: Is usable alongside C(become) keywords.
    support: none
    details: These keywords have no effect.
  bypass_host_loop:
    description: Forces a C(global) task that does not execute per host, this bypasses per host templating and serial,
      throttle and other loop considerations.
    support: none
  delegation:
    description: Can be used in conjunction with C(delegate_to) and related keywords.
    support: none
    details: The thing is that of the host that the task is for, not of the delegate.
  platform:
    description: Target OS/families that can be operated against.
    support: full
    platforms: posix
"""
