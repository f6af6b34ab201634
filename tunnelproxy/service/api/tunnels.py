# SPDX-License-Identifier: Apache-2.0
"""The operations on tunnels, on validated input, without HTTP.

Source: botocore's ``iotsecuretunneling`` service model and its documentation, "AWS IoT Secure Tunneling API Reference".
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Callable
from typing import Any

from ..errors import ApiError, limit_exceeded, not_found, validation_failed
from ..limits import DEFAULT_LIMITS, Limits
from ..model import DEFAULT_LIFETIME, AccessKey, Mode, NewTunnel, Tunnel, digest, new_access_token
from ..state.store import Store

__all__ = ["MAX_TAGS", "TunnelOperations"]

MAX_TAGS = 50
"""Tags per resource: AWS's quota."""

_MAX_PAGE = 100

# The number of digits that always fits into SQLite's integers.
_PAGE = re.compile(rb"before:([0-9]{1,18})")

log = logging.getLogger(__name__)


class TunnelOperations:
    """Carries out operations on tunnels.

    Args:
        store: the state.
        disconnect: disconnects both ends of a closed tunnel.
        revoke: disconnects an end of a tunnel whose access token was revoked.
        clock: returns seconds since the epoch.
        tunnel_opened: called when a tunnel was opened, to schedule its expiry.
        deliver: delivers a tunnel's new access token for the destination to the tunnel's thing.
        limits: limits the number of open tunnels, and of their services.
    """

    def __init__(
        self,
        store: Store,
        *,
        disconnect: Callable[[str], None],
        revoke: Callable[[str, Mode], None],
        clock: Callable[[], float],
        tunnel_opened: Callable[[], None],
        deliver: Callable[[Tunnel, str], None],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._disconnect = disconnect
        self._revoke = revoke
        self._clock = clock
        self._tunnel_opened = tunnel_opened
        self._deliver = deliver
        self._limits = limits
        self._identity = store.identity()
        self._operations: dict[str, Callable[[dict[str, Any], AccessKey | None], dict[str, Any]]] = {
            "OpenTunnel": self._open_tunnel,
            "CloseTunnel": self._close_tunnel,
            "DescribeTunnel": self._describe_tunnel,
            "ListTunnels": self._list_tunnels,
            "RotateTunnelAccessToken": self._rotate_tunnel_access_token,
            "TagResource": self._tag_resource,
            "UntagResource": self._untag_resource,
            "ListTagsForResource": self._list_tags_for_resource,
        }

    def call(self, operation: str, params: dict[str, Any], key: AccessKey | None = None) -> dict[str, Any]:
        """Carry out an operation.

        Args:
            operation: its name in the model.
            params: its input, validated against the model.
            key: the authorized access key; None for the service itself.

        Returns:
            Its output, ready to be encoded as JSON; times are seconds since the epoch.

        Raises:
            ApiError: the operation fails.
            KeyError: there is no such operation.
        """
        return self._operations[operation](params, key)

    def _open_tunnel(self, params: dict[str, Any], key: AccessKey | None) -> dict[str, Any]:
        thing_name, services = _destination(params.get("destinationConfig", {}), self._limits.services)
        if 0 < self._limits.tunnels <= self._store.count_open_tunnels():
            raise limit_exceeded(f"The limit of {self._limits.tunnels} open tunnels is reached; close a tunnel first.")
        new = NewTunnel(
            description=params.get("description"),
            thing_name=thing_name,
            services=services,
            lifetime=params.get("timeoutConfig", {}).get("maxLifetimeTimeoutMinutes", DEFAULT_LIFETIME),
            tags=_tags(params.get("tags", [])),
        )
        tokens = {mode: new_access_token() for mode in Mode}
        tunnel = self._store.open_tunnel(new, _digests(tokens), self._clock(), _name(key))
        self._tunnel_opened()
        self._deliver(tunnel, tokens[Mode.DESTINATION])
        log.info(
            "tunnel %s opened: thing %s, services %s, %d minutes",
            tunnel.tunnel_id,
            thing_name or "none",
            ", ".join(services) or "none",
            tunnel.lifetime,
            extra={"tunnel": tunnel.tunnel_id, "thing": thing_name},
        )
        return {
            "tunnelId": tunnel.tunnel_id,
            "tunnelArn": self._identity.arn(tunnel.tunnel_id),
            **_token_members(tokens),
        }

    def _close_tunnel(self, params: dict[str, Any], _key: AccessKey | None) -> dict[str, Any]:
        tunnel = self._find(params["tunnelId"])
        delete = params.get("delete", False)
        # A single change of the store, so that it is made completely or not at all.
        if delete:
            self._store.delete_tunnel(tunnel.tunnel_id)
        elif tunnel.is_open:
            self._store.close_tunnel(tunnel.tunnel_id, self._clock())
        if tunnel.is_open:
            self._disconnect(tunnel.tunnel_id)
            log.info("tunnel %s closed", tunnel.tunnel_id, extra={"tunnel": tunnel.tunnel_id})
        if delete:
            log.info("tunnel %s deleted", tunnel.tunnel_id, extra={"tunnel": tunnel.tunnel_id})
        return {}

    def _describe_tunnel(self, params: dict[str, Any], _key: AccessKey | None) -> dict[str, Any]:
        tunnel = self._find(params["tunnelId"])
        states = self._store.end_states(tunnel.tunnel_id)
        described = self._summary(tunnel)
        for mode, state in states.items():
            described[f"{mode.value}ConnectionState"] = {
                "status": "CONNECTED" if state.connected else "DISCONNECTED",
                "lastUpdatedAt": state.updated_at,
            }
        destination = _without_empty({"thingName": tunnel.thing_name, "services": list(tunnel.services)})
        if destination:
            described["destinationConfig"] = destination
        described["timeoutConfig"] = {"maxLifetimeTimeoutMinutes": tunnel.lifetime}
        described["tags"] = self._tag_list(tunnel.tunnel_id)
        return {"tunnel": described}

    def _list_tunnels(self, params: dict[str, Any], key: AccessKey | None) -> dict[str, Any]:
        limit = params.get("maxResults", _MAX_PAGE)
        found = self._store.list_tunnels(
            thing_name=params.get("thingName"), before=_read_page(params.get("nextToken")), limit=limit + 1, key=key
        )
        page = found[:limit]
        answer: dict[str, Any] = {"tunnelSummaries": [self._summary(tunnel) for tunnel in page]}
        if len(found) > limit:
            answer["nextToken"] = _write_page(page[-1].number)
        return answer

    def _rotate_tunnel_access_token(self, params: dict[str, Any], key: AccessKey | None) -> dict[str, Any]:
        tunnel = self._find(params["tunnelId"])
        if not tunnel.is_open:
            raise not_found(f"Tunnel {tunnel.tunnel_id} is closed: its access tokens cannot be rotated.")
        wanted = params["clientMode"]
        modes = [mode for mode in Mode if wanted in (mode.value.upper(), "ALL")]
        destination = _changed_destination(tunnel, modes, params.get("destinationConfig"), self._limits.services)
        tokens = {mode: new_access_token() for mode in modes}
        self._store.rotate_tokens(tunnel, _digests(tokens), destination, self._clock(), _name(key))
        for mode in modes:
            self._revoke(tunnel.tunnel_id, mode)
        if Mode.DESTINATION in tokens:
            # The current tunnel: the rotation may have changed its thing.
            self._deliver(self._find(tunnel.tunnel_id), tokens[Mode.DESTINATION])
        log.info("tunnel %s: access token rotated for %s", tunnel.tunnel_id, wanted, extra={"tunnel": tunnel.tunnel_id})
        return {"tunnelArn": self._identity.arn(tunnel.tunnel_id), **_token_members(tokens)}

    def _tag_resource(self, params: dict[str, Any], _key: AccessKey | None) -> dict[str, Any]:
        tunnel = self._find_by_arn(params["resourceArn"])
        tags = _tags(params["tags"])
        if len(dict(self._store.tags(tunnel.tunnel_id) + list(tags))) > MAX_TAGS:
            raise limit_exceeded(f"A tunnel can have at most {MAX_TAGS} tags.")
        self._store.set_tags(tunnel.tunnel_id, tags)
        return {}

    def _untag_resource(self, params: dict[str, Any], _key: AccessKey | None) -> dict[str, Any]:
        tunnel = self._find_by_arn(params["resourceArn"])
        self._store.remove_tags(tunnel.tunnel_id, params["tagKeys"])
        return {}

    def _list_tags_for_resource(self, params: dict[str, Any], _key: AccessKey | None) -> dict[str, Any]:
        return {"tags": self._tag_list(self._find_by_arn(params["resourceArn"]).tunnel_id)}

    def _find(self, tunnel_id: str) -> Tunnel:
        tunnel = self._store.find_tunnel(tunnel_id)
        if tunnel is None:
            raise not_found(f"Tunnel {tunnel_id} does not exist.")
        return tunnel

    def _find_by_arn(self, arn: str) -> Tunnel:
        tunnel_id = self._identity.tunnel_id(arn)
        if tunnel_id is None:
            raise not_found(f"Resource {arn} is not a tunnel of this service.")
        return self._find(tunnel_id)

    def _summary(self, tunnel: Tunnel) -> dict[str, Any]:
        return _without_empty(
            {
                "tunnelId": tunnel.tunnel_id,
                "tunnelArn": self._identity.arn(tunnel.tunnel_id),
                "status": "OPEN" if tunnel.is_open else "CLOSED",
                "description": tunnel.description,
                "createdAt": tunnel.created_at,
                "lastUpdatedAt": tunnel.updated_at,
            }
        )

    def _tag_list(self, tunnel_id: str) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in self._store.tags(tunnel_id)]


