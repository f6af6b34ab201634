#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of iotops.tunnel.tunnel, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel
short_description: Open, reuse, rotate and close multiplexed secure tunnels
version_added: 0.1.0
description:
  - Opens a tunnel to a device, with AWS IoT Secure Tunneling or the self-hosted tunneling service, and gives its source
    token to the hub on the controller. The connection plugin P(iotops.tunnel.ssh#connection) can then reach the device.
  - Reuses an open tunnel to the same thing with the same services if its tags C(iotops:managed-by) and C(iotops:owner)
    show that this collection opened it for the same O(owner). If the hub does not have its source token, the token is
    rotated. Tunnels of other owners are not touched.
  - AWS charges for each tunnel, so what can be checked without one is checked before it is opened. These are the names,
    the route to the data plane, and whether the thing is in the registry.
  - Always runs on the controller, whatever the task's host. C(delegate_to) is not needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  state:
    description:
      - V(present) ensures that there is an open tunnel and that the hub has its source token.
      - V(absent) closes O(tunnel_id), whoever opened it. Without O(tunnel_id), it closes all open tunnels to
        O(thing_name) that this collection opened for O(owner).
    type: str
    choices: [present, absent]
    default: present
  tunnel_id:
    description:
      - ID of the tunnel to use. By default, the tunnel is found by its thing, services and owner.
      - A tunnel of another owner is used only with O(take_over).
    type: str
  services:
    description:
      - Names of the services that the tunnel carries. The device maps each of them to an address.
      - AWS allows up to three services per tunnel.
    type: list
    elements: str
    default: [SSH1, HTTP1]
  lifetime:
    description:
      - Minutes after which the service closes a new tunnel, from 1 to 720.
      - The lifetime of an open tunnel cannot be changed.
    type: int
    default: 720
  description:
    description:
      - Description of a new tunnel.
      - The description of an open tunnel cannot be changed.
    type: str
  tags:
    description:
      - Tags of the tunnel. If this is set, other tags are removed, except for those that begin with C(iotops:).
    type: dict
  rotate:
    description:
      - Which token to replace if the tunnel was already open, or both of them. The old token becomes invalid.
      - A new destination token is sent to the device's agent by MQTT, like the first one.
    type: str
    choices: [source, destination, all]
  wait_for_destination:
    description:
      - Seconds to wait for the device to connect to the tunnel. With V(0), the task does not wait.
    type: int
    default: 0
  ports:
    description:
      - Ports of services on the controller's loopback address, each as V(SERVICE=PORT), V(SERVICE=any) or
        V(SERVICE=off), for example V(HTTP1=5555). Other services keep their port, or get a free one.
      - The port of an HTTP service accepts only requests to the device's own host name, see RV(urls). With V(,any-host)
        appended, as in V(HTTP1=5555,any-host), it accepts requests to any host name, including those that any web page
        in your browser can make.
      - The task fails if a port is not available. SSH services have no port.
    type: list
    elements: str
    default: []
  return_tokens:
    description:
      - Whether to return the tokens that this task obtained, in RV(tokens). They are secrets, so set C(no_log) on the
        task.
    type: bool
    default: false
  owner:
    description:
      - Owner of the tunnels, stored in their tag C(iotops:owner).
      - The variable C(iotops_tunnel_owner), then the environment variable E(IOTOPS_TUNNEL_OWNER), are used when this is
        not set. By default it is the user and host name of the controller, such as V(alice@jump1).
      - Set it for the jobs of a CI system, which run on machines with different names, so that they share tunnels
        instead of opening one each.
    type: str
  take_over:
    description:
      - Whether to take over a tunnel that another owner opened.
      - With O(state=present), if O(owner) has no open tunnel to the thing with the same services, one of another owner
        is used, provided that this collection opened it. O(owner) becomes its owner, and its source token is rotated.
        This closes the previous owner's connections; their tasks fail with the name of the new owner.
      - With O(state=absent), all open tunnels to the thing that this collection opened are closed, whoever owns them.
    type: bool
    default: false
  unregistered:
    description:
      - Whether a tunnel may be opened to a thing that is not in the thing registry. AWS allows this.
      - The registry is queried only before a tunnel is opened. The check is skipped if the caller has no permission for
        it.
      - The variable C(iotops_tunnel_unregistered), then the environment variable E(IOTOPS_TUNNEL_UNREGISTERED), are
        used when this is not set. The default is V(false).
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

    - name: Take over a colleague's tunnel, which closes the colleague's connections
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
  description: ID of the tunnel. Absent if there is no tunnel.
  returned: O(state=present), except in check mode if there is no tunnel yet
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
  description: Account and region of the tunnel, and the address of the control API if it is not AWS's.
  returned: always
  type: str
  sample: 123456789012/eu-central-1
ports:
  description: Ports on the controller's loopback address, by service.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": 40123}
urls:
  description: URLs of the device's web pages for a browser on the controller, by service.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": "http://pump-7.localhost:40123/"}
closed:
  description: IDs of the tunnels that were closed.
  returned: O(state=absent)
  type: list
  elements: str
tokens:
  description: Access tokens that this task obtained, by the end of the tunnel that uses them.
  returned: if O(return_tokens) is true, and a tunnel was opened or a token rotated
  type: dict
"""
