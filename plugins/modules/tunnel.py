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
  - Opens a tunnel of AWS IoT Secure Tunneling, or of the self-hosted tunneling service, to a device, and hands its
    source token to the hub on the controller. The connection plugin P(iotops.tunnel.ssh#connection) then reaches the
    device.
  - Reuses an open tunnel to the same thing with the same services, if this collection opened it for the same O(owner).
    Its tags C(iotops:managed-by) and C(iotops:owner) tell. Where the hub does not hold its token, the source token is
    rotated. Tunnels of other owners stay as they are.
  - All that can fail without a tunnel is checked before one is opened, for AWS charges for each. These are the names,
    the way to the data plane, and whether the registry knows the thing.
  - Always runs on the controller, whatever host the task is for. No C(delegate_to) is needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  state:
    description:
      - V(present) makes sure that an open tunnel exists and that the hub holds its source token.
      - V(absent) closes O(tunnel_id), whoever opened it, or else all open tunnels to O(thing_name) that this collection
        opened for O(owner).
    type: str
    choices: [present, absent]
    default: present
  tunnel_id:
    description:
      - ID of a certain tunnel. Without it, the tunnel is found by its thing, services and owner.
      - A tunnel of another owner is used only with O(take_over).
    type: str
  services:
    description:
      - Names of the services that the tunnel carries. The device maps each to an address of its own.
      - AWS allows three of them in a tunnel.
    type: list
    elements: str
    default: [SSH1, HTTP1]
  lifetime:
    description:
      - Minutes until a tunnel that is opened now is closed by the service, from 1 to 720.
      - Cannot be changed while a tunnel is open.
    type: int
    default: 720
  description:
    description:
      - Text that describes a tunnel that is opened now.
      - Cannot be changed while a tunnel is open.
    type: str
  tags:
    description:
      - Tags of the tunnel. If this is set, other tags are removed, but for those that start with C(iotops:).
    type: dict
  rotate:
    description:
      - Replaces the token of one end, or of both, of a tunnel that was open already. The old token is void then.
      - A new destination token reaches the device's agent by MQTT, like the first one.
    type: str
    choices: [source, destination, all]
  wait_for_destination:
    description:
      - Seconds to wait until the device is connected to the tunnel. V(0) does not wait.
    type: int
    default: 0
  ports:
    description:
      - Where services listen on the controller's loopback address, each as V(SERVICE=PORT), V(SERVICE=any) or
        V(SERVICE=off), for example V(HTTP1=5555). Services that are not named keep their port, or get any.
      - The port of a service for HTTP accepts only requests for the device's own name, see RV(urls). With V(,any-host)
        after it, as in V(HTTP1=5555,any-host), it accepts requests for any host, and so those of any web page that
        you open.
      - The task fails, with the reason, where a port cannot be had. Services for SSH have none.
    type: list
    elements: str
    default: []
  return_tokens:
    description:
      - Whether the tokens that this task got are in RV(tokens). They are secrets. Set C(no_log) on such a task.
    type: bool
    default: false
  owner:
    description:
      - Who tunnels are opened for. A tunnel keeps it in its tag C(iotops:owner).
      - The variable C(iotops_tunnel_owner), then the environment variable E(IOTOPS_TUNNEL_OWNER), are used when this is
        not set; by default, it is the user and the name of the controller, such as V(alice@jump1).
      - Jobs of a CI system, whose machine has another name each time, share an owner by setting it. Then not each job
        opens a tunnel.
    type: str
  take_over:
    description:
      - Whether to take over a tunnel that another owner opened.
      - With O(state=present), an open tunnel to the thing with the same services is used, whoever this collection
        opened it for, if O(owner) has none. It then belongs to O(owner), and its source token is rotated. That ends the
        connections of its previous owner, whose tasks fail with the name of the new one.
      - With O(state=absent), all open tunnels to the thing that this collection opened are closed, whoever for.
    type: bool
    default: false
  unregistered:
    description:
      - Whether a tunnel may be opened to a thing that the registry of things does not know, which AWS allows.
      - The registry is asked only before a tunnel is opened, and nothing follows from its answer if the caller may not
        ask it.
      - The variable C(iotops_tunnel_unregistered), then the environment variable E(IOTOPS_TUNNEL_UNREGISTERED), are
        used when this is not set; by default, it is V(false).
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
    - name: Open the tunnel, and wait a minute for the device
      iotops.tunnel.tunnel:
        wait_for_destination: 60

    - name: Replace the token that the device uses
      iotops.tunnel.tunnel:
        rotate: destination

    - name: Take a tunnel over from a colleague, whose connections end
      iotops.tunnel.tunnel:
        take_over: true

    - name: Close the tunnel
      iotops.tunnel.tunnel:
        state: absent

    - name: Use the tunnel that a job of the CI system left open
      iotops.tunnel.tunnel:
        owner: ci

    - name: Close the tunnels of all owners
      iotops.tunnel.tunnel:
        state: absent
        take_over: true
"""

RETURN = r"""
tunnel_id:
  description: ID of the tunnel. Not there if no tunnel exists.
  returned: O(state=present), except in check mode if there is none yet
  type: str
  sample: b2de92a3-b8ff-46c0-b0f2-afa28b00cecd
tunnel_arn:
  description: Amazon resource name of the tunnel.
  returned: if RV(tunnel_id) is
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
  returned: if RV(tunnel_id) is
  type: dict
source:
  description: Whether the source is V(connected) or V(disconnected). The hub is the source.
  returned: if RV(tunnel_id) is
  type: str
destination:
  description: Whether the destination, which is the device, is V(connected) or V(disconnected).
  returned: if RV(tunnel_id) is
  type: str
expires_at:
  description: When the service closes the tunnel, in ISO 8601 form.
  returned: if RV(tunnel_id) is
  type: str
region:
  description: AWS region of the tunnel.
  returned: always
  type: str
account:
  description: Account and region of the tunnel, and the address of the control API where that is not AWS's own.
  returned: always
  type: str
  sample: 123456789012/eu-central-1
ports:
  description: Ports on the controller's loopback address, by the service that they lead to.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": 40123}
urls:
  description: URLs of the device's web pages, for a browser on the controller, by service.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": "http://pump-7.localhost:40123/"}
closed:
  description: IDs of the tunnels that were closed.
  returned: O(state=absent)
  type: list
  elements: str
tokens:
  description: Access tokens that this task got, by the end that they are for.
  returned: if O(return_tokens) is true, and a tunnel was opened or a token rotated
  type: dict
"""
