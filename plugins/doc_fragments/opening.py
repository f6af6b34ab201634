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
      - With V(reuse), an open tunnel of the same O(owner) is used again by rotating its source token. If there is none,
        one is opened. Tunnels of other owners stay as they are, and so do their connections.
      - With V(take_over), an open tunnel of any owner is used, if this collection opened it. It belongs to O(owner)
        from then on, and the connections of whoever had it end; their tasks fail with the name of the new owner. If
        there is none, one is opened.
      - With V(always), a tunnel is opened.
      - With V(never), there is no way to the device until M(iotops.tunnel.tunnel) or the playbook
        C(iotops.tunnel.open) has opened a tunnel.
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
      - Who the tunnels are opened for, kept in their tag C(iotops:owner).
      - By default the user and the name of the controller, such as V(alice@jump1). Jobs of a CI system, whose machine
        has another name each time, share an owner by setting it, so that not each job opens a tunnel.
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
      - Whether a tunnel may be opened to a thing that the registry of things does not know, which AWS allows.
      - The registry is asked only before a tunnel is opened, and only if the caller may ask it.
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