def _destination(config: dict[str, Any], max_services: int) -> tuple[str | None, tuple[str, ...]]:
    services = tuple(config.get("services", ()))
    if len(set(services)) != len(services):
        raise validation_failed(f"A service is named more than once in: {', '.join(services)}.")
    if 0 < max_services < len(services):
        raise limit_exceeded(f"A tunnel can have at most {max_services} services; {len(services)} were given.")
    return config.get("thingName"), services


def _changed_destination(
    tunnel: Tunnel, modes: list[Mode], config: dict[str, Any] | None, max_services: int
) -> tuple[str | None, tuple[str, ...]] | None:
    """The thing and services after a rotation, or None if it does not change them.

    A rotation may change the thing that the new token is delivered to, but not the services, which a connected end
    already knows.
    """
    if config is None:
        return None
    if Mode.DESTINATION not in modes:
        raise validation_failed("destinationConfig requires a clientMode of DESTINATION or ALL.")
    thing_name, services = _destination(config, max_services)
    if tunnel.services and set(services) != set(tunnel.services):
        raise validation_failed(
            f"The services of tunnel {tunnel.tunnel_id} are {', '.join(tunnel.services)} and cannot be changed; "
            "open another tunnel for other services."
        )
    return thing_name or tunnel.thing_name, tunnel.services or services


