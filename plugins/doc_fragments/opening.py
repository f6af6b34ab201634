# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options for plugins that open a tunnel if there is none to a device."""

from __future__ import annotations


class ModuleDocFragment:
    """For plugins, whose options get their values from variables, unlike those of modules."""

    DOCUMENTATION = r"""
options:
  open:
    description:
      - What to do if the hub has no working tunnel to the thing, or only one that expires soon. AWS charges for each
        tunnel that is opened, whatever its lifetime. Rotating its token is free.
      - With V(reuse), an open tunnel of the same O(owner) is reused by rotating its source token. If there is none, one
        is opened. Tunnels of other owners and their connections are not touched.
      - With V(take_over), an open tunnel of any owner is used if this collection opened it. O(owner) becomes its owner,
        and the previous owner's connections are closed; their tasks fail with the name of the new owner. If there is no
        such tunnel, one is opened.
      - With V(always), a new tunnel is opened.
      - With V(never), the device is unreachable until M(iotops.tunnel.tunnel) or the playbook C(iotops.tunnel.open) has
        opened a tunnel.
    type: string
    choices: [reuse, take_over, always, never]
    default: reuse
    env:
      - name: IOTOPS_TUNNEL_OPEN
    vars:
      - name: iotops_tunnel_open
    ini:
      - section: iotops_tunnel
        key: open
  owner:
    description:
      - Owner of the tunnels, stored in their tag C(iotops:owner).
      - By default the user and host name of the controller, such as V(alice@jump1). Set it for the jobs of a CI system,
        which run on machines with different names, so that they share tunnels instead of opening one each.
    type: string
    env:
      - name: IOTOPS_TUNNEL_OWNER
    vars:
      - name: iotops_tunnel_owner
    ini:
      - section: iotops_tunnel
        key: owner
  unregistered:
    description:
      - Whether a tunnel may be opened to a thing that is not in the thing registry. AWS allows this.
      - The registry is queried only before a tunnel is opened, and only if the caller has permission to do so.
    type: boolean
    default: false
    env:
      - name: IOTOPS_TUNNEL_UNREGISTERED
    vars:
      - name: iotops_tunnel_unregistered
    ini:
      - section: iotops_tunnel
        key: unregistered
  services:
    description:
      - Services that a new tunnel carries.
    type: list
    elements: string
    default: [SSH1, HTTP1]
    vars:
      - name: iotops_tunnel_services
  wait_for_destination:
    description:
      - Seconds to wait for the device to connect to a tunnel that has just been opened or taken over.
    type: int
    default: 30
    vars:
      - name: iotops_tunnel_wait
"""
