# SPDX-License-Identifier: Apache-2.0
"""Finding or opening a tunnel through the control API.

Opening one costs money on AWS, so everything that can fail without it is checked first: names, ports, the route to the
data plane, and the registry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from ..errors import ConfigurationError
from ..names import SAFE_NAME
from ..proxy.link import LinkLost, probe
from .account import Account, TunnelKey
from .control_answers import FoundTunnel
from .control_process import CallerControl
from .local_ports import check_port
from .location import HubError
from .requests import Ensure, ServicePlan
from .tunnel_record import DataPlaneSettings

__all__ = ["RENEW_SECONDS", "TunnelOpener", "check_name", "not_found"]

log = logging.getLogger(__name__)

RENEW_SECONDS = 10 * 60.0
"""A tunnel that expires sooner is no longer used if another may be opened."""

PROBE_SECONDS = 60.0
"""How long a data plane counts as reachable after it was reached."""

# ThingName and Service of botocore's model, except for a leading hyphen, which ssh would parse as an option.


class TunnelOpener:
    """Finds or opens tunnels. It remembers which data planes were reached recently."""

    def __init__(self) -> None:
        self._reached_until: dict[str, float] = {}

    async def find_or_open(
        self,
        key: TunnelKey,
        caller: CallerControl,
        request: Ensure,
        *,
        held: Collection[str],
        own_ports: Collection[int],
    ) -> FoundTunnel:
        """Reuse an open tunnel of a thing as far as the request's policy allows, or open one.

        Args:
            held: the IDs of tunnels that the hub holds, which are not reused.
            own_ports: the ports that the thing's services already have.

        Raises:
            HubError: there is none; the text says why.
        """
        try:
            await self._check_reachable(caller.data_plane, key.account.region)
            if request.open_policy in ("reuse", "take_over"):
                found = await caller.take(
                    key.thing,
                    request.service,
                    RENEW_SECONDS,
                    request.owner,
                    take_over=request.open_policy == "take_over",
                    held=list(held),
                )
                if found is not None:
                    owner = f", taken over from {found.taken_from}" if found.taken_from else ""
                    log.info("reuses the open tunnel %s of %s%s", found.tunnel_id, key, owner)
                    return found
            await self.check(
                key.account,
                key.thing,
                request.plan,
                caller=caller,
                service=request.service,
                own_ports=own_ports,
                unregistered=request.unregistered,
            )
            opened = await caller.open(key.thing, request.plan.services, request.owner)
        except HubError as error:
            raise not_found(key, error) from None
        log.info("opened the tunnel %s to %s", opened.tunnel_id, key)
        return opened

    async def check(
        self,
        account: Account,
        thing: str | None,
        plan: ServicePlan,
        *,
        caller: CallerControl,
        own_ports: Collection[int],
        service: str | None = None,
        unregistered: bool = False,
    ) -> None:
        """Check everything that can fail before a tunnel is paid for.

        Args:
            thing: None for a tunnel whose token is copied to a device.
            service: a service that the tunnel must have.
            own_ports: the ports that the thing's services already have.
            unregistered: accept a thing that is not in the registry.

        Raises:
            HubError: the tunnel would not work.
        """
        _check_plan(plan, thing or "the tunnel", service=service, own_ports=own_ports)
        await self._check_reachable(caller.data_plane, account.region)
        if thing is not None and not unregistered:
            await caller.check_registered(thing)

    async def _check_reachable(self, settings: DataPlaneSettings, region: str) -> None:
        """Raise HubError if the data plane cannot be reached."""
        reached = repr((settings, sorted(settings.web_proxy.items()), region))
        now = time.monotonic()
        if now < self._reached_until.get(reached, 0.0):
            return
        try:
            await probe(settings.route(region))
        except ConfigurationError as error:
            raise HubError(str(error), code="bad-input") from None
        except LinkLost as error:
            raise HubError(str(error), code="not-linked") from None
        self._reached_until = {known: until for known, until in self._reached_until.items() if until > now}
        self._reached_until[reached] = now + PROBE_SECONDS


def not_found(what: object, error: HubError) -> HubError:
    """The error for a thing whose tunnel could be neither found nor opened."""
    return HubError(f"no tunnel to {what} could be found or opened: {error}", code=error.code)


def check_name(kind: str, name: str) -> None:
    """Raise HubError if a thing or service cannot have a name.

    Args:
        kind: ``thing`` or ``service``.
    """
    if not SAFE_NAME.match(name):
        raise HubError(
            f"{name!r} cannot be the name of a {kind}: use 1 to 128 letters, digits, colons, underscores and "
            "hyphens, and no hyphen at the start",
            code="bad-input",
        )


def _check_plan(plan: ServicePlan, thing: str, *, service: str | None, own_ports: Collection[int]) -> None:
    """Raise HubError if a tunnel with these services would not fit the request."""
    for name in plan.services:
        check_name("service", name)
    if not plan.services or len(set(plan.services)) != len(plan.services):
        raise HubError(
            f"a tunnel carries at least one service, and each once, not {', '.join(plan.services) or 'none'}: set "
            "iotops_tunnel_services, or the option services",
            code="bad-input",
        )
    for name in (*([service] if service else ()), *plan.ports):
        if name not in plan.services:
            raise HubError(
                f"a tunnel with {', '.join(plan.services)} does not carry {name}: add it to iotops_tunnel_services, or "
                "the option services",
                code="service-not-offered",
            )
    for name, port in plan.ports.items():
        check_port(name, port, thing, own_ports=own_ports)
