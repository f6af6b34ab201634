# SPDX-License-Identifier: Apache-2.0
"""What each access key may do: only read, or everything; for all things, or for some.

Error messages are worded like AWS's. Source: "Troubleshoot access denied error messages", IAM User Guide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ApiError
from ..model import AccessKey, Identity, Tunnel

__all__ = ["Authorizer"]

_READ_OPERATIONS = frozenset({"DescribeThing", "DescribeTunnel", "ListTagsForResource", "ListThings", "ListTunnels"})


class Authorizer:
    """Authorizes requests.

    Args:
        identity: the service's account and region, for the ARNs in error messages.
        find_tunnel: returns the tunnel with an ID, or None.
    """

    def __init__(self, identity: Identity, find_tunnel: Callable[[str], Tunnel | None]) -> None:
        self._identity = identity
        self._find_tunnel = find_tunnel

    def check(self, key: AccessKey, operation: str, params: dict[str, Any]) -> None:
        """Check that a key may make a request.

        A tunnel that does not exist is reported by the operation. ``ListTunnels`` and ``ListThings`` filter by key
        themselves.

        Args:
            key: the key that signed the request.
            operation: the operation's name in the model.
            params: its input, validated against the model.

        Raises:
            ApiError: ``AccessDeniedException``: the key may not make it.
        """
        tunnel = self._tunnel(params)
        arn = self._identity.arn("*" if tunnel is None else tunnel.tunnel_id)
        if operation == "DescribeThing":
            arn = self._identity.thing_arn(params["thingName"])
        if key.read_only and operation not in _READ_OPERATIONS:
            raise self._denied(key, operation, arn)
        things: list[str | None] = [] if tunnel is None else [tunnel.thing_name]
        named = params.get("destinationConfig", {}).get("thingName")
        # A rotation delivers the new token to the thing that it names.
        if operation == "OpenTunnel" or named is not None:
            things.append(named)
        if operation == "DescribeThing":
            things.append(params["thingName"])
        if not all(key.covers(thing) for thing in things):
            raise self._denied(key, operation, arn)

    def subject(self, params: dict[str, Any]) -> tuple[str | None, str | None]:
        """The tunnel ID and the thing name that a request refers to, if any, for the audit log."""
        tunnel = self._tunnel(params)
        named = params.get("destinationConfig", {}).get("thingName") or params.get("thingName")
        if tunnel is None:
            return params.get("tunnelId"), named
        return tunnel.tunnel_id, named or tunnel.thing_name

    def _tunnel(self, params: dict[str, Any]) -> Tunnel | None:
        tunnel_id = params.get("tunnelId") or self._identity.tunnel_id(params.get("resourceArn", ""))
        return None if tunnel_id is None else self._find_tunnel(tunnel_id)

    def _denied(self, key: AccessKey, operation: str, arn: str) -> ApiError:
        user = f"arn:aws:iam::{self._identity.account_id}:user/{key.name}"
        action = f"iot:{operation}"
        return ApiError(
            "AccessDeniedException",
            f"User: {user} is not authorized to perform: {action} on resource: {arn} "
            f"because no identity-based policy allows the {action} action",
            403,
        )
