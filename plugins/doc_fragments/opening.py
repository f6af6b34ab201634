# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a plugin that finds no tunnel to a device comes to one."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of plugins, which have their values from variables; those of modules have not."""

    DOCUMENTATION = r"""
options:
  open:
    description:
      - What to do where the hub holds no tunnel to the thing that works, or only one whose life is nearly over. AWS
        charges for each tunnel that is opened, however short its life, and nothing for the rotation of its token.
      - With V(reuse), the thing's open tunnel, if this collection opened it, is taken over by rotating its source
        token, which ends the connections of other controllers to this device. If there is none, one is opened.
      - With V(always), a tunnel is opened. Tunnels that somebody else opened stay as they are.
      - With V(never), there is no way to the device until M(iotops.tunnel.tunnel) or the playbook
        C(iotops.tunnel.open) has opened a tunnel.
    type: string
    choices: [reuse, always, never]
    default: reuse
    env:
      - name: IOTOPS_TUNNEL_OPEN
    vars:
      - name: iotops_tunnel_open
  services:
    description:
      - Services of a tunnel that is opened.
    type: list
    elements: string
    default: [SSH1, HTTP1]
    vars:
      - name: iotops_tunnel_services
  wait_for_destination:
    description:
      - Seconds that the device has to connect to a tunnel that was opened or taken over just now.
    type: int
    default: 30
    vars:
      - name: iotops_tunnel_wait
"""
