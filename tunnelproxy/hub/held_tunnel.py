# SPDX-License-Identifier: Apache-2.0
"""One tunnel that the hub holds: its source proxy, and what to tell the operator when it does not work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..addresses import Address, TcpAddress
from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..log_context import set_about
from ..protocol.session import Mode
from ..source import SourceProxy
from ..transport.endpoint import Endpoint
from ..transport.link import Access
from ..transport.route import find_route
from .client import HubError
from .control_plane import ControlPlane, EndStates

__all__ = ["HeldTunnel", "TunnelRecord"]

log = logging.getLogger(__name__)

_SECRET_AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class TunnelRecord:
    """What is known of a tunnel, and kept in a file so that the next hub can go on.

    Attributes:
        client_token: sent with every connect, so that the source token stays good for reconnecting.
        ports: where services listened on the loopback, to listen there again.
        aws: how to reach the control API, by the names of environment variables.
        awaited_since: while its device is given time to come: when the hub opened it or took it over, in seconds since
            the epoch.
    """

    thing: str
    tunnel_id: str
    region: str
    source_token: str = field(repr=False)
    services: tuple[str, ...] = ()
    endpoint: str | None = None
    capath: str | None = None
    expires_at: float | None = None
    client_token: str = field(default_factory=lambda: str(uuid.uuid4()), repr=False)
    ports: Mapping[str, int] = field(default_factory=dict)
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    awaited_since: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the file: with the tokens, which it is there to keep, but without AWS keys."""
        kept = {name: value for name, value in self.aws.items() if name not in _SECRET_AWS_VARIABLES}
        return asdict(replace(self, aws=kept))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunnelRecord:
        """Undo :meth:`to_json`, or read an ``adopt`` request."""
        return cls(**{**data, "services": tuple(data["services"])})

    @property
    def subject(self) -> dict[str, str]:
        """What log records about it say that they are about."""
        return {"thing": self.thing, "tunnel": self.tunnel_id}

    def expires_within(self, seconds: float) -> bool:
        """Whether the tunnel's life is over so soon, or already."""
        return self.expires_at is not None and time.time() + seconds >= self.expires_at


