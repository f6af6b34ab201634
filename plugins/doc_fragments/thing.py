# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option that names a module's thing."""

from __future__ import annotations


class ModuleDocFragment:
    """The option of all modules that run on the controller."""

    DOCUMENTATION = r"""
options:
  thing_name:
    description:
      - Name of the thing, which is the device's name in AWS IoT.
      - Defaults to the variable C(iotops_tunnel_thing), then to the host's name in the inventory.
    type: str
"""
