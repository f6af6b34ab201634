#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of iotops.tunnel.health, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: health
short_description: Ask a device's HTTP server how it is, through its tunnel
version_added: 0.1.0
description:
  - Sends one HTTP GET through the tunnel that the hub holds for the device, and tells the answer's status, its latency,
    and whether both ends of the tunnel are connected.
  - Fails with the reason when no tunnel is open, the device is not connected or refuses the service, or the status is
    not an expected one.
  - Runs on the controller. Never opens a tunnel; M(iotops.tunnel.tunnel) does.
author:
  - The iotops.tunnel authors (@iotops)
options:
  service:
    description:
      - Name of the service that leads to the device's HTTP server.
    type: str
    default: HTTP1
  path:
    description:
      - Path to ask for, with its query if it has one.
    type: str
    default: /
  headers:
    description:
      - Headers of the request. C(Host) is the thing's name unless it is given here.
    type: dict
    default: {}
  status_code:
    description:
      - Statuses of a healthy device.
    type: list
    elements: int
    default: [200]
  return_content:
    description:
      - Whether the answer's body is in RV(content), up to 1 MiB of it.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for the tunnel, and then for each part of the answer.
      - A destination proxy tries for ten seconds to reach its HTTP server before it refuses.
    type: int
    default: 15
extends_documentation_fragment:
  - iotops.tunnel.aws
  - iotops.tunnel.aws.module
  - iotops.tunnel.attributes
  - iotops.tunnel.attributes.action
  - iotops.tunnel.thing
attributes:
  check_mode:
    support: full
    details: Only reads. The request is sent in check mode too.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.tunnel
"""

EXAMPLES = r"""
- name: Ask each device how it is
  iotops.tunnel.health:
    path: /health
    status_code: [200, 204]
  register: health

- name: Say how long the answer took
  ansible.builtin.debug:
    msg: "{{ health.status }} after {{ health.latency_ms }} ms"
"""

RETURN = r"""
thing_name:
  description: Name of the thing.
  returned: always
  type: str
account:
  description: Account and region that the thing is in.
  returned: if the hub holds a tunnel for the thing
  type: str
  sample: 123456789012/eu-central-1
status:
  description: HTTP status of the answer.
  returned: if there was an answer
  type: int
latency_ms:
  description: Milliseconds from opening the connection to the answer's headers.
  returned: if there was an answer
  type: float
content:
  description: The answer's body, up to 1 MiB of it.
  returned: if O(return_content) is true, and there was an answer
  type: str
source:
  description: Whether the source, which is the hub, is V(connected) or V(disconnected).
  returned: if the hub holds a tunnel for the thing
  type: str
destination:
  description: Whether the destination, which is the device, is V(connected), V(disconnected) or V(unknown).
  returned: if the hub holds a tunnel for the thing
  type: str
round_trip_ms:
  description: Milliseconds that a ping of the hub takes to the tunneling service and back.
  returned: if the hub has measured it
  type: float
url:
  description: URL of the device's web pages, for a browser on the controller.
  returned: if the service has a port on the controller, and its name begins with C(HTTP)
  type: str
  sample: http://pump-7.localhost:40123/
"""
