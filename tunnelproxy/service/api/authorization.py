# SPDX-License-Identifier: Apache-2.0
"""What each access key may do: read only or everything, with all things or with some.

A refusal is worded as AWS words it. Source: "Troubleshoot access denied error messages", IAM User Guide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ApiError, ServiceError
from ..model import Credentials, Identity, Tunnel

__all__ = ["AccessKey", "Authorizer", "check_key_name"]

_READING = frozenset({"DescribeThing", "DescribeTunnel", "ListTagsForResource", "ListThings", "ListTunnels"})
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class AccessKey:
    """A key pair, its name, and its limits.

    Attributes:
        name: what the operator calls it; the audit log names it.
        credentials: the pair that signs requests.
        read_only: whether it may only look.
        things: patterns of the things that it may deal with, as in a shell's file names; none stand for all things,
            and then for tunnels without a thing, too.
    """

    name: str
    credentials: Credentials
    read_only: bool = False
    things: tuple[str, ...] = ()

    def covers(self, thing_name: str | None) -> bool:
        """Whether it may deal with tunnels of this thing; None for a tunnel without one."""
        if not self.things:
            return True
        return thing_name is not None and any(fnmatchcase(thing_name, pattern) for pattern in self.things)


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


def check_key_name(name: str) -> None:
    """Refuse a name that would not do in an ARN or an AWS profile.

    Raises:
        ServiceError: it would not.
    """
    if not _KEY_NAME.fullmatch(name):
        raise ServiceError(
            f"{name!r} cannot be the name of an access key: use 1 to 64 letters, digits, dots, hyphens and underscores"
        )
