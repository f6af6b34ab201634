# SPDX-License-Identifier: Apache-2.0
"""One tunnel that the hub holds: its source proxy, and the record that outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Callable

from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..log_context import set_about
from ..net.background_tasks import spawn
from ..protocol.session import Mode
from ..proxy.addresses import Address, TcpAddress
from ..proxy.link import LinkLost, TunnelCredentials
from ..proxy.source import SourceProxy
from .account import UNKNOWN_ACCOUNT, TunnelKey
from .browser_host import browser_host
from .control_answers import EndStates
from .control_process import CallerControl
from .local_ports import check_port, is_free, is_http, is_ssh, port_in_use, reason_of
from .location import HubError
from .request_guard import DevicePage, RequestGuard
from .tunnel_errors import code_of, no_answer, not_linked, not_offered
from .tunnel_record import TunnelRecord

__all__ = ["ManagedTunnel"]

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
"""How long to wait until a lost link is up again, or refused, before the reason for a failure is reported."""

EXPLAIN_SECONDS = 8.0
"""How long to wait for the control API to explain a failure, in addition to the time until the failure."""


class ManagedTunnel:
    """A source proxy that runs in the hub.

    Args:
        caller: the latest caller that asked for it, whose credentials control calls use; None if there is none yet.
        has_plain_name: whether a thing may have its plain name as host name in browsers, because no other thing has it.
    """

    def __init__(
        self,
        record: TunnelRecord,
        caller: CallerControl | None = None,
        has_plain_name: Callable[[TunnelKey], bool] = lambda key: True,
    ) -> None:
        self.record = record
        self.caller = caller
        self._has_plain_name = has_plain_name
        self.taken_from = ""
        """The owner that it was taken over from, until that has been reported."""
        self._proxy = SourceProxy(
            record.data_plane.route(record.region),
            TunnelCredentials(Mode.SOURCE, record.source_token, record.client_token),
            self._plan,
            bind_address="127.0.0.1",
            answers_v1_only=record.destination_version == "V1",
            expects_v1=record.expects_v1,
            speaks_newer=record.destination_version == "V3",
            leaves_descriptors=True,
            new_guard=self._new_guard,
            is_for_browsers=is_http,
        )
        # It handles its own errors. When it stops, the tunnel is dead, and the next request replaces it.
        self._running = spawn(f"the tunnel of {record.thing}", self._run())

    @property
    def alive(self) -> bool:
        """Whether it works or may recover."""
        return not self._running.done()

    @property
    def failed(self) -> bool:
        """Whether its token is no longer valid, or the tunnel no longer open."""
        return isinstance(self._proxy.end.cause, (TunnelClosed, TunnelRefused))

    @property
    def linked(self) -> bool:
        """Whether its link is up."""
        return self._proxy.end.ready.is_set()

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

    @property
    def pages(self) -> dict[str, DevicePage]:
        """The services that have a loopback port and are for browsers."""
        is_first = self.record.account != UNKNOWN_ACCOUNT and self._has_plain_name(self.record.key)
        host = browser_host(self.record.key, is_first=is_first)
        return {
            service_id: DevicePage(self.record.thing, service_id, host, port)
            for service_id, port in self.ports.items()
            if is_http(service_id)
        }

    def _new_guard(self, service_id: str) -> RequestGuard | None:
        page = self.pages.get(service_id)
        return RequestGuard(page) if page is not None and service_id not in self.record.any_host else None

    def up_to_date(self) -> TunnelRecord:
        """The record, with the current ports and what is known about the device."""
        ports = self.ports
        if ports and ports != self.record.ports:
            self.record = replace(self.record, ports=ports)
        found = "V1" if self._proxy.answers_v1_only else "V3" if self._proxy.speaks_newer else None
        if found is not None and found != self.record.destination_version:
            self.record = replace(self.record, destination_version=found, expects_v1=found == "V1")
        return self.record

    async def listen(self, ports: Mapping[str, int | None], any_host: Collection[str] = ()) -> None:
        """Listen on loopback ports. Other services stay as they are.

        Args:
            ports: by service ID: 0 for any port, None for none.
            any_host: the services among them whose port accepts requests for any host.

        Raises:
            HubError: a service cannot listen there.
        """
        for service_id, port in ports.items():
            self.check_offers(service_id)
            now = self.ports.get(service_id)
            if port == now or (port == 0 and now is not None):
                continue
            check_port(service_id, port, self.record.thing, own_ports=self.ports.values())
            try:
                await self._proxy.listen(service_id, None if port is None else TcpAddress(None, port))
            except ConfigurationError as error:
                raise port_in_use(service_id, port, self.record.thing, reason_of(error)) from None
        before = set(self.record.any_host)
        unnamed = before.difference(ports)
        named = set(any_host).intersection(ports)
        self.record = replace(
            self.record,
            chosen_ports={**self.record.chosen_ports, **ports},
            any_host=tuple(sorted(unnamed | named)),
        )
        for service_id in before - unnamed - named:
            # A browser would otherwise reuse its connections, whose requests are not checked.
            self._proxy.reset_connections(service_id)

    async def stop_listening(self) -> None:
        """Accept no new local connections; existing ones continue."""
        for service_id in self.ports:
            await self._proxy.listen(service_id, None)

    def stop_awaiting(self) -> None:
        """Stop waiting for the device: it has connected, or its time is up."""
        self.record = replace(self.record, awaited_since=None)

    async def stop(self) -> None:
        """Disconnect; the tunnel itself stays open."""
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    async def wait_linked(self, timeout: float) -> None:
        """Wait until the link is up.

        Raises:
            HubError: it is not up; the text says why.
        """
        await self.settle(timeout)
        if not self.linked:
            raise await self._not_linked(f"no answer within {timeout:.0f} s")

    async def settle(self, timeout: float) -> None:
        """Wait until the link is up, or has failed for now."""
        if not self.linked and self.alive:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._proxy.end.settled.wait(), timeout)

    async def _not_linked(self, otherwise: str) -> HubError:
        """Why the link is not up.

        Args:
            otherwise: the reason if there is no better one.
        """
        cause = self._proxy.end.cause
        refused = isinstance(cause, TunnelRefused) and code_of(cause) != "tunnel-closed"
        return not_linked(self.record, cause, await self._ask_why() if refused else EndStates(), otherwise)

    def check_offers(self, service_id: str) -> None:
        """Raise HubError if the tunnel does not carry a service."""
        if service_id not in self._proxy.end.services:
            raise not_offered(self.record, service_id, self._proxy.end.services)

    async def open_stream(self, service_id: str, timeout: float, *, speaks_first: bool) -> socket.socket:
        """Open a stream and return the caller's end.

        Args:
            timeout: seconds that the device may take to send something.
            speaks_first: whether to wait for data, because the device's server speaks first.

        Raises:
            HubError: the device refused the stream, or did not answer.
        """
        set_about(**self.record.log_fields)
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
        """Ask the control API for the state of this tunnel's ends, with the credentials of the last caller."""
        return EndStates() if self.caller is None else await self.caller.end_states(self.record.tunnel_id)

    async def _ask_why(self) -> EndStates:
        """The state of this tunnel's ends, to explain a failure."""
        try:
            return await asyncio.wait_for(self.ask_ends(), EXPLAIN_SECONDS)
        except asyncio.TimeoutError:
            return EndStates()

    async def explain(self, service_id: str, *, refused: bool) -> HubError:
        """Find out why a stream carried no data: which end is at fault.

        Args:
            refused: whether it was closed, rather than left without an answer.
        """
        if self._proxy.refusal is not None:
            return HubError(f"{self.record.thing}: {self._proxy.refusal}", code="old-protocol")
        full = self._proxy.why_full(service_id) if service_id in self._proxy.end.services else None
        if full is not None:
            return HubError(
                f"{service_id} of {self.record.thing} {full}: wait until that is closed, have all tasks share one (the "
                "same user and ssh arguments), or give the device a proxy that speaks V3",
                code="busy",
            )
        await self.settle(SETTLE_SECONDS)
        if isinstance(self._proxy.end.cause, TunnelRefused) and not self.linked:
            return await self._not_linked("")
        states = await self._ask_why()
        return no_answer(self.record, service_id, states, cause=self._proxy.end.cause, refused=refused)

    def row(self) -> dict[str, Any]:
        """What ``hub status`` shows."""
        end, pages = self._proxy.end, self.pages
        live = list(end.open_connections().items())
        services = {}
        for service_id in self.record.services:
            state = end.services.get(service_id)
            sockets = [local for connection, local in live if connection.service_id == service_id]
            services[service_id] = {
                "port": self.ports.get(service_id),
                "url": pages[service_id].url if service_id in pages else None,
                "any_host": service_id in self.record.any_host,
                "connections": len(sockets),
                "bytes_in": (state.bytes_in if state else 0) + sum(local.bytes_in for local in sockets),
                "bytes_out": (state.bytes_out if state else 0) + sum(local.bytes_out for local in sockets),
            }
        linked = end.ready.is_set()
        round_trip = end.link.round_trip if linked and end.link is not None else None
        return {
            "thing": self.record.thing,
            "account": self.record.account.key if self.record.account != UNKNOWN_ACCOUNT else "",
            "account_name": str(self.record.account) if self.record.account != UNKNOWN_ACCOUNT else "",
            "owner": self.record.owner,
            "tunnel_id": self.record.tunnel_id,
            "region": self.record.region,
            "endpoint": str(end.endpoint),
            "state": "connected" if linked else ("connecting" if self.alive else code_of(end.cause)),
            "cause": None if linked or end.cause is None else str(end.cause),
            "services": services,
            "destination_version": self.up_to_date().destination_version,
            "round_trip_ms": None if round_trip is None else round(round_trip * 1000, 2),
            "expires_at": self.record.expires_at,
        }

    async def _run(self) -> None:
        set_about(**self.record.log_fields)
        try:
            await self._proxy.run()
        except (TunnelClosed, TunnelRefused, ConfigurationError) as error:
            log.warning("the tunnel of %s (%s) is closed: %s", self.record.thing, self.record.name, error)
        except LinkLost as error:
            log.warning("the tunnel of %s (%s) has failed: %s", self.record.thing, self.record.name, error)
        except Exception:  # one tunnel's failure must not stop the others
            log.exception("the tunnel of %s (%s) has failed", self.record.thing, self.record.name)

    def _plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        return {service_id: self._address(service_id) for service_id in offered}

    def _address(self, service_id: str) -> TcpAddress | None:
        """Where a service listens first: on the port that the user chose, on the one that it had, or on any port.

        SSH has no port: it is reached only through :meth:`open_stream`, which no other local user can use.
        """
        if is_ssh(service_id):
            return None
        chosen = self.record.chosen_ports.get(service_id, 0)
        if chosen != 0:
            # A port in use must not stop the tunnel: listen() reports it to the caller that asks for the port.
            return TcpAddress(None, chosen) if chosen is not None and is_free(service_id, chosen) else None
        before = self.record.ports.get(service_id, 0)
        return TcpAddress(None, before if is_free(service_id, before) else 0)
