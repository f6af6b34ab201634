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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable

from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..log_context import set_about
from ..net.background_tasks import spawn
from ..net.endpoint import Endpoint
from ..net.ipv6_loopback import reserve
from ..net.reasons import reason
from ..net.route import Route, find_route
from ..protocol.session import Mode
from ..proxy.addresses import Address, TcpAddress
from ..proxy.link import LinkLost, TunnelCredentials
from ..proxy.source import SourceProxy
from .account import UNKNOWN_ACCOUNT, Account, TunnelKey
from .client import HubError
from .control_process import CallerControl, EndStates
from .page_guard import Page, PageGuard
from .page_host import page_host

__all__ = ["ManagedTunnel", "TunnelRecord", "Way", "check_port"]

log = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
"""How long to wait for a link that was lost to be up again, or refused, before the reason of a failure is told."""

EXPLAIN_SECONDS = 8.0
"""How long the control API has to say what it knows of a failure. Whoever waits for the reason has waited before."""

_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")


@dataclass(frozen=True)
class Way:
    """The way to a data plane, as a caller's environment has it.

    Attributes:
        endpoint: ``HOST:PORT``; where None, AWS's of the tunnel's region.
        capath: the authorities to trust there, if not the system's.
        web_proxy: the environment variables that name an HTTP proxy, and for what.
    """

    endpoint: str | None = None
    capath: str | None = None
    web_proxy: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, caller: CallerControl) -> Way:
        environment = caller.environment
        capath = environment.get("AWSIOT_TUNNEL_CAPATH")
        return cls(
            environment.get("AWSIOT_TUNNEL_ENDPOINT") or None,
            os.path.join(caller.directory, capath) if capath else None,
            {name: environment[name] for name in _PROXY_VARIABLES if environment.get(name)},
        )

    def route(self, region: str) -> Route:
        """The route to the data plane of a region.

        Raises:
            ConfigurationError: what the environment says is not possible.
        """
        endpoint = Endpoint.parse(self.endpoint) if self.endpoint else Endpoint.of_region(region)
        return find_route(endpoint, self.web_proxy, capath=self.capath)


@dataclass(frozen=True)
class TunnelRecord:
    """What is known of a tunnel, and kept in a file so that the next hub can go on.

    Attributes:
        owner: who opened it, or took it over, through this hub.
        client_token: sent with every connect, so that the source token stays good for reconnecting.
        ports: where services listened on the loopback, to listen there again.
        chosen_ports: where the user wants them to: 0 for any port, None for none.
        any_host: the services whose port takes requests for any host, of any web page.
        awaited_since: while its device is given time to come: when the hub opened it or took it over, in seconds since
            the epoch.
        destination_version: what its device was found to speak: ``V1`` where it is to be spoken to in that from the
            start, ``V3`` for that or V2.
        expects_v1: whether the device was found to speak V1 only by an earlier tunnel.
    """

    thing: str
    tunnel_id: str
    region: str
    source_token: str = field(repr=False)
    account: Account = UNKNOWN_ACCOUNT
    owner: str = ""
    services: tuple[str, ...] = ()
    way: Way = field(default_factory=Way)
    expires_at: float | None = None
    client_token: str = field(default_factory=lambda: str(uuid.uuid4()), repr=False)
    ports: Mapping[str, int] = field(default_factory=dict)
    chosen_ports: Mapping[str, int | None] = field(default_factory=dict)
    any_host: tuple[str, ...] = ()
    awaited_since: float | None = None
    destination_version: str | None = None
    expects_v1: bool = False

    @functools.cached_property
    def saved(self) -> str:
        """JSON for the file, with the tokens, which it is there to keep.

        Made once, for the file has the records of all tunnels, and is written with each that is opened.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        account = self.account.key if self.account != UNKNOWN_ACCOUNT else ""
        return json.dumps({**values, "account": account, "way": vars(self.way)})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunnelRecord:
        """Undo what :attr:`saved` does; what earlier releases saved has no account, and no way."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        way = data.get("way") or {"endpoint": data.get("endpoint"), "capath": data.get("capath")}
        account = Account.from_key(data["account"]) if data.get("account") else UNKNOWN_ACCOUNT
        lists = {name: tuple(data.get(name, ())) for name in ("services", "any_host")}
        return cls(**{**values, **lists, "account": account, "way": Way(**way)})

    @property
    def key(self) -> TunnelKey:
        """What the hub knows it by."""
        return TunnelKey(self.account, self.thing)

    @property
    def subject(self) -> dict[str, str]:
        """What log records about it say that they are about."""
        return {"thing": self.thing, "tunnel": self.tunnel_id, "account": str(self.account)}

    @property
    def name(self) -> str:
        """What messages call it."""
        known = f" in {self.account}" if self.account != UNKNOWN_ACCOUNT else ""
        return f"{self.tunnel_id}{known}"

    @property
    def known_of_device(self) -> dict[str, Any]:
        """What the next tunnel of the thing is to know of its device, which may be another by then."""
        if self.destination_version == "V3":
            return {"destination_version": "V3"}
        return {"expects_v1": self.expects_v1 or self.destination_version == "V1"}

    def expires_within(self, seconds: float) -> bool:
        """Whether the tunnel's life is over so soon, or already."""
        return self.expires_at is not None and time.time() + seconds >= self.expires_at


