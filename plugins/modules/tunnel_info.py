#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe and list secure tunnels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel_info
short_description: Describe and list secure tunnels
version_added: 0.1.0
description:
  - Describes tunnels of AWS IoT Secure Tunneling, or of the self-hosted tunneling service, one by its ID, or those that
    are found by thing, status and tags. Never tells a token.
  - Each tunnel that is found takes a call of its own, of which AWS allows about one a second. Calls that are throttled
    are made again.
  - Always runs on the controller, whatever host the task is for, with the controller's Python. No C(delegate_to) is
    needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  all_things:
    description:
      - Whether to list the tunnels of all things, and those without one.
      - Set C(run_once) on such a task.
    type: bool
    default: false
  tunnel_id:
    description:
      - ID of a certain tunnel, whatever its thing.
    type: str
  status:
    description:
      - Whether to tell of tunnels that are open, closed, or both. A service forgets closed tunnels after some hours.
    type: str
    choices: [open, closed, any]
    default: open
  tags:
    description:
      - Tags that a tunnel must have. Those that M(iotops.tunnel.tunnel) opened have C(iotops:managed-by) with the
        value V(iotops.tunnel).
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
    details: Only reads.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.tunnel
"""

EXAMPLES = r"""
- name: See which open tunnels each device has
  iotops.tunnel.tunnel_info:
  register: found

- name: Find the open tunnels of all things of a site
  iotops.tunnel.tunnel_info:
    all_things: true
    tags:
      site: north
  run_once: true
  register: found

- name: Show whose device is not connected
  ansible.builtin.debug:
    msg: "{{ found.tunnels | selectattr('destination', 'equalto', 'disconnected') | map(attribute='thing_name') }}"
  run_once: true
"""

RETURN = r"""
region:
  description: AWS region of the tunnels.
  returned: always
  type: str
tunnels:
  description: The tunnels, newest first. Empty if there is none.
  returned: always
  type: list
  elements: dict
  contains:
    tunnel_id:
      description: ID of the tunnel.
      type: str
    tunnel_arn:
      description: Amazon resource name of the tunnel.
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
      description: Text that describes the tunnel, or null.
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
      description: Minutes from its opening until the service closes the tunnel.
      type: int
    created_at:
      description: When the tunnel was opened, in ISO 8601 form.
      type: str
    expires_at:
      description: When the service closes the tunnel, in ISO 8601 form.
      type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.iotops.tunnel.plugins.module_utils.aws_client import BOTO3_IMPORT_ERROR, ControlApiError
from ansible_collections.iotops.tunnel.plugins.module_utils.control_api import ControlApi, Tunnel
from ansible_collections.iotops.tunnel.plugins.module_utils.exchange import EXCHANGE_VARIABLE, Exchange
from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import INFO_OPTIONS, REQUIRED_TOGETHER


def find(api: ControlApi, options: dict) -> list[Tunnel]:
    """Return the tunnels that the options describe."""
    status = None if options["status"] == "any" else options["status"]
    if options["tunnel_id"]:
        found = [tunnel for tunnel in api.described(options["tunnel_id"]) if status in (None, tunnel.status)]
    else:
        thing = None if options["all_things"] else valid_name("thing", options["thing_name"])
        found = api.tunnels(thing, status)
    tags = {key: str(value) for key, value in options["tags"].items()}
    return [tunnel for tunnel in found if tags.items() <= tunnel.tags.items()]


def facts(tunnel: Tunnel) -> dict:
    """Return what is known of a tunnel, ready for JSON."""
    return {
        "tunnel_id": tunnel.tunnel_id,
        "tunnel_arn": tunnel.arn,
        "status": tunnel.status,
        "thing_name": tunnel.thing_name,
        "services": list(tunnel.services),
        "description": tunnel.description,
        "tags": tunnel.tags,
        "source": tunnel.source,
        "destination": tunnel.destination,
        "lifetime": tunnel.lifetime,
        "created_at": tunnel.created_at.isoformat() if tunnel.created_at else None,
        "expires_at": tunnel.expires_at.isoformat() if tunnel.expires_at else None,
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=INFO_OPTIONS, required_together=REQUIRED_TOGETHER, supports_check_mode=True)
    if BOTO3_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("boto3"), exception=BOTO3_IMPORT_ERROR)
    if EXCHANGE_VARIABLE not in os.environ:
        module.fail_json(
            msg="iotops.tunnel.tunnel_info works through its action plugin only. Call it as a task of that name."
        )
    try:
        environment = Exchange(os.environ[EXCHANGE_VARIABLE]).environment()
        api = ControlApi(environment, validate_certs=module.params["validate_certs"])
        tunnels = [facts(tunnel) for tunnel in find(api, module.params)]
    except (ControlApiError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, region=api.region, tunnels=tunnels)


if __name__ == "__main__":
    main()