class HeldTunnel:
    """A source proxy that runs in the hub."""

    def __init__(self, record: TunnelRecord) -> None:
        self.record = record
        endpoint = Endpoint.parse(record.endpoint) if record.endpoint else Endpoint.of_region(record.region)
        access = Access(Mode.SOURCE, record.source_token, record.client_token)
        route = find_route(endpoint, os.environ, capath=record.capath)
        self._proxy = SourceProxy(route, access, self._plan, bind_address="127.0.0.1")
        self._running = asyncio.ensure_future(self._run())

    @property
    def alive(self) -> bool:
        """Whether it works, or may work again by itself."""
        return not self._running.done()

    @property
    def busy(self) -> bool:
        """Whether it carries connections."""
        return bool(self._proxy.end.open_connections())

    @property
    def ports(self) -> dict[str, int]:
        """The loopback ports of the services that have one."""
        return {
            service_id: state.address.port
            for service_id, state in self._proxy.end.services.items()
            if isinstance(state.address, TcpAddress)
        }

    def use_aws(self, aws: Mapping[str, str]) -> None:
        """Take the caller's way to the control API where none, or one without keys, is known."""
        if aws and not any(name in self.record.aws for name in _SECRET_AWS_VARIABLES):
            self.record = replace(self.record, aws={**aws, **self.record.aws})

    def await_no_longer(self) -> None:
        """The device has come, or has had its time: nobody need wait for it any more."""
        self.record = replace(self.record, awaited_since=None)

    async def stop(self) -> None:
        """Disconnect; the tunnel itself stays open."""
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    async def wait_linked(self, timeout: float) -> None:
        """Wait until the link is up.

        Raises:
            HubError: it is not, and why.
        """
        end = self._proxy.end
        if not end.ready.is_set() and self.alive:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(end.settled.wait(), timeout)
        if end.ready.is_set():
            return
        code, words = _code_of(end.cause), f"the tunnel of {self.record.thing} ({self.record.tunnel_id})"
        if code == "tunnel-closed":
            raise HubError(f"{words} is closed or has expired: open another ({self._reopen()})", code=code)
        if isinstance(end.cause, TunnelRefused):
            raise HubError(f"{words} does not work: {end.cause}; or {self._reopen()}", code=code)
        raise HubError(f"{words} is not linked: {end.cause or f'no answer within {timeout:.0f} s'}", code=code)

    def check_offers(self, service_id: str) -> None:
        """Raise HubError where the tunnel does not carry a service."""
        offered = list(self._proxy.end.services)
        if service_id not in offered:
            raise HubError(
                f"the tunnel of {self.record.thing} does not offer {service_id}; it carries "
                f"{', '.join(offered) or 'no services'}",
                code="service-not-offered",
            )

    async def open_stream(self, service_id: str, timeout: float) -> socket.socket:
        """Open a connection, and wait until the device has sent its first bytes.

        Raises:
            HubError: it sent none; the text says whether the device is there.
        """
        set_about(**self.record.subject)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        local = await self._proxy.attach(service_id, ours)
        try:
            answered: bool | None = await asyncio.wait_for(asyncio.shield(local.answered), timeout)
        except asyncio.TimeoutError:
            answered = None
            local.abort()
        if answered:
            return theirs
        theirs.close()
        raise await self.explain(service_id, refused=answered is False)

    async def ask_ends(self) -> EndStates:
        """Ask the control API for the state of this tunnel's ends."""
        return await ControlPlane(self.record.aws, self.record.region).end_states(self.record.tunnel_id)

    async def explain(self, service_id: str, *, refused: bool) -> HubError:
        """Why a connection gave nothing: which end is at fault.

        Args:
            refused: whether it was ended, rather than left without an answer.
        """
        if self._proxy.refusal is not None:
            return HubError(f"{self.record.thing}: {self._proxy.refusal}", code="old-protocol")
        states = await self.ask_ends()
        thing, tunnel = self.record.thing, self.record.tunnel_id
        if states.tunnel in ("CLOSED", "GONE"):
            return HubError(
                f"the tunnel of {thing} ({tunnel}) is closed or has expired: {self._reopen()}", code="tunnel-closed"
            )
        if states.destination == "disconnected":
            return HubError(
                f"the device {thing} is not connected to its tunnel ({tunnel}): see that it is online and that its "
                "agent or destination proxy runs with the newest access token",
                code="device-not-connected",
            )
        if refused:
            doubt = "" if states.destination == "connected" else " (or it is not connected: nobody could say)"
            return HubError(
                f"the device {thing} refused {service_id}{doubt}: see that the server behind {service_id} runs there, "
                "at the address that its destination proxy has for it",
                code="refused",
            )
        return HubError(
            f"the device {thing} gave no answer on {service_id} in time; its end of the tunnel is "
            f"{states.destination}: see that its proxy speaks V3 and that the server behind {service_id} answers there",
            code="no-answer",
        )

    def row(self) -> dict[str, Any]:
        """What ``hub status`` shows."""
        end = self._proxy.end
        live = list(end.open_connections().items())
        services = {}
        for service_id in self.record.services:
            state = end.services.get(service_id)
            sockets = [local for connection, local in live if connection.service_id == service_id]
            services[service_id] = {
                "port": self.ports.get(service_id),
                "connections": len(sockets),
                "bytes_in": (state.bytes_in if state else 0) + sum(local.bytes_in for local in sockets),
                "bytes_out": (state.bytes_out if state else 0) + sum(local.bytes_out for local in sockets),
            }
        linked = end.ready.is_set()
        round_trip = end.link.round_trip if linked and end.link is not None else None
        return {
            "thing": self.record.thing,
            "tunnel_id": self.record.tunnel_id,
            "region": self.record.region,
            "endpoint": str(end.endpoint),
            "state": "connected" if linked else ("connecting" if self.alive else _code_of(end.cause)),
            "cause": None if linked or end.cause is None else str(end.cause),
            "services": services,
            "round_trip_ms": None if round_trip is None else round(round_trip * 1000, 2),
            "expires_at": self.record.expires_at,
        }

    async def _run(self) -> None:
        set_about(**self.record.subject)
        try:
            await self._proxy.run()
        except (TunnelClosed, TunnelRefused, ConfigurationError) as error:
            log.warning("the tunnel of %s (%s) has ended: %s", self.record.thing, self.record.tunnel_id, error)
        except Exception as error:  # one tunnel's trouble must not end the others'
            log.warning("the tunnel of %s (%s) has failed: %s", self.record.thing, self.record.tunnel_id, error)

    def _plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        """SSH is reached through :meth:`open_stream` alone, so that no other local user can; the rest gets a port."""
        return {
            service_id: None
            if service_id.upper().startswith("SSH")
            else TcpAddress(None, _free_port(self.record.ports.get(service_id, 0)))
            for service_id in offered
        }

    def _reopen(self) -> str:
        return f"open one with the module iotops.tunnel.tunnel, thing_name={self.record.thing}"


def _code_of(cause: Exception | None) -> str:
    if isinstance(cause, TunnelClosed):
        return "tunnel-closed"
    return cause.cause if isinstance(cause, TunnelRefused) else "not-linked"


def _free_port(wanted: int) -> int:
    """The port that a service had before, if it is free; else 0, for any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