class ManagedTunnel:
    """A source proxy that runs in the hub.

    Args:
        caller: who asked for it last, as whom the control API is asked about it; None where nobody has yet.
        has_plain_name: whether browsers may know a thing by its plain name, for no other has it.
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
        """Whose it was, until whoever had it taken over is told."""
        access = TunnelCredentials(Mode.SOURCE, record.source_token, record.client_token)
        route = record.way.route(record.region)
        self._proxy = SourceProxy(
            route,
            access,
            self._plan,
            bind_address="127.0.0.1",
            answers_v1_only=record.destination_version == "V1",
            expects_v1=record.expects_v1,
            speaks_newer=record.destination_version == "V3",
            leaves_descriptors=True,
            new_guard=self._new_guard,
            is_for_browsers=_is_http,
        )
        # It catches what it may meet. Where it ends, the tunnel is not alive, and the next request takes it up again.
        self._running = spawn(f"the tunnel of {record.thing}", self._run())

    @property
    def alive(self) -> bool:
        """Whether it works, or may work again by itself."""
        return not self._running.done()

    @property
    def failed(self) -> bool:
        """Whether its token is of no use any more, or its tunnel over."""
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
    def pages(self) -> dict[str, Page]:
        """Of the services that have a loopback port, those that browsers are for."""
        is_first = self.record.account != UNKNOWN_ACCOUNT and self._has_plain_name(self.record.key)
        host = page_host(self.record.key, is_first=is_first)
        return {
            service_id: Page(self.record.thing, service_id, host, port)
            for service_id, port in self.ports.items()
            if _is_http(service_id)
        }

    def _new_guard(self, service_id: str) -> PageGuard | None:
        page = self.pages.get(service_id)
        return PageGuard(page) if page is not None and service_id not in self.record.any_host else None

    def up_to_date(self) -> TunnelRecord:
        """The record, with the ports and the device as they are now."""
        ports = self.ports
        if ports and ports != self.record.ports:
            self.record = replace(self.record, ports=ports)
        found = "V1" if self._proxy.answers_v1_only else "V3" if self._proxy.speaks_newer else None
        if found is not None and found != self.record.destination_version:
            self.record = replace(self.record, destination_version=found, expects_v1=found == "V1")
        return self.record

    async def listen(self, ports: Mapping[str, int | None], any_host: Collection[str] = ()) -> None:
        """Listen on these loopback ports: 0 for any port, None for none. Other services stay as they are.

        Args:
            any_host: those of these services whose port takes requests for any host.

        Raises:
            HubError: that is not possible; the text says why.
        """
        for service_id, port in ports.items():
            self.check_offers(service_id)
            now = self.ports.get(service_id)
            if port == now or (port == 0 and now is not None):
                continue
            check_port(service_id, port, self.record.thing, its_own=self.ports.values())
            try:
                await self._proxy.listen(service_id, None if port is None else TcpAddress(None, port))
            except ConfigurationError as error:
                raise _port_in_use(service_id, port, self.record.thing, _reason(error)) from None
        before = set(self.record.any_host)
        unnamed = before.difference(ports)
        named = set(any_host).intersection(ports)
        self.record = replace(
            self.record,
            chosen_ports={**self.record.chosen_ports, **ports},
            any_host=tuple(sorted(unnamed | named)),
        )
        for service_id in before - unnamed - named:
            # A browser goes on with the connections that it has, and nobody looks at what is sent on those.
            self._proxy.reset_connections(service_id)

    async def stop_listening(self) -> None:
        """Take no new local connections; those that there are stay."""
        for service_id in self.ports:
            await self._proxy.listen(service_id, None)

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
        await self.settle(timeout)
        if not self.linked:
            raise await self._not_linked(f"no answer within {timeout:.0f} s")

    async def settle(self, timeout: float) -> None:
        """Wait until the link is up, or cannot be for now."""
        if not self.linked and self.alive:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._proxy.end.settled.wait(), timeout)

    async def _not_linked(self, otherwise: str) -> HubError:
        """Why the link is not up.

        Args:
            otherwise: the reason where there is no better one.
        """
        cause, thing = self._proxy.end.cause, self.record.thing
        code, words = _code_of(cause), f"the tunnel of {thing} ({self.record.name})"
        if code == "tunnel-closed":
            return self._gone()
        if isinstance(cause, TunnelRefused):
            states = await self._ask_why()
            if states.tunnel in ("CLOSED", "GONE"):
                return self._gone()
            if states.owner and states.owner != self.record.owner:
                return HubError(
                    f"{states.owner} took over the tunnel of {thing} ({self.record.name}): agree on who works with the "
                    f"device; your next task opens a tunnel of your own, unless iotops_tunnel_open is never",
                    code="taken-over",
                )
            if states.owner and code == "token-unknown":
                return HubError(
                    f"{words} is used from elsewhere: another hub, or job, of {states.owner} reused it, or somebody "
                    "rotated its token. Give those that run at the same time owners of their own "
                    "(IOTOPS_TUNNEL_OWNER), or one hub (IOTOPS_TUNNEL_DIR); your next task gets a tunnel",
                    code="reused-elsewhere",
                )
            return HubError(f"{words} does not work: {cause}; or {self._reopen()}", code=code)
        return HubError(f"{words} is not linked: {cause or otherwise}", code=code)

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
        """Ask the control API for the state of this tunnel's ends, as whoever used it last."""
        return EndStates() if self.caller is None else await self.caller.end_states(self.record.tunnel_id)

    async def _ask_why(self) -> EndStates:
        """The state of this tunnel's ends, for the reason of a failure."""
        try:
            return await asyncio.wait_for(self.ask_ends(), EXPLAIN_SECONDS)
        except asyncio.TimeoutError:
            return EndStates()

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
        await self.settle(SETTLE_SECONDS)
        if isinstance(self._proxy.end.cause, TunnelRefused) and not self.linked:
            return await self._not_linked("")
        return self._explained_by(await self._ask_why(), service_id, refused=refused)

    def _explained_by(self, states: EndStates, service_id: str, *, refused: bool) -> HubError:
        """Why a connection gave nothing, where the link is well: by the state of the tunnel's ends."""
        thing, tunnel = self.record.thing, self.record.name
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
            log.warning("the tunnel of %s (%s) has ended: %s", self.record.thing, self.record.name, error)
        except LinkLost as error:
            log.warning("the tunnel of %s (%s) has failed: %s", self.record.thing, self.record.name, error)
        except Exception:  # one tunnel's trouble must not end the others'
            log.exception("the tunnel of %s (%s) has failed", self.record.thing, self.record.name)

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
            return TcpAddress(None, chosen) if chosen is not None and _is_free(service_id, chosen) else None
        before = self.record.ports.get(service_id, 0)
        return TcpAddress(None, before if _is_free(service_id, before) else 0)

    def _gone(self) -> HubError:
        cause = self._proxy.end.cause
        told = (
            isinstance(cause, TunnelClosed) and "closed" not in str(cause).lower() and "expired" in str(cause).lower()
        )
        end = "has expired" if told or self.record.expires_within(0) else "was closed"
        words = f"the tunnel of {self.record.thing} ({self.record.name}) {end}: {self._reopen()}"
        return HubError(words, code="tunnel-closed")

    def _reopen(self) -> str:
        return (
            f"open another (iotops_tunnel_open=reuse, or the module iotops.tunnel.tunnel with "
            f"thing_name={self.record.thing})"
        )