def _tags(given: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    tags = tuple((tag["key"], tag["value"]) for tag in given)
    if len(dict(tags)) != len(tags):
        raise validation_failed("A tag key is given more than once.")
    if any(key.lower().startswith("aws:") for key, _ in tags):
        raise validation_failed("Tag keys that start with 'aws:' are reserved.")
    if len(tags) > MAX_TAGS:
        raise limit_exceeded(f"A tunnel can have at most {MAX_TAGS} tags.")
    return tags


def _name(key: AccessKey | None) -> str | None:
    return None if key is None else key.name


def _digests(tokens: dict[Mode, str]) -> dict[Mode, bytes]:
    return {mode: digest(token) for mode, token in tokens.items()}


def _token_members(tokens: dict[Mode, str]) -> dict[str, str]:
    return {f"{mode.value}AccessToken": token for mode, token in tokens.items()}


def _without_empty(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value not in (None, [])}


def _write_page(number: int) -> str:
    return base64.urlsafe_b64encode(f"before:{number}".encode()).decode()


def _read_page(token: str | None) -> int | None:
    if token is None:
        return None
    try:
        found = _PAGE.fullmatch(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError):
        found = None
    if found is None:
        raise _bad_page()
    return int(found[1])


def _bad_page() -> ApiError:
    return validation_failed("The nextToken was not returned by ListTunnels.")
