# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API of AWS IoT Secure Tunneling through boto3.

Reference: botocore's C(iotsecuretunneling) model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ansible_collections.iotops.tunnel.plugins.module_utils.aws_client import Api, AwsClient, ControlApiError

TUNNELING = Api(
    name="iotsecuretunneling",
    title="the tunneling service",
    permission="Allow the iot: actions for tunnels in their policy.",
    throttled="Try again with fewer forks.",
    over_limit="Close tunnels that nobody needs, or ask for fewer services.",
    missing="has no such tunnel. Check tunnel_id and region.",
)


@dataclass(frozen=True)
class Tunnel:
    """What DescribeTunnel says of one tunnel. Lifetime is in minutes."""

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
        """A closed tunnel never opens again."""
        return self.status == "open"

    @property
    def expires_at(self) -> datetime | None:
        """When the service closes this tunnel."""
        return self.created_at + timedelta(minutes=self.lifetime) if self.created_at else None

    @classmethod
    def from_description(cls, answer: dict) -> Tunnel:
        """Make it from the C(tunnel) of a DescribeTunnel answer."""
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
            created_at=answer.get("createdAt"),
            source=_connection_state(answer.get("sourceConnectionState")),
            destination=_connection_state(answer.get("destinationConnectionState")),
        )


class ControlApi:
    """The calls that the modules make; see C(AwsClient)."""

    def __init__(self, environment: dict[str, str], *, validate_certs: bool = True) -> None:
        self._client = AwsClient(TUNNELING, environment, validate_certs=validate_certs)

    @property
    def region(self) -> str:
        """The region that the calls go to."""
        return self._client.region

    def open(
        self, thing: str | None, services: list[str], lifetime: int, description: str | None, tags: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        """Open a tunnel (OpenTunnel; billed). Return its ID, and the tokens by end."""
        request = {
            "destinationConfig": _destination_config(thing, services),
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": lifetime},
            "tags": _tag_list(tags),
        }
        if description:
            request["description"] = description
        answer = self._client.call(
            "open a tunnel to " + (thing or "a device without a thing name"), "open_tunnel", **request
        )
        return answer["tunnelId"], _tokens(answer)

    def describe(self, tunnel_id: str) -> Tunnel:
        """Say all about one tunnel (DescribeTunnel)."""
        answer = self._client.call(f"describe tunnel {tunnel_id}", "describe_tunnel", tunnelId=tunnel_id)
        return Tunnel.from_description(answer["tunnel"])

    def open_tunnels(self, thing: str):
        """Generate the open tunnels of a thing, newest first."""
        return self.tunnels(thing, "open")

    def tunnels(self, thing: str | None = None, status: str | None = None):
        """Generate the tunnels of a thing or of all, newest first. C(status) is C(open) or C(closed).

        ListTunnels, and DescribeTunnel for each as it comes.
        """
        request = {"maxResults": 100, **({"thingName": thing} if thing else {})}
        purpose = f"list the tunnels of {thing}" if thing else "list the tunnels"
        for answer in self._client.pages(purpose, "list_tunnels", **request):
            for summary in answer.get("tunnelSummaries", ()):
                if status in (None, summary["status"].lower()):
                    # Meanwhile it may have been closed, or forgotten.
                    for tunnel in self.described(summary["tunnelId"]):
                        if status in (None, tunnel.status):
                            yield tunnel

    def described(self, tunnel_id: str) -> list[Tunnel]:
        """Say all about one tunnel, in a list that is empty if the service does not know it."""
        try:
            return [self.describe(tunnel_id)]
        except ControlApiError as error:
            if error.not_found:
                return []
            raise

    def rotate(self, tunnel: Tunnel, end: str) -> dict[str, str]:
        """Revoke and replace the tokens of C(source), C(destination) or C(all) ends. Return the new ones by end.

        A new destination token goes to the device by MQTT too, if the tunnel has a thing name.
        """
        request = {"tunnelId": tunnel.tunnel_id, "clientMode": end.upper()}
        if end != "source" and tunnel.thing_name:
            request["destinationConfig"] = _destination_config(tunnel.thing_name, tunnel.services)
        purpose = f"rotate tokens ({end}) of tunnel {tunnel.tunnel_id}"
        return _tokens(self._client.call(purpose, "rotate_tunnel_access_token", **request))

    def close(self, tunnel_id: str) -> None:
        """Close a tunnel (CloseTunnel)."""
        self._client.call(f"close tunnel {tunnel_id}", "close_tunnel", tunnelId=tunnel_id)

    def tag(self, tunnel: Tunnel, tags: dict[str, str]) -> None:
        """Add tags, or change their values (TagResource)."""
        purpose = f"tag tunnel {tunnel.tunnel_id}"
        self._client.call(purpose, "tag_resource", resourceArn=tunnel.arn, tags=_tag_list(tags))

    def untag(self, tunnel: Tunnel, keys: list[str]) -> None:
        """Remove tags (UntagResource)."""
        purpose = f"remove tags from tunnel {tunnel.tunnel_id}"
        self._client.call(purpose, "untag_resource", resourceArn=tunnel.arn, tagKeys=keys)


def _connection_state(state: dict | None) -> str:
    return (state or {}).get("status", "DISCONNECTED").lower()


def _destination_config(thing: str | None, services) -> dict:
    config = {"services": list(services)}
    if thing:
        config["thingName"] = thing
    return config


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _tokens(answer: dict) -> dict[str, str]:
    tokens = {"source": answer.get("sourceAccessToken"), "destination": answer.get("destinationAccessToken")}
    return {end: token for end, token in tokens.items() if token}