def check_port(service_id: str, port: int | None, thing: str, *, its_own: Collection[int]) -> None:
    """Raise HubError where a service cannot listen there: 0 for any port, None for none.

    Args:
        its_own: the ports that the thing's services have already.
    """
    if _is_ssh(service_id) and port is not None:
        raise HubError(
            f"{service_id} of {thing} gets no port: other users of this machine could reach the device by it. ssh "
            "needs none; take it out of iotops_tunnel_ports, or the option ports",
            code="bad-input",
        )
    if port and port not in its_own and not _is_free(service_id, port):
        raise _port_in_use(service_id, port, thing, "another program listens there")


def _port_in_use(service_id: str, port: int | None, thing: str, why: str) -> HubError:
    return HubError(
        f"{service_id} of {thing} cannot have port {port} on 127.0.0.1: {why}. Choose another (iotops_tunnel_ports, or "
        f"the option ports), or {service_id}=any",
        code="port-in-use",
    )


def _code_of(cause: Exception | None) -> str:
    if isinstance(cause, TunnelClosed):
        return "tunnel-closed"
    return cause.cause if isinstance(cause, TunnelRefused) else "not-linked"


def _is_ssh(service_id: str) -> bool:
    return service_id.upper().startswith("SSH")


def _is_http(service_id: str) -> bool:
    return service_id.upper().startswith("HTTP")


def _is_free(service_id: str, port: int) -> bool:
    """Whether a service can listen at a port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            reserved = reserve(port) if _is_http(service_id) else None
        except OSError:
            return False
    if reserved is not None:
        reserved.close()
    return True


def _reason(error: ConfigurationError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return "another program listens there"
    return reason(cause) if isinstance(cause, OSError) else str(error)
