# SPDX-License-Identifier: Apache-2.0
"""Joins the service to the MQTT broker that brings tokens to things: one of its own, one elsewhere, or none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..mqtt import Broker
from .broker_address import BrokerAddress
from .certificates import Certificates
from .embedded_broker import NOTIFIER, EmbeddedBroker
from .notifications import Notifications
from .state_dir import StateDirectory
from .tunnels import Identity, Tunnel

__all__ = ["NO_BROKER", "BrokerSettings", "Deliver", "notifying"]

Deliver = Callable[[Tunnel, str], None]
"""Brings a tunnel's new access token for the destination to the tunnel's thing."""


@dataclass(frozen=True)
class BrokerSettings:
    """What brings the notifications.

    Attributes:
        port: where to run a broker; 0 for the port of the last run, else any; None not to run one.
        external: the broker that runs elsewhere; None if there is none.
        password: the service's password there.
    """

    port: int | None = None
    external: BrokerAddress | None = None
    password: str | None = field(default=None, repr=False)


NO_BROKER = BrokerSettings()
"""The tokens reach nobody by themselves."""


@contextlib.asynccontextmanager
async def notifying(
    settings: BrokerSettings, host: str, state: StateDirectory, certificates: Certificates, identity: Identity
) -> AsyncIterator[tuple[Deliver, str]]:
    """Bring tokens to things, for as long as the block runs.

    Args:
        host: where the service listens, and so a broker of its own.

    Yields:
        What brings a token, and what the ready line says of the broker.

    Raises:
        ServiceError: the broker cannot be run, or its authorities cannot be read.
    """
    address = settings.external
    password, embedded = settings.password, None
    if settings.port is not None:
        remembered = BrokerAddress.read(state.broker_address)
        port = settings.port or (remembered.port if remembered is not None and remembered.embedded else 0)
        embedded = EmbeddedBroker(state.broker_files, certificates, host, port)
        address = BrokerAddress(host, embedded.port, user=NOTIFIER, ca=str(certificates.authority), embedded=True)
        password = embedded.password
    if address is None:
        state.broker_address.unlink(missing_ok=True)
        yield _deliver_nothing, ""
        return
    broker = Broker(
        address.host,
        address.port,
        f"tunneling-service-{identity.account_id}",
        tls=address.tls_context(),
        user=address.user or None,
        password=password,
    )
    notifications = Notifications(broker, identity.region)
    async with contextlib.AsyncExitStack() as stack:
        if embedded is not None:
            await stack.enter_async_context(_background(embedded.run()))
            await embedded.wait_until_it_listens()
        await stack.enter_async_context(_background(notifications.run()))
        address.write(state.broker_address)
        yield notifications.send, f" mqtt={address.url}"


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _deliver_nothing(tunnel: Tunnel, token: str) -> None:
    """Without a broker, whoever opened the tunnel brings the token to the device."""
