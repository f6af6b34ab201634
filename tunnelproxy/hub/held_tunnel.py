# SPDX-License-Identifier: Apache-2.0
"""One tunnel that the hub holds: its source proxy, and what to tell the operator when it does not work."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
        chosen_ports: where the user wants them to: 0 for any port, None for none.
        aws: how to reach the control API, by the names of environment variables.
        awaited_since: while its device is given time to come: when the hub opened it or took it over, in seconds since
            the epoch.
        destination_version: what its device was found to speak, where it is to be spoken to in that from the start.
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
    chosen_ports: Mapping[str, int | None] = field(default_factory=dict)
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    awaited_since: float | None = None
    destination_version: str | None = None

    @functools.cached_property
    def saved(self) -> str:
        """JSON for the file: with the tokens, which it is there to keep, but without AWS keys.

        Made once, for the file has the records of all tunnels, and is written with each that is opened.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        kept = {name: value for name, value in self.aws.items() if name not in _SECRET_AWS_VARIABLES}
        return json.dumps({**values, "aws": kept})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunnelRecord:
        """Undo what :attr:`saved` does, or read an ``adopt`` request."""
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
        self._proxy = SourceProxy(
            route, access, self._plan, bind_address="127.0.0.1", answers_v1_only=record.destination_version == "V1"
        )
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

    def up_to_date(self) -> TunnelRecord:
        """The record, with the ports and the device as they are now."""
        ports = self.ports
        if ports and ports != self.record.ports:
            self.record = replace(self.record, ports=ports)
        if self._proxy.answers_v1_only and self.record.destination_version is None:
            self.record = replace(self.record, destination_version="V1")
        return self.record

    async def listen(self, ports: Mapping[str, int | None]) -> None:
        """Listen on these loopback ports: 0 for any port, None for none. Other services stay as they are.

        Raises:
            HubError: that is not possible; the text says why.
        """
        for service_id, port in ports.items():
            self.check_offers(service_id)
            if _is_ssh(service_id) and port is not None:
                raise HubError(
                    f"{service_id} of {self.record.thing} gets no port: other users of this machine could reach the "
                    "device by it. ssh needs none; take it out of iotops_tunnel_ports, or the option ports",
                    code="bad-input",
                )
            now = self.ports.get(service_id)
            if port == now or (port == 0 and now is not None):
                continue
            try:
                await self._proxy.listen(service_id, None if port is None else TcpAddress(None, port))
            except ConfigurationError as error:
                raise HubError(
                    f"{service_id} of {self.record.thing} cannot have port {port} on 127.0.0.1: {_reason(error)}. "
                    f"Choose another (iotops_tunnel_ports, or the option ports), or {service_id}=any",
                    code="port-in-use",
                ) from None
        self.record = replace(self.record, chosen_ports={**self.record.chosen_ports, **ports})

    async def stop_listening(self) -> None:
        """Take no new local connections; those that there are stay."""
        for service_id in self.ports:
            await self._proxy.listen(service_id, None)

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
            raise self._gone()
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

    async def open_stream(self, service_id: str, timeout: float, *, speaks_first: bool) -> socket.socket:
        """Open a connection, and, if the device speaks first, wait until it has.

        Raises:
            HubError: it sent none; the text says whether the device is there.
        """
        set_about(**self.record.subject)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        local = await self._proxy.attach(service_id, ours, awaits_answer=speaks_first)
        if not speaks_first:
            return theirs
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
        full = self._proxy.why_full(service_id) if service_id in self._proxy.end.services else None
        if full is not None:
            return HubError(
                f"{service_id} of {self.record.thing} {full}: wait until that has ended, have all tasks share one (the "
                "same user and ssh arguments), or give the device a proxy that speaks V3",
                code="busy",
            )
        states = await self.ask_ends()
        thing, tunnel = self.record.thing, self.record.tunnel_id
        if states.tunnel in ("CLOSED", "GONE"):
            return self._gone()
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
        return {service_id: self._address(service_id) for service_id in offered}

    def _address(self, service_id: str) -> TcpAddress | None:
        """Where a service listens at first: at the port that it was given, or had, or at any.

        SSH is reached through :meth:`open_stream` alone, so that no other local user can.
        """
        if _is_ssh(service_id):
            return None
        chosen = self.record.chosen_ports.get(service_id, 0)
        if chosen != 0:
            # One that is taken must not end the tunnel: whoever asks for it by listen() is told.
            return TcpAddress(None, chosen) if chosen is not None and _is_free(chosen) else None
        before = self.record.ports.get(service_id, 0)
        return TcpAddress(None, before if _is_free(before) else 0)

    def _gone(self) -> HubError:
        cause = self._proxy.end.cause
        told = (
            isinstance(cause, TunnelClosed) and "closed" not in str(cause).lower() and "expired" in str(cause).lower()
        )
        end = "has expired" if told or self.record.expires_within(0) else "was closed"
        words = f"the tunnel of {self.record.thing} ({self.record.tunnel_id}) {end}: {self._reopen()}"
        return HubError(words, code="tunnel-closed")

    def _reopen(self) -> str:
        return (
            f"open another (iotops_tunnel_open=reuse, or the module iotops.tunnel.tunnel with "
            f"thing_name={self.record.thing})"
        )


def _code_of(cause: Exception | None) -> str:
    if isinstance(cause, TunnelClosed):
        return "tunnel-closed"
    return cause.cause if isinstance(cause, TunnelRefused) else "not-linked"


def _is_ssh(service_id: str) -> bool:
    return service_id.upper().startswith("SSH")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _reason(error: ConfigurationError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return "another program listens there"
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error)
