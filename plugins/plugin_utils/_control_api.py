# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API of AWS IoT Secure Tunneling, as the hub's control processes call it.

PRIVATE: other collections must not import this. Reference: botocore's C(iotsecuretunneling) model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.iotops.tunnel.tunnelproxy.hub import client
from ansible_collections.iotops.tunnel.tunnelproxy.hub.tags import MANAGED_TAGS, OWNER_TAG


@dataclass(frozen=True)
class Tunnel:
    """A tunnel as DescribeTunnel returns it. The lifetime is in minutes."""

    tunnel_id: str
    arn: str
    status: str
    thing_name: str | None
    services: tuple[str, ...]
    description: str | None
    tags: dict[str, str]
    lifetime: int
    created_at: datetime | None
    source: str
    destination: str

    @property
    def is_open(self) -> bool:
        """Whether it is open. A closed tunnel cannot be opened again."""
        return self.status == "open"

    @property
    def is_ours(self) -> bool:
        """Whether this collection opened it, for any owner."""
        return MANAGED_TAGS.items() <= self.tags.items()

    @property
    def owner(self) -> str | None:
        """Its owner, if this collection opened it."""
        return self.tags.get(OWNER_TAG)

    @property
    def expires_at(self) -> datetime | None:
        """When the service closes the tunnel."""
        return self.created_at + timedelta(minutes=self.lifetime) if self.created_at else None

    @classmethod
    def from_description(cls, answer: dict) -> Tunnel:
        """Create it from C(tunnel) in the response of DescribeTunnel."""
        config = answer.get("destinationConfig", {})
        return cls(
            tunnel_id=answer["tunnelId"],
            arn=answer["tunnelArn"],
            status=answer["status"].lower(),
            thing_name=config.get("thingName"),
            services=tuple(config.get("services", ())),
            description=answer.get("description"),
            tags={tag["key"]: tag["value"] for tag in answer.get("tags", ())},
            lifetime=answer.get("timeoutConfig", {}).get("maxLifetimeTimeoutMinutes", 720),
            created_at=datetime.fromisoformat(answer["createdAt"]) if answer.get("createdAt") else None,
            source=_connection_state(answer.get("sourceConnectionState")),
            destination=_connection_state(answer.get("destinationConnectionState")),
        )


@dataclass(frozen=True)
class OpenedTunnel:
    """The response of OpenTunnel, with the tokens by end."""

    tunnel_id: str
    arn: str
    tokens: dict[str, str]


class ControlApi:
    """The calls that the action plugins make. A call that fails raises L(client.HubError).

    Args:
        caller: its environment selects the account.
    """

    def __init__(self, caller: client.Caller) -> None:
        self._caller = caller

    def prepare(self, thing: str, services: list[str], *, unregistered: bool) -> None:
        """Check that a tunnel to a thing would be usable, before paying for one."""
        try:
            client.prepare(thing, services, unregistered=unregistered, caller=self._caller)
        except client.HubError as error:
            raise client.HubError(f"Could not open a tunnel to {thing}: {error}.", code=error.code) from None

    def open(
        self, thing: str, services: list[str], lifetime: int, description: str | None, tags: dict[str, str]
    ) -> OpenedTunnel:
        """Open a tunnel (OpenTunnel; billed)."""
        request = {
            "destinationConfig": {"thingName": thing, "services": services},
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": lifetime},
            "tags": _tag_list(tags),
        }
        if description:
            request["description"] = description
        answer = self._call(f"open a tunnel to {thing}", "open_tunnel", **request)
        return OpenedTunnel(answer["tunnelId"], answer["tunnelArn"], _tokens(answer))

    def describe(self, tunnel_id: str) -> Tunnel:
        """Describe a tunnel (DescribeTunnel)."""
        answer = self._call(f"describe tunnel {tunnel_id}", "describe_tunnel", tunnelId=tunnel_id)
        return Tunnel.from_description(answer["tunnel"])

    def tunnels(self, thing: str | None = None, status: str | None = None) -> Iterator[Tunnel]:
        """Generate the tunnels of a thing or of all, newest first. C(status) is C(open) or C(closed).

        ListTunnels, and DescribeTunnel for each as it comes.
        """
        request = {"maxResults": 100, **({"thingName": thing} if thing else {})}
        purpose = f"list the tunnels of {thing}" if thing else "list the tunnels"
        while True:
            answer = self._call(purpose, "list_tunnels", **request)
            for summary in answer.get("tunnelSummaries", ()):
                if status in (None, summary["status"].lower()):
                    # It may have been closed or deleted in the meantime.
                    for tunnel in self.described(summary["tunnelId"]):
                        if status in (None, tunnel.status):
                            yield tunnel
            if not answer.get("nextToken"):
                return
            request["nextToken"] = answer["nextToken"]

    def described(self, tunnel_id: str) -> list[Tunnel]:
        """Describe a tunnel, as a list that is empty if there is no such tunnel."""
        try:
            return [self.describe(tunnel_id)]
        except client.HubError as error:
            if error.code == "not-found":
                return []
            raise

    def rotate(self, tunnel: Tunnel, end: str) -> dict[str, str]:
        """Revoke and replace the tokens of C(source), C(destination) or C(all) ends. Return the new ones by end.

        A new destination token goes to the device by MQTT too, if the tunnel has a thing name.
        """
        request: dict = {"tunnelId": tunnel.tunnel_id, "clientMode": end.upper()}
        if end != "source" and tunnel.thing_name:
            request["destinationConfig"] = {"thingName": tunnel.thing_name, "services": list(tunnel.services)}
        purpose = f"rotate tokens ({end}) of tunnel {tunnel.tunnel_id}"
        return _tokens(self._call(purpose, "rotate_tunnel_access_token", **request))

    def close(self, tunnel_id: str) -> None:
        """Close a tunnel (CloseTunnel)."""
        self._call(f"close tunnel {tunnel_id}", "close_tunnel", tunnelId=tunnel_id)

    def tag(self, tunnel: Tunnel, tags: dict[str, str]) -> None:
        """Add tags, or change their values (TagResource)."""
        self._call(f"tag tunnel {tunnel.tunnel_id}", "tag_resource", resourceArn=tunnel.arn, tags=_tag_list(tags))

    def untag(self, tunnel: Tunnel, keys: list[str]) -> None:
        """Remove tags (UntagResource)."""
        purpose = f"remove tags from tunnel {tunnel.tunnel_id}"
        self._call(purpose, "untag_resource", resourceArn=tunnel.arn, tagKeys=keys)

    def _call(self, purpose: str, operation: str, **request: Any) -> dict:
        return client.call(operation, request, purpose=purpose, caller=self._caller)


def _connection_state(state: dict | None) -> str:
    return (state or {}).get("status", "DISCONNECTED").lower()


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _tokens(answer: dict) -> dict[str, str]:
    tokens = {"source": answer.get("sourceAccessToken"), "destination": answer.get("destinationAccessToken")}
    return {end: token for end, token in tokens.items() if token}
