#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of iotops.tunnel.tunnel, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel
short_description: Open, reuse, rotate and close multiplexed secure tunnels
version_added: 0.1.0
description:
  - Opens a tunnel of AWS IoT Secure Tunneling, or of the self-hosted tunneling service, to a device, and passes its
    source token to the hub on the controller. The connection plugin P(iotops.tunnel.ssh#connection) can then reach the
    device.
  - Reuses an open tunnel to the same thing with the same services, if its tags C(iotops:managed-by) and
    C(iotops:owner) show that this collection opened it for the same O(owner). If the hub does not have its source
    token, the token is rotated. Tunnels of other owners are not changed.
  - AWS charges for each tunnel. Therefore, everything that can fail without a tunnel (the names, the route to the data
    plane, and whether the thing is registered) is checked before one is opened.
  - Always runs on the controller, whatever host the task is for. C(delegate_to) is not needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  state:
    description:
      - V(present) ensures that an open tunnel exists and that the hub holds its source token.
      - V(absent) closes O(tunnel_id), whoever opened it, or, without O(tunnel_id), all open tunnels to O(thing_name)
        that this collection opened for O(owner).
    type: str
    choices: [present, absent]
    default: present
  tunnel_id:
    description:
      - ID of the tunnel. Without it, the tunnel is found by its thing, services and owner.
      - A tunnel of another owner is used only with O(take_over).
    type: str
  services:
    description:
      - Names of the services that the tunnel carries. The device decides which address each leads to.
      - AWS allows three services per tunnel.
    type: list
    elements: str
    default: [SSH1, HTTP1]
  lifetime:
    description:
      - Minutes after which the service closes a new tunnel, from 1 to 720.
      - Cannot be changed while a tunnel is open.
    type: int
    default: 720
  description:
    description:
      - Description of a new tunnel.
      - Cannot be changed while a tunnel is open.
    type: str
  tags:
    description:
      - Tags of the tunnel. If this is set, all other tags are removed, except those that begin with C(iotops:).
    type: dict
  rotate:
    description:
      - Replaces the access tokens of one end, or of both, if the tunnel was already open. The old tokens become
        invalid.
      - A new destination token is sent to the device's agent by MQTT, like the first one.
    type: str
    choices: [source, destination, all]
  wait_for_destination:
    description:
      - Seconds to wait for the device to connect to the tunnel. V(0) does not wait.
    type: int
    default: 0
  ports:
    description:
      - Where services listen on the controller's loopback address, each as V(SERVICE=PORT), V(SERVICE=any) or
        V(SERVICE=off), for example V(HTTP1=5555). Services that are not listed keep their port, or get any free one.
      - The port of an HTTP service accepts only requests for the device's own name; see RV(urls). With V(,any-host), as
        in V(HTTP1=5555,any-host), it accepts requests for any host, including requests from any web page that you open.
      - If a port is not available, the task fails with the reason. SSH services have no port.
    type: list
    elements: str
    default: []
  return_tokens:
    description:
      - Whether to return the access tokens that this task obtained in RV(tokens). They are secrets, so set C(no_log)
        for the task.
    type: bool
    default: false
  owner:
    description:
      - The owner of the tunnels, stored in their tag C(iotops:owner).
      - Defaults to the variable C(iotops_tunnel_owner), then to the environment variable E(IOTOPS_TUNNEL_OWNER), then
        to the user and the host name of the controller, such as V(alice@jump1).
      - CI jobs run on machines with changing names. Set an owner that they share, so that they reuse one tunnel.
    type: str
  take_over:
    description:
      - Whether to take over a tunnel of another owner.
      - With O(state=present), if O(owner) has no open tunnel to the thing with the same services, one that this
        collection opened for another owner is used. It then belongs to O(owner), and its source token is rotated, which
        closes the previous owner's connections. That owner's tasks fail with a message that names the new owner.
      - With O(state=absent), all open tunnels to the thing that this collection opened are closed, whatever their
        owner.
    type: bool
    default: false
  unregistered:
    description:
      - Whether to open a tunnel to a thing that is not in the registry of things, which AWS allows.
      - The registry is queried only before a tunnel is opened. Without permission to query it, the check is skipped.
      - Defaults to the variable C(iotops_tunnel_unregistered), then to the environment variable
        E(IOTOPS_TUNNEL_UNREGISTERED), then to V(false).
    type: bool
extends_documentation_fragment:
  - iotops.tunnel.aws
  - iotops.tunnel.aws.module
  - iotops.tunnel.attributes
  - iotops.tunnel.attributes.action
  - iotops.tunnel.thing
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: iotops.tunnel.tunnel_info
  - module: iotops.tunnel.health
  - plugin: iotops.tunnel.ssh
    plugin_type: connection
"""

EXAMPLES = r"""
- name: Open a tunnel to each device
  hosts: devices
  gather_facts: false
  tasks:
    - name: Open the tunnel, and wait up to a minute for the device
      iotops.tunnel.tunnel:
        wait_for_destination: 60

    - name: Replace the token that the device uses
      iotops.tunnel.tunnel:
        rotate: destination

    - name: Take over a colleague's tunnel, which closes their connections
      iotops.tunnel.tunnel:
        take_over: true

    - name: Close the tunnel
      iotops.tunnel.tunnel:
        state: absent

    - name: Use the tunnel that a CI job left open
      iotops.tunnel.tunnel:
        owner: ci

    - name: Close the tunnels of all owners
      iotops.tunnel.tunnel:
        state: absent
        take_over: true
"""

RETURN = r"""
tunnel_id:
  description: ID of the tunnel.
  returned: O(state=present), except in check mode if no tunnel exists yet
  type: str
  sample: b2de92a3-b8ff-46c0-b0f2-afa28b00cecd
tunnel_arn:
  description: Amazon Resource Name (ARN) of the tunnel.
  returned: if RV(tunnel_id) is returned
  type: str
status:
  description: Whether the tunnel is V(open) or V(closed).
  returned: always
  type: str
thing_name:
  description: Name of the thing.
  returned: always
  type: str
services:
  description: Names of the services that the tunnel carries.
  returned: O(state=present)
  type: list
  elements: str
tags:
  description: Tags of the tunnel.
  returned: if RV(tunnel_id) is returned
  type: dict
source:
  description: Whether the source, which is the hub, is V(connected) or V(disconnected).
  returned: if RV(tunnel_id) is returned
  type: str
destination:
  description: Whether the destination, which is the device, is V(connected) or V(disconnected).
  returned: if RV(tunnel_id) is returned
  type: str
expires_at:
  description: When the service closes the tunnel, in ISO 8601 format.
  returned: if RV(tunnel_id) is returned
  type: str
region:
  description: AWS region of the tunnel.
  returned: always
  type: str
account:
  description: Account and region of the tunnel, and the address of the control API if it is not AWS's own.
  returned: always
  type: str
  sample: 123456789012/eu-central-1
ports:
  description: Ports on the controller's loopback address, by service.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": 40123}
urls:
  description: URLs of the device's web pages, for a browser on the controller, by service.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": "http://pump-7.localhost:40123/"}
closed:
  description: IDs of the closed tunnels.
  returned: O(state=absent)
  type: list
  elements: str
tokens:
  description: Access tokens that this task obtained, by end (V(source), V(destination)).
  returned: if O(return_tokens) is true, and a tunnel was opened or a token rotated
  type: dict
"""
