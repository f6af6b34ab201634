# SPDX-License-Identifier: Apache-2.0
"""Joins the service to the MQTT broker that brings tokens to things: one of its own, one elsewhere, or none."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ...net.background_tasks import spawn
from ...net.mqtt import BrokerLogin
from ..events import EventHandler
from ..limits import Limits
from ..metrics import Figure
from ..model import Identity, Tunnel
from ..state.directory import StateDirectory
from .broker_address import BrokerAddress
from .dynsec_rules import NOTIFIER
from .mosquitto import Mosquitto
from .outbox import Outbox

__all__ = ["NO_BROKER", "BrokerSettings", "Deliver", "Notifier", "notifying"]

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


def _deliver_nothing(tunnel: Tunnel, token: str) -> None:
    """Without a broker, whoever opened the tunnel brings the token to the device."""


def _open_nothing(context: ssl.SSLContext, limits: Limits, notify: EventHandler) -> None:
    """A broker that runs elsewhere listens there."""


@dataclass(frozen=True)
class Notifier:
    """The way to things.

    Attributes:
        deliver: brings a token.
        announcement: what the ready line says of the broker.
        open: lets things connect to a broker of the service's own: with the service's TLS context, within its
            limits; the last argument is told of every connection that is cut off.
        figures: what there is to tell of the broker.
    """

    deliver: Deliver = _deliver_nothing
    announcement: str = ""
    open: Callable[[ssl.SSLContext, Limits, EventHandler], None] = _open_nothing
    figures: tuple[Figure, ...] = ()


@contextlib.asynccontextmanager
async def notifying(
    settings: BrokerSettings,
    state: StateDirectory,
    identity: Identity,
    *,
    host: str,
    name: str,
) -> AsyncIterator[Notifier]:
    """Bring tokens to things, for as long as the block runs.

    Args:
        host: where the service listens, and so a broker of its own.
        name: by what clients reach the service, and things a broker of its own.

    Raises:
        ServiceError: the broker cannot be run, or its authorities cannot be read.
    """
    if settings.port is not None:
        remembered = BrokerAddress.read(state.broker_address)
        port = settings.port or (remembered.port if remembered is not None and remembered.embedded else 0)
        embedded = Mosquitto(state.broker_files, host, port)
        address = BrokerAddress(name, embedded.listener.port, user=NOTIFIER, embedded=True)
        with contextlib.closing(embedded.listener):
            async with _background("the MQTT broker", embedded.run()):
                await embedded.wait_until_it_listens()
                async with _session(embedded.notifier, identity) as notifications:
                    address.write(state.broker_address)
                    yield _notifier(notifications, address, embedded.listener.open)
    elif settings.external is not None:
        address = settings.external
        broker = BrokerLogin(
            address.host,
            address.port,
            f"tunneling-service-{identity.account_id}",
            tls=address.tls_context(),
            user=address.user or None,
            password=settings.password,
        )
        async with _session(broker, identity) as notifications:
            address.write(state.broker_address)
            yield _notifier(notifications, address)
    else:
        state.broker_address.unlink(missing_ok=True)
        yield Notifier()


def _notifier(
    notifications: Outbox,
    address: BrokerAddress,
    open_listener: Callable[[ssl.SSLContext, Limits, EventHandler], None] = _open_nothing,
) -> Notifier:
    figures = (
        Figure(
            "tunnelproxy_mqtt_broker_connected",
            "Whether the service is connected to the MQTT broker: 1 or 0.",
            lambda: {"": notifications.is_connected},
            counts=False,
        ),
        Figure(
            "tunnelproxy_notifications_waiting",
            "Notifications that the MQTT broker has not confirmed.",
            lambda: {"": notifications.waiting},
            counts=False,
        ),
    )
    return Notifier(notifications.send, f" mqtt={address.url}", open_listener, figures)


@contextlib.asynccontextmanager
async def _session(broker: BrokerLogin, identity: Identity) -> AsyncIterator[Outbox]:
    notifications = Outbox(broker, identity.region)
    async with _background("the connection to the MQTT broker", notifications.run()):
        yield notifications


@contextlib.asynccontextmanager
async def _background(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = spawn(name, work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
