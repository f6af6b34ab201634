# SPDX-License-Identifier: Apache-2.0
"""Delivers access tokens to things through an MQTT broker: an embedded one, an external one, or none."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ...net.background_tasks import spawn
from ...net.mqtt import BrokerLogin
from ..events import EventHandler
from ..limits import Limits
from ..model import Identity, Tunnel
from ..state.directory import StateDirectory
from .broker_address import BrokerAddress
from .dynsec_rules import NOTIFIER
from .listener import MqttListener
from .mosquitto import Mosquitto
from .outbox import Outbox

__all__ = ["NO_BROKER", "BrokerSettings", "Notifier", "connected_notifier"]


@dataclass(frozen=True)
class BrokerSettings:
    """Which MQTT broker delivers the notifications.

    Attributes:
        port: the port of an embedded broker; 0 for that of the last run, or else any; None for no embedded broker.
        external: an external broker; None if there is none.
        password: the service's password at the external broker.
    """

    port: int | None = None
    external: BrokerAddress | None = None
    password: str | None = field(default=None, repr=False)


NO_BROKER = BrokerSettings()
"""Notifications are not delivered: the user who opens a tunnel copies the token to the device."""


@dataclass(frozen=True)
class Notifier:
    """Delivers access tokens, if there is a broker.

    Attributes:
        outbox: the notifications for the broker; None without a broker.
        address: where the broker is; None without a broker.
        listener: where things connect to an embedded broker; None for an external one, which has its own.
    """

    outbox: Outbox | None = None
    address: BrokerAddress | None = None
    listener: MqttListener | None = None

    @property
    def announcement(self) -> str:
        """The broker's part of the line that announces that the service is ready."""
        return "" if self.address is None else f" mqtt={self.address.url}"

    def deliver(self, tunnel: Tunnel, token: str) -> None:
        """Deliver a tunnel's new access token for the destination to the tunnel's thing."""
        if self.outbox is not None:
            self.outbox.send(tunnel, token)

    def open(self, context: ssl.SSLContext, limits: Limits, notify: EventHandler) -> None:
        """Let things connect to an embedded broker.

        Args:
            context: the service's TLS context.
            limits: limits the connections.
            notify: called with each connection that is cut off.
        """
        if self.listener is not None:
            self.listener.open(context, limits, notify)


@contextlib.asynccontextmanager
async def connected_notifier(
    settings: BrokerSettings, state: StateDirectory, identity: Identity, *, host: str, name: str
) -> AsyncIterator[Notifier]:
    """Run the embedded broker, if there is one, and stay connected to the broker, within the block.

    Args:
        settings: which broker.
        state: the directory of the embedded broker's files, and of the broker's address, which ``add-thing`` reads.
        identity: the service's.
        host: the address that the service, and therefore an embedded broker, listens on.
        name: the name by which clients reach the service, and by which things reach an embedded broker.

    Raises:
        ServiceError: the broker does not start, or its certificate authorities cannot be read.
    """
    if settings.port is not None:
        remembered = BrokerAddress.read(state.broker_address)
        port = settings.port or (remembered.port if remembered is not None and remembered.embedded else 0)
        mosquitto = Mosquitto(state.broker_files, host, port)
        address = BrokerAddress(name, mosquitto.listener.port, user=NOTIFIER, embedded=True)
        with contextlib.closing(mosquitto.listener):
            async with _background("the MQTT broker", mosquitto.run()):
                await mosquitto.wait_until_it_listens()
                async with _connected(mosquitto.notifier_login, identity) as outbox:
                    address.write(state.broker_address)
                    yield Notifier(outbox, address, mosquitto.listener)
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
        async with _connected(broker, identity) as outbox:
            address.write(state.broker_address)
            yield Notifier(outbox, address)
    else:
        state.broker_address.unlink(missing_ok=True)
        yield Notifier()


@contextlib.asynccontextmanager
async def _connected(broker: BrokerLogin, identity: Identity) -> AsyncIterator[Outbox]:
    outbox = Outbox(broker, identity.region)
    async with _background("the connection to the MQTT broker", outbox.run()):
        yield outbox


@contextlib.asynccontextmanager
async def _background(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = spawn(name, work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
