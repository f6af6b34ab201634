#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of iotops.tunnel.health, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: health
short_description: Check a device's HTTP server through its tunnel
version_added: 0.1.0
description:
  - Sends one HTTP GET request through the tunnel that the hub holds for the device. Returns the status, the latency,
    and whether both ends of the tunnel are connected.
  - Fails, with the reason, if no tunnel is open, if the device is not connected or rejects the service, or if the
    status is not an expected one.
  - Runs on the controller. Never opens a tunnel; use M(iotops.tunnel.tunnel) for that.
author:
  - The iotops.tunnel authors (@iotops)
options:
  service:
    description:
      - Service of the tunnel that leads to the device's HTTP server.
    type: str
    default: HTTP1
  path:
    description:
      - Path to request, including the query if there is one.
    type: str
    default: /
  headers:
    description:
      - Request headers. C(Host) defaults to the thing's name.
    type: dict
    default: {}
  status_code:
    description:
      - HTTP status codes of a healthy device.
    type: list
    elements: int
    default: [200]
  return_content:
    description:
      - Whether to return the first 1 MiB of the response body in RV(content).
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for the tunnel, and then for each part of the response.
      - A destination proxy tries to reach its HTTP server for 10 seconds before it rejects the connection.
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
    details: Read-only. Check mode also sends the request.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.tunnel
"""

EXAMPLES = r"""
- name: Check each device
  iotops.tunnel.health:
    path: /health
    status_code: [200, 204]
  register: health

- name: Show the latency
  ansible.builtin.debug:
    msg: "{{ health.status }} after {{ health.latency_ms }} ms"
"""

RETURN = r"""
thing_name:
  description: Name of the thing.
  returned: always
  type: str
account:
  description: Account and region of the thing.
  returned: if the hub holds a tunnel for the thing
  type: str
  sample: 123456789012/eu-central-1
status:
  description: HTTP status code of the response.
  returned: if the device responded
  type: int
latency_ms:
  description: Milliseconds from opening the connection to receiving the response headers.
  returned: if the device responded
  type: float
content:
  description: The first 1 MiB of the response body.
  returned: if O(return_content) is true, and the device responded
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
  description: Round-trip time of a ping from the hub to the tunneling service, in milliseconds.
  returned: if the hub has measured it
  type: float
url:
  description: URL of the device's web pages, for a browser on the controller.
  returned: if the service has a port on the controller, and its name begins with C(HTTP)
  type: str
  sample: http://pump-7.localhost:40123/
"""
