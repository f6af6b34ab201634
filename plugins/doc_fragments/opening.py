# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plugin does if the hub holds no tunnel to a device."""

from __future__ import annotations


class ModuleDocFragment:
    """Options of plugins, which can be set by variables; the module iotops.tunnel.tunnel has its own."""

    DOCUMENTATION = r"""
options:
  open:
    description:
      - What to do if the hub holds no working tunnel to the thing, or only one that is about to expire. AWS charges for
        each tunnel that is opened, however briefly, but not for rotating its token.
      - V(reuse) reuses an open tunnel of the same O(owner) by rotating its source token. If there is none, it opens
        one. Tunnels of other owners, and their connections, are not affected.
      - V(take_over) uses an open tunnel of any owner, if this collection opened it. The tunnel then belongs to
        O(owner), and the previous owner's connections are closed; that owner's tasks fail with a message that names the
        new owner. If there is none, it opens one.
      - V(always) opens a tunnel.
      - V(never) opens none. The device is unreachable until M(iotops.tunnel.tunnel) or the playbook
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
      - The owner of the tunnels, stored in their tag C(iotops:owner).
      - Defaults to the user and the host name of the controller, such as V(alice@jump1). CI jobs run on machines with
        changing names. Set an owner that they share, so that they reuse one tunnel.
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
      - Whether to open a tunnel to a thing that is not in the registry of things, which AWS allows.
      - The registry is queried only before a tunnel is opened. Without permission to query it, the check is skipped.
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
      - Services of a new tunnel.
    type: list
    elements: string
    default: [SSH1, HTTP1]
    vars:
      - name: iotops_tunnel_services
  wait_for_destination:
    description:
      - Seconds to wait for the device to connect to a tunnel that was just opened or taken over.
    type: int
    default: 30
    vars:
      - name: iotops_tunnel_wait
"""
