# SPDX-License-Identifier: Apache-2.0
"""What each access key may do: read only or everything, with all things or with some.

A refusal is worded as AWS words it. Source: "Troubleshoot access denied error messages", IAM User Guide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ApiError
from ..model import AccessKey, Identity, Tunnel

__all__ = ["Authorizer"]

_READING = frozenset({"DescribeThing", "DescribeTunnel", "ListTagsForResource", "ListThings", "ListTunnels"})


class Authorizer:
    """Decides on the requests to one service.

    Args:
        identity: the service's, for the names in refusals.
        find_tunnel: gives the tunnel of an ID, or None.
    """

    def __init__(self, identity: Identity, find_tunnel: Callable[[str], Tunnel | None]) -> None:
        self._identity = identity
        self._find_tunnel = find_tunnel

    def check(self, key: AccessKey, operation: str, params: dict[str, Any]) -> None:
        """Let a request pass.

        What does not exist is for the operation to report. ``ListTunnels`` and ``ListThings`` show a key its own things
        only.

        Args:
            key: the key that signed it.
            operation: the operation's name in the model.
            params: its input, checked against the model.

        Raises:
            ApiError: ``AccessDeniedException``, as the key may not do that.
        """
        tunnel = self._tunnel(params)
        arn = self._identity.arn("*" if tunnel is None else tunnel.tunnel_id)
        if operation == "DescribeThing":
            arn = self._identity.thing_arn(params["thingName"])
        if key.read_only and operation not in _READING:
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
        """The IDs of the tunnel and the thing that a request is about, as far as it is about one, for the record."""
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
