#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of iotops.tunnel.tunnel_info, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel_info
short_description: Describe and list secure tunnels
version_added: 0.1.0
description:
  - Describes tunnels of AWS IoT Secure Tunneling, or of the self-hosted tunneling service, either one by its ID, or all
    that match a thing, a status and tags. Never returns tokens.
  - Each tunnel found requires a separate API call, and AWS allows about one per second. Throttled calls are retried.
  - Always runs on the controller, whatever host the task is for. C(delegate_to) is not needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  all_things:
    description:
      - Whether to list the tunnels of all things, and those without a thing.
      - Set C(run_once) for such a task.
    type: bool
    default: false
  tunnel_id:
    description:
      - ID of one tunnel, of any thing.
    type: str
  status:
    description:
      - Whether to return open tunnels, closed tunnels, or both. Closed tunnels are deleted after some hours.
    type: str
    choices: [open, closed, any]
    default: open
  tags:
    description:
      - Tags that a tunnel must have. Tunnels that this collection opened have the tags C(iotops:managed-by), with the
        value V(iotops.tunnel), and C(iotops:owner).
    type: dict
    default: {}
extends_documentation_fragment:
  - iotops.tunnel.aws
  - iotops.tunnel.aws.module
  - iotops.tunnel.attributes
  - iotops.tunnel.attributes.action
  - iotops.tunnel.thing
attributes:
  check_mode:
    support: full
    details: Read-only.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.tunnel
"""

EXAMPLES = r"""
- name: Find the open tunnels of each device
  iotops.tunnel.tunnel_info:
  register: found

- name: Find the open tunnels of all things at a site
  iotops.tunnel.tunnel_info:
    all_things: true
    tags:
      site: north
  run_once: true
  register: found

- name: Show which devices are not connected
  ansible.builtin.debug:
    msg: "{{ found.tunnels | selectattr('destination', 'equalto', 'disconnected') | map(attribute='thing_name') }}"
  run_once: true
"""

RETURN = r"""
region:
  description: AWS region of the tunnels.
  returned: always
  type: str
account:
  description: Account and region of the tunnels, and the address of the control API if it is not AWS's own.
  returned: always
  type: str
  sample: 123456789012/eu-central-1
tunnels:
  description: The tunnels, newest first. Empty if there are none.
  returned: always
  type: list
  elements: dict
  contains:
    tunnel_id:
      description: ID of the tunnel.
      type: str
    tunnel_arn:
      description: Amazon Resource Name (ARN) of the tunnel.
      type: str
    status:
      description: Whether the tunnel is V(open) or V(closed).
      type: str
    thing_name:
      description: Name of the thing, or null.
      type: str
    services:
      description: Names of the services that the tunnel carries.
      type: list
      elements: str
    description:
      description: Description of the tunnel, or null.
      type: str
    owner:
      description: Owner for whom this collection opened the tunnel, or null.
      type: str
    tags:
      description: Tags of the tunnel.
      type: dict
    source:
      description: Whether the source is V(connected) or V(disconnected).
      type: str
    destination:
      description: Whether the destination, which is the device, is V(connected) or V(disconnected).
      type: str
    lifetime:
      description: Minutes between the opening of the tunnel and its expiry.
      type: int
    created_at:
      description: When the tunnel was opened, in ISO 8601 format.
      type: str
    expires_at:
      description: When the service closes the tunnel, in ISO 8601 format.
      type: str
"""
