# SPDX-License-Identifier: Apache-2.0
"""The requests that the hub answers. Each is parsed once, on arrival, into a data class.

:mod:`.wire` and :mod:`.client` write them. Fields that this version does not know are ignored; fields that were added
within protocol version 2 have a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Union

from .location import HubError
from .tunnel_record import TunnelRecord
from .wire import Caller

__all__ = [
    "Adopt",
    "Call",
    "Describe",
    "Ensure",
    "Explain",
    "Holds",
    "Inherit",
    "Locate",
    "Open",
    "Prepare",
    "Release",
    "Request",
    "ServicePlan",
    "Status",
    "Stop",
    "Target",
    "TunnelName",
    "parse",
]


@dataclass(frozen=True)
class Target:
    """The thing that a request is about.

    Attributes:
        account: the key of its account; if it is empty, the caller's environment determines the account.
        caller: the process that asks; None if the account is given.
    """

    thing: str
    account: str
    caller: Caller | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        account = _text(data.get("account") or "")
        return cls(_text(data["thing"]), account, None if account else Caller.from_json(data["caller"]))


@dataclass(frozen=True)
class TunnelName:
    """One tunnel of one account.

    Attributes:
        account: the account's key.
    """

    tunnel_id: str
    account: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunnelName:
        return cls(_text(data["tunnel_id"]), _text(data["account"]))


@dataclass(frozen=True)
class ServicePlan:
    """The services of a tunnel, and where they should listen.

    Attributes:
        services: service IDs.
        ports: ports on the loopback by service ID: 0 for any port, None for none.
        any_host: the services whose port accepts requests for any host.
    """

    services: tuple[str, ...]
    ports: Mapping[str, int | None]
    any_host: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServicePlan:
        return cls(tuple(data["services"]), dict(data.get("ports") or {}), tuple(data.get("any_host", ())))


@dataclass(frozen=True)
class Ensure:
    """See :func:`.client.ensure`."""

    thing: str
    service: str
    open_policy: str
    plan: ServicePlan
    wait: float
    timeout: float
    owner: str
    unregistered: bool
    caller: Caller

    @property
    def may_open(self) -> bool:
        """Whether a tunnel may be reused, taken over, or opened."""
        return self.open_policy != "never"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ensure:
        return cls(
            thing=_text(data["thing"]),
            service=_text(data["service"]),
            open_policy=_text(data["open"]),
            plan=ServicePlan.from_json(data),
            wait=float(data["wait"]),
            timeout=float(data["timeout"]),
            owner=_text(data["owner"]),
            unregistered=bool(data["unregistered"]),
            caller=Caller.from_json(data["caller"]),
        )


@dataclass(frozen=True)
class Locate:
    """See :func:`.client.locate`."""

    thing: str | None
    caller: Caller

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Locate:
        return cls(_text_or_none(data["thing"]), Caller.from_json(data["caller"]))


@dataclass(frozen=True)
class Prepare:
    """See :func:`.client.prepare`."""

    thing: str | None
    plan: ServicePlan
    unregistered: bool
    caller: Caller

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prepare:
        return cls(
            thing=_text_or_none(data["thing"]),
            plan=ServicePlan.from_json(data),
            unregistered=bool(data["unregistered"]),
            caller=Caller.from_json(data["caller"]),
        )


@dataclass(frozen=True)
class Call:
    """See :func:`.client.call`."""

    api: str
    operation: str
    parameters: Mapping[str, Any] = field(repr=False)
    purpose: str
    caller: Caller

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Call:
        return cls(
            api=_text(data["api"]),
            operation=_text(data["operation"]),
            parameters=dict(data["parameters"]),
            purpose=_text(data["purpose"]),
            caller=Caller.from_json(data["caller"]),
        )


@dataclass(frozen=True)
class Adopt:
    """See :func:`.client.adopt`."""

    thing: str
    tunnel_id: str
    tunnel_arn: str
    source_token: str = field(repr=False)
    owner: str
    expires_at: float | None
    plan: ServicePlan
    timeout: float
    caller: Caller

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Adopt:
        return cls(
            thing=_text(data["thing"]),
            tunnel_id=_text(data["tunnel_id"]),
            tunnel_arn=_text(data["tunnel_arn"]),
            source_token=_text(data["source_token"]),
            owner=_text(data["owner"]),
            expires_at=None if data["expires_at"] is None else float(data["expires_at"]),
            plan=ServicePlan.from_json(data),
            timeout=float(data["timeout"]),
            caller=Caller.from_json(data["caller"]),
        )


@dataclass(frozen=True)
class Describe:
    """See :func:`.client.describe`."""

    target: Target

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Describe:
        return cls(Target.from_json(data))


@dataclass(frozen=True)
class Explain:
    """See :func:`.wire.explain`."""

    target: Target
    service: str
    refused: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Explain:
        return cls(Target.from_json(data), _text(data["service"]), bool(data["refused"]))


@dataclass(frozen=True)
class Open:
    """See :func:`.wire.open_stream`."""

    target: Target
    service: str
    speaks_first: bool
    timeout: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Open:
        return cls(
            target=Target.from_json(data),
            service=_text(data["service"]),
            speaks_first=bool(data.get("speaks_first", True)),
            timeout=float(data["timeout"]),
        )


@dataclass(frozen=True)
class Release:
    """See :func:`.client.release`."""

    name: TunnelName

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Release:
        return cls(TunnelName.from_json(data))


@dataclass(frozen=True)
class Holds:
    """See :func:`.client.holds`."""

    name: TunnelName

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Holds:
        return cls(TunnelName.from_json(data))


@dataclass(frozen=True)
class Status:
    """See :func:`.client.status`."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Status:
        return cls()


@dataclass(frozen=True)
class Stop:
    """See :func:`.client.stop`."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stop:
        return cls()


@dataclass(frozen=True)
class Inherit:
    """Tunnels that another hub hands over, because this one has taken its folder."""

    records: tuple[TunnelRecord, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Inherit:
        return cls(tuple(TunnelRecord.from_json(record) for record in data["tunnels"]))


Request = Union[
    Ensure, Locate, Prepare, Call, Adopt, Describe, Explain, Release, Holds, Status, Open, Stop, Inherit
]  # fmt: skip

_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Request]] = {
    "ensure": Ensure.from_json,
    "locate": Locate.from_json,
    "prepare": Prepare.from_json,
    "call": Call.from_json,
    "adopt": Adopt.from_json,
    "describe": Describe.from_json,
    "explain": Explain.from_json,
    "release": Release.from_json,
    "holds": Holds.from_json,
    "status": Status.from_json,
    "open": Open.from_json,
    "stop": Stop.from_json,
    "inherit": Inherit.from_json,
}


def parse(data: Mapping[str, Any]) -> Request:
    """Parse the request of a caller.

    Raises:
        HubError: this hub does not know the operation.
        ValueError, KeyError, TypeError, AttributeError: a field is missing, or has another type.
    """
    parser = _PARSERS.get(str(data.get("op")))
    if parser is None:
        raise HubError(f"this hub does not know the request '{data.get('op')}': stop it (tunnelproxy hub stop)")
    return parser(data)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a string")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)
