#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open, reuse, rotate and close secure tunnels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel
short_description: Open, reuse, rotate and close multiplexed secure tunnels
version_added: 0.1.0
description:
  - Opens a tunnel of AWS IoT Secure Tunneling, or of the self-hosted tunneling service, to a device, and hands its
    source token to the hub on the controller. From then on the connection plugin P(iotops.tunnel.ssh#connection)
    reaches the device.
  - An open tunnel to the same thing with the same services is used again, if this module opened it, which it knows by
    the tag C(iotops:managed-by). Where the hub does not hold its token (any more), the source token is rotated.
  - Always runs on the controller, whatever host the task is for, with the controller's Python. No C(delegate_to) is
    needed.
author:
  - The iotops.tunnel authors (@iotops)
options:
  state:
    description:
      - V(present) makes sure that an open tunnel exists and that the hub holds its source token.
      - V(absent) closes O(tunnel_id), or all open tunnels to O(thing_name) that this module opened.
    type: str
    choices: [present, absent]
    default: present
  tunnel_id:
    description:
      - ID of a certain tunnel. Without it, the tunnel is found by its thing and services.
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
      - The task fails, with the reason, where a port cannot be had. Services for SSH have none.
    type: list
    elements: str
    default: []
  return_tokens:
    description:
      - Whether the tokens that this task got are in RV(tokens). They are secrets. Set C(no_log) on such a task.
    type: bool
    default: false
  tunnel_endpoint:
    description:
      - C(HOST:PORT) of the data plane, for a tunneling service other than AWS.
      - The environment variable E(AWSIOT_TUNNEL_ENDPOINT) is used when this is not set.
    type: str
  tunnel_capath:
    description:
      - Directory or file of the certificates of the authorities that are trusted for the data plane.
      - The environment variable E(AWSIOT_TUNNEL_CAPATH) is used when this is not set.
    type: path
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

    - name: Close the tunnel
      iotops.tunnel.tunnel:
        state: absent
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
ports:
  description: Ports on the controller's loopback address, by the service that they lead to.
  returned: O(state=present), except in check mode
  type: dict
  sample: {"HTTP1": 40123}
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

import os
import time

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.iotops.tunnel.plugins.module_utils.aws_client import BOTO3_IMPORT_ERROR, ControlApiError
from ansible_collections.iotops.tunnel.plugins.module_utils.control_api import ControlApi, Tunnel
from ansible_collections.iotops.tunnel.plugins.module_utils.exchange import EXCHANGE_VARIABLE, Exchange
from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import REQUIRED_TOGETHER, TUNNEL_OPTIONS

OUR_TAG_PREFIX = "iotops:"
OUR_TAGS = {"iotops:managed-by": "iotops.tunnel"}

# DescribeTunnel is allowed about once a second, over all tunnels of an account.
SECONDS_BETWEEN_LOOKS = 1.0


class TunnelTask:
    """One run of the module: the options, the control API, and the result as it grows."""

    def __init__(self, api: ControlApi, options: dict, exchange: Exchange, check_mode: bool) -> None:
        self.api = api
        self.options = options
        self.exchange = exchange
        self.check_mode = check_mode
        self.result = {"changed": False, "region": api.region, "thing_name": options["thing_name"]}

    def run(self) -> None:
        """Do what O(state) asks for."""
        if self.options["state"] == "absent":
            self.close()
        else:
            self.provide()

    def provide(self) -> None:
        """Find or open the tunnel, bring it up to date, and wait for the device if that is asked for."""
        found = self.find()
        if found is None:
            tunnel = self.open()
        else:
            tunnel = self.reconcile(found)
            self.rotate(tunnel)
        self.report(tunnel, found)
        if tunnel and self.options["wait_for_destination"] and not self.check_mode:
            self.report(self.wait_for_destination(tunnel), found)

    def find(self) -> Tunnel | None:
        """Find the tunnel that is meant, if it is open."""
        if self.options["tunnel_id"]:
            tunnel = self.api.describe(self.options["tunnel_id"])
            if not tunnel.is_open:
                raise ControlApiError(
                    f"Tunnel {tunnel.tunnel_id} is closed, and no closed tunnel opens again. Leave out tunnel_id to "
                    "open another."
                )
            return tunnel
        wanted = set(self.options["services"])
        return next((each for each in self.ours() if set(each.services) == wanted), None)

    def ours(self):
        """Generate the open tunnels to the thing that this module opened, newest first."""
        for tunnel in self.api.open_tunnels(self.options["thing_name"]):
            if OUR_TAGS.items() <= tunnel.tags.items():
                yield tunnel

    def open(self) -> Tunnel | None:
        """Open a tunnel; say None in check mode."""
        self.result["changed"] = True
        if self.check_mode:
            return None
        tunnel_id, tokens = self.api.open(
            self.options["thing_name"],
            self.options["services"],
            self.options["lifetime"],
            self.options["description"],
            {**(self.options["tags"] or {}), **OUR_TAGS},
        )
        self.exchange.put_tokens(tokens)
        self.result["tunnel_id"] = tunnel_id
        return self.api.describe(tunnel_id)

    def reconcile(self, tunnel: Tunnel) -> Tunnel:
        """Give a tunnel the tags that it should have, and say what it is then."""
        if self.options["tags"] is None:
            return tunnel
        kept = {key: value for key, value in tunnel.tags.items() if key.startswith(OUR_TAG_PREFIX)}
        wanted = {**self.options["tags"], **kept}
        missing = dict(wanted.items() - tunnel.tags.items())
        surplus = sorted(tunnel.tags.keys() - wanted.keys())
        if not missing and not surplus:
            return tunnel
        self.result["changed"] = True
        if not self.check_mode:
            if surplus:
                self.api.untag(tunnel, surplus)
            if missing:
                self.api.tag(tunnel, missing)
        return Tunnel(**{**vars(tunnel), "tags": wanted})

    def rotate(self, tunnel: Tunnel) -> None:
        """Rotate the tokens that O(rotate) names."""
        if not self.options["rotate"]:
            return
        self.result["changed"] = True
        if not self.check_mode:
            self.exchange.put_tokens(self.api.rotate(tunnel, self.options["rotate"]))

    def wait_for_destination(self, tunnel: Tunnel) -> Tunnel:
        """Wait until the device is connected, and say what the tunnel is then."""
        seconds = self.options["wait_for_destination"]
        deadline = time.monotonic() + seconds
        while tunnel.destination != "connected":
            if time.monotonic() >= deadline:
                raise ControlApiError(
                    f"{tunnel.thing_name or 'The device'} did not connect to tunnel {tunnel.tunnel_id} in {seconds} s. "
                    "See whether its agent runs and has a network, then rotate the destination token: that delivers it "
                    "anew."
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
            tunnel = self.api.describe(tunnel.tunnel_id)
            if not tunnel.is_open:
                raise ControlApiError(
                    f"Tunnel {tunnel.tunnel_id} was closed while this task waited for the device. Open another."
                )
        return tunnel

    def close(self) -> None:
        """Close the tunnel that is named, or all of ours to the thing."""
        tunnels = self.named_tunnel() if self.options["tunnel_id"] else list(self.ours())
        closed = [tunnel.tunnel_id for tunnel in tunnels]
        if not self.check_mode:
            for tunnel_id in closed:
                self.api.close(tunnel_id)
        self.result.update(
            changed=bool(closed),
            closed=closed,
            status="closed",
            diff={"before": {"open": closed}, "after": {"open": []}},
        )

    def named_tunnel(self) -> list[Tunnel]:
        """The tunnel with the ID that is given, unless it is closed or unknown."""
        return [tunnel for tunnel in self.api.described(self.options["tunnel_id"]) if tunnel.is_open]

    def report(self, tunnel: Tunnel | None, before: Tunnel | None) -> None:
        """Put a tunnel into the result; None stands for the one that check mode does not open."""
        if tunnel is None:
            tags = {**(self.options["tags"] or {}), **OUR_TAGS}
            after = {"status": "open", "services": self.options["services"], "tags": tags}
            self.result.update(status="closed", services=self.options["services"])
        else:
            after = _settings(tunnel)
            self.result.update(
                tunnel_id=tunnel.tunnel_id,
                tunnel_arn=tunnel.arn,
                thing_name=tunnel.thing_name or self.options["thing_name"],
                status=tunnel.status,
                services=list(tunnel.services),
                tags=tunnel.tags,
                source=tunnel.source,
                destination=tunnel.destination,
                expires_at=tunnel.expires_at.isoformat() if tunnel.expires_at else None,
            )
        self.result["diff"] = {"before": _settings(before) if before else {}, "after": after}


def _settings(tunnel: Tunnel) -> dict:
    return {"status": tunnel.status, "services": list(tunnel.services), "tags": tunnel.tags}


def _checked(options: dict) -> dict:
    """Return the options with tag values as text; raise ValueError where the API would refuse one."""
    if options["thing_name"]:
        valid_name("thing", options["thing_name"])
    elif not options["tunnel_id"]:
        raise ValueError("Say which tunnel is meant: set thing_name, or tunnel_id.")
    if not options["services"]:
        raise ValueError("A tunnel needs a service, such as SSH1. Leave out services to have SSH1 and HTTP1.")
    for service in options["services"]:
        valid_name("service", service)
    if not 1 <= options["lifetime"] <= 720:
        raise ValueError(f"A lifetime of {options['lifetime']} minutes is not possible. Set lifetime to 1 .. 720.")
    tags = options["tags"]
    return {**options, "tags": None if tags is None else {key: str(value) for key, value in tags.items()}}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec=TUNNEL_OPTIONS,
        required_together=REQUIRED_TOGETHER,
        supports_check_mode=True,
    )
    if BOTO3_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("boto3"), exception=BOTO3_IMPORT_ERROR)
    if EXCHANGE_VARIABLE not in os.environ:
        module.fail_json(
            msg="iotops.tunnel.tunnel works through its action plugin only. Call it as a task of that name."
        )
    exchange = Exchange(os.environ[EXCHANGE_VARIABLE])
    task = None
    try:
        options = _checked(module.params)
        api = ControlApi(exchange.environment(), validate_certs=options["validate_certs"])
        task = TunnelTask(api, options, exchange, module.check_mode)
        task.run()
    except (ControlApiError, ValueError) as error:
        module.fail_json(msg=str(error), **(task.result if task else {}))
    module.exit_json(**task.result)


if __name__ == "__main__":
    main()
