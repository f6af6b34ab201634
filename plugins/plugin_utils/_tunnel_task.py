# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task of iotops.tunnel.tunnel: its calls of the control API.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils._ports import parse_ports
from ansible_collections.iotops.tunnel.plugins.plugin_utils._control_api import ControlApi, Tunnel
from ansible_collections.iotops.tunnel.tunnelproxy.hub.tags import MANAGED_TAGS, OWNER_TAG

KEPT_TAG_PREFIX = "iotops:"

# AWS allows about one DescribeTunnel call a second for all tunnels of an account.
SECONDS_BETWEEN_LOOKS = 1.0


class TunnelTaskError(Exception):
    """The task fails, with a message for the operator."""


class TunnelTask:
    """One task: its options, the control API, and the result as it grows.

    Args:
        api: the control API of the thing's account.
        thing: the thing that the task works on.
        options: as C(checked_options) returns them.
        owner: the owner of new tunnels.
        unregistered: whether to open a tunnel to a thing that is not in the registry.

    Attributes:
        result: what the task returns, without tokens.
        tokens: access tokens that the task obtained, by end, even if it failed afterwards.
    """

    def __init__(
        self, api: ControlApi, thing: str, options: dict, *, owner: str, unregistered: bool, check_mode: bool
    ) -> None:
        self.api = api
        self.thing = thing
        self.options = options
        self.owner = owner
        self.unregistered = unregistered
        self.check_mode = check_mode
        self.result: dict = {"changed": False, "thing_name": thing}
        self.tokens: dict[str, str] = {}

    def run(self) -> None:
        """Do what the option C(state) requests."""
        if self.options["state"] == "absent":
            self.close()
        else:
            self.provide()

    def provide(self) -> None:
        """Find or open the tunnel, update it, and wait for the device if requested."""
        found = self.find()
        if found is None:
            tunnel = self.open()
        else:
            tunnel = self.reconcile(self.take_over(found))
            self.rotate(tunnel)
        self.report(tunnel, found)
        if tunnel and self.options["wait_for_destination"] and not self.check_mode:
            self.report(self.wait_for_destination(tunnel), found)

    def find(self) -> Tunnel | None:
        """Find the tunnel for the options, if it is open."""
        if self.options["tunnel_id"]:
            return self.named()
        wanted = set(self.options["services"])
        usable = [tunnel for tunnel in self.managed() if set(tunnel.services) == wanted]
        return next((tunnel for tunnel in usable if tunnel.owner == self.owner), None) or next(iter(usable), None)

    def named(self) -> Tunnel:
        """The tunnel with the ID C(tunnel_id), which must be open, and usable by this owner."""
        tunnel = self.api.describe(self.options["tunnel_id"])
        if tunnel.thing_name:
            # The name comes from the service, and goes into requests and to the hub.
            valid_name("thing", tunnel.thing_name)
        if not tunnel.is_open:
            raise TunnelTaskError(
                f"Tunnel {tunnel.tunnel_id} is closed, and cannot be opened again. Leave out tunnel_id to open another."
            )
        if self.is_anothers(tunnel) and not self.options["take_over"]:
            raise TunnelTaskError(
                f"Tunnel {tunnel.tunnel_id} belongs to {tunnel.owner}, not to {self.owner}. Leave out tunnel_id to "
                "open another, or set take_over, which closes its owner's connections."
            )
        return tunnel

    def is_anothers(self, tunnel: Tunnel) -> bool:
        """Whether the collection opened a tunnel for another owner."""
        return tunnel.is_ours and tunnel.owner not in (None, self.owner)

    def managed(self) -> Iterator[Tunnel]:
        """Generate the open tunnels to the thing that this task may use or close, newest first."""
        for tunnel in self.api.tunnels(self.thing, "open"):
            is_usable = self.options["take_over"] or tunnel.owner == self.owner
            if tunnel.is_ours and tunnel.thing_name == self.thing and is_usable:
                yield tunnel

    def open(self) -> Tunnel | None:
        """Open a tunnel; return None in check mode."""
        self.result["changed"] = True
        _check_ports(parse_ports(self.options["ports"]).ports, self.options["services"])
        self.api.prepare(self.thing, self.options["services"], unregistered=self.unregistered)
        if self.check_mode:
            return None
        opened = self.api.open(
            self.thing, self.options["services"], self.options["lifetime"], self.options["description"], self.new_tags()
        )
        # Stored at once: if the next call fails, the hub must get the tunnel all the same.
        self.tokens.update(opened.tokens)
        self.result.update(tunnel_id=opened.tunnel_id, tunnel_arn=opened.arn, services=self.options["services"])
        return self.api.describe(opened.tunnel_id)

    def new_tags(self) -> dict[str, str]:
        """The tags of a new tunnel."""
        return {**(self.options["tags"] or {}), **MANAGED_TAGS, OWNER_TAG: self.owner}

    def take_over(self, tunnel: Tunnel) -> Tunnel:
        """Take over a tunnel of another owner, and return its new state."""
        if not tunnel.is_ours or tunnel.owner == self.owner or not self.options["take_over"]:
            return tunnel
        self.result["changed"] = True
        if not self.check_mode:
            # First, so that the previous owner can see who has taken over the tunnel.
            self.api.tag(tunnel, {OWNER_TAG: self.owner})
            if self.options["rotate"] not in ("source", "all"):
                self.tokens.update(self.api.rotate(tunnel, "source"))
        return replace(tunnel, tags={**tunnel.tags, OWNER_TAG: self.owner})

    def reconcile(self, tunnel: Tunnel) -> Tunnel:
        """Update the tags of a tunnel, and return its new state."""
        if self.options["tags"] is None:
            return tunnel
        kept = {key: value for key, value in tunnel.tags.items() if key.startswith(KEPT_TAG_PREFIX)}
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
        return replace(tunnel, tags=wanted)

    def rotate(self, tunnel: Tunnel) -> None:
        """Rotate the tokens that the option C(rotate) names."""
        if not self.options["rotate"]:
            return
        self.result["changed"] = True
        if not self.check_mode:
            self.tokens.update(self.api.rotate(tunnel, self.options["rotate"]))

    def rotate_source(self) -> None:
        """Rotate the source token if the hub does not have it: nothing else keeps source tokens."""
        self.tokens.update(self.api.rotate(self.api.describe(self.result["tunnel_id"]), "source"))

    def wait_for_destination(self, tunnel: Tunnel) -> Tunnel:
        """Wait until the device is connected, and return the new state of the tunnel."""
        seconds = self.options["wait_for_destination"]
        deadline = time.monotonic() + seconds
        while tunnel.destination != "connected":
            if time.monotonic() >= deadline:
                raise TunnelTaskError(
                    f"{tunnel.thing_name or 'The device'} did not connect to tunnel {tunnel.tunnel_id} within "
                    f"{seconds} s. Check that its agent runs and has a network, then rotate the destination token, "
                    "which delivers it again."
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
            tunnel = self.api.describe(tunnel.tunnel_id)
            if not tunnel.is_open:
                raise TunnelTaskError(
                    f"Tunnel {tunnel.tunnel_id} was closed while this task waited for the device. Open another."
                )
        return tunnel

    def close(self) -> None:
        """Close the tunnel with the given ID, of any owner, or all tunnels of this owner to the thing."""
        if self.options["tunnel_id"]:
            tunnels = [tunnel for tunnel in self.api.described(self.options["tunnel_id"]) if tunnel.is_open]
        else:
            tunnels = list(self.managed())
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

    def report(self, tunnel: Tunnel | None, before: Tunnel | None) -> None:
        """Add a tunnel to the result; None is the tunnel that check mode does not open."""
        if tunnel is None:
            after = {"status": "open", "services": self.options["services"], "tags": self.new_tags()}
            self.result.update(status="closed", services=self.options["services"])
        else:
            after = _settings(tunnel)
            self.result.update(
                tunnel_id=tunnel.tunnel_id,
                tunnel_arn=tunnel.arn,
                thing_name=valid_name("thing", tunnel.thing_name or self.thing),
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


def _check_ports(ports: dict, services: list) -> None:
    """Raise an error if a port is given for a service that has none in a tunnel with these services."""
    for service, port in ports.items():
        if service not in services:
            raise TunnelTaskError(
                f"The option ports has {service}, which is not a service of the tunnel ({', '.join(services)}). Add it "
                "to services, or remove it from ports."
            )
        if port is not None and service.upper().startswith("SSH"):
            raise TunnelTaskError(
                f"{service} cannot have a port: other users of this machine could reach the device through it, and ssh "
                "needs none. Remove it from ports."
            )


def checked_options(options: dict) -> dict:
    """Return the options with tag values as strings; raise ValueError if the API would reject one."""
    if not options["services"]:
        raise ValueError("A tunnel needs a service, such as SSH1. Leave out services to have SSH1 and HTTP1.")
    for service in options["services"]:
        valid_name("service", service)
    if not 1 <= options["lifetime"] <= 720:
        raise ValueError(
            f"A lifetime of {options['lifetime']} minutes is not possible. Set lifetime to a value from 1 to 720."
        )
    tags = options["tags"]
    return {**options, "tags": None if tags is None else {str(key): str(value) for key, value in tags.items()}}
