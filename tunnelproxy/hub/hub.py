# SPDX-License-Identifier: Apache-2.0
"""Carries out the hub's requests: finds, opens and renews tunnels, explains failures, hands out streams."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Union

from . import requests
from .account import UNKNOWN_ACCOUNT, Account, TunnelKey
from .control_process import CallerControl, Callers
from .known_accounts import KnownAccounts
from .location import HubError
from .opening import RENEW_SECONDS, TunnelOpener, check_name, not_found
from .ssh_names import SshNames, qualified_name
from .tunnel import ManagedTunnel
from .tunnel_record import TunnelRecord
from .tunnel_table import TunnelTable

__all__ = ["Hub"]

log = logging.getLogger(__name__)

DESTINATION_POLL_SECONDS = (0.25, 1.0)
"""How often to ask whether a device has connected: often at first, because an agent takes a fraction of a second."""

STATE_NAME = "tunnels.jsonl"
ACCOUNTS_NAME = "accounts.jsonl"

Reply = dict[str, Any]
Result = Union[Reply, tuple[Reply, socket.socket]]


class Hub:
    """All tunnels of one user on one controller, keyed by their account and the thing at their far end.

    Args:
        folder: the folder of the files that the next hub reads.
        names: the names of things in ssh.
    """

    def __init__(self, folder: Path, names: SshNames) -> None:
        self._tunnels = TunnelTable(folder / STATE_NAME, names)
        self._names = names
        self._known = KnownAccounts(folder / ACCOUNTS_NAME)
        self._callers = Callers(self._known)
        self._opener = TunnelOpener()
        self._locks: dict[TunnelKey, asyncio.Lock] = {}
        self._opening: Counter[TunnelKey] = Counter()
        """How many callers are waiting until the tunnel of a thing is open and its device has connected."""
        self.stopping = asyncio.Event()
        self._last_used = asyncio.get_running_loop().time()
        self._answering = 0
        """How many requests are being answered."""
        self._operations: Mapping[type, Callable[[Any], Awaitable[Result]]] = {
            requests.Ensure: self._ensure,
            requests.Locate: self._locate,
            requests.Prepare: self._prepare,
            requests.Call: self._call,
            requests.Adopt: self._adopt,
            requests.Describe: self._describe,
            requests.Explain: self._explain,
            requests.Release: self._release,
            requests.Holds: self._holds,
            requests.Status: self._status,
            requests.Open: self._open,
            requests.Stop: self._stop,
            requests.Inherit: self._inherit,
        }

    def restore(self) -> None:
        """Take over the tunnels that the previous hub left."""
        self._tunnels.restore()

    def idle_for(self, seconds: float) -> bool:
        """Whether, for that long, there was no request, and no tunnel that worked or could recover."""
        now = asyncio.get_running_loop().time()
        if self._answering or any(tunnel.alive for tunnel in self._tunnels):
            self._last_used = now
        return now - self._last_used >= seconds

    async def tidy(self) -> None:
        """Disconnect replaced tunnels without connections, and save what could not be saved before."""
        for file in (self._tunnels.file, self._known.file, self._names.file):
            file.retry()
        await self._tunnels.stop_replaced()
        self._callers.tidy([tunnel.caller for tunnel in self._tunnels if tunnel.caller is not None])

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, which may open a tunnel, or any tunnel carries connections."""
        return self._answering > 0 or self._tunnels.busy

    def move(self, folder: Path) -> None:
        """Rewrite the files, in a folder that was recreated, perhaps elsewhere."""
        if self._names.file.path.parent == self._tunnels.file.path.parent:
            self._names.file.path = folder / self._names.file.path.name
        self._tunnels.file.path, self._known.file.path = folder / STATE_NAME, folder / ACCOUNTS_NAME
        for file in (self._tunnels.file, self._known.file, self._names.file):
            file.save()

    async def hand_over(self) -> list[str]:
        """Hand the tunnels without connections over to the hub that has taken this one's folder.

        Returns:
            the lines of the file that the other hub needs to hold them.
        """
        return await self._tunnels.give_up_idle()

    async def stop(self) -> None:
        """Disconnect every tunnel; the next hub finds what it needs in the file."""
        await asyncio.gather(self._callers.stop(), self._tunnels.stop())

    async def answer(self, request: requests.Request) -> tuple[Reply, socket.socket | None]:
        """Carry out one request.

        Returns:
            the reply, and for :class:`.requests.Open` the stream to pass along.

        Raises:
            HubError: the request cannot be carried out; the text is for the operator.
        """
        self._answering += 1
        try:
            result = await self._operations[type(request)](request)
        finally:
            self._answering -= 1
            self._last_used = asyncio.get_running_loop().time()
        return result if isinstance(result, tuple) else (result, None)

    # --- Tunnels that are found, opened, or passed to the hub.

    async def _ensure(self, request: requests.Ensure) -> Reply:
        caller = self._callers.of(request.caller)
        key = await self._key(caller, request.thing)
        with self._counted_as_opening(key):
            try:
                tunnel = await self._linked(key, caller, request)
            except HubError as error:
                if error.code != "tunnel-closed" or not request.may_open:
                    raise
                # It was closed unnoticed, while no link was up: the hub was just started, or the link was lost.
                tunnel = await self._linked(key, caller, request)
            tunnel.check_offers(request.service)
            await self._listen(tunnel, request.plan)
            if tunnel.record.awaited_since is not None and request.may_open:
                await self._wait_for_destination(tunnel, tunnel.record.awaited_since, request.wait)
        taken_from, tunnel.taken_from = tunnel.taken_from, ""
        return {
            **self._row(tunnel),
            "hub_pid": os.getpid(),
            "taken_from": taken_from,
            "not_saved": self._tunnels.not_saved,
        }

    async def _linked(self, key: TunnelKey, caller: CallerControl, request: requests.Ensure) -> ManagedTunnel:
        """The tunnel for a request, once its link is up."""
        if request.may_open:
            async with self._lock(key):
                tunnel = await self._provide(key, caller, request)
        else:
            tunnel = self._find(key, caller)
        tunnel = await self._with_callers_settings(tunnel, caller, request.timeout)
        await tunnel.wait_linked(request.timeout)
        return tunnel

    async def _provide(self, key: TunnelKey, caller: CallerControl, request: requests.Ensure) -> ManagedTunnel:
        """The tunnel of a thing: the one that the hub holds, or an open one, or a new one."""
        before = self._tunnels.get(key)
        if before is not None and before.alive and not before.record.expires_within(RENEW_SECONDS):
            before.caller = caller
            return before
        found = await self._opener.find_or_open(
            key,
            caller,
            request,
            held=[tunnel.record.tunnel_id for tunnel in self._tunnels if tunnel.alive],
            own_ports=before.ports.values() if before is not None else (),
        )
        account = Account.from_arn(found.arn, key.account.endpoint)
        if account != key.account:
            # The service did not reveal it before.
            caller.learn(account)
        record = TunnelRecord(
            thing=key.thing,
            account=account,
            owner=request.owner,
            tunnel_id=found.tunnel_id,
            region=found.region,
            source_token=found.source_token,
            services=found.services,
            data_plane=caller.data_plane,
            expires_at=found.expires_at,
            awaited_since=time.time(),
        )
        tunnel = await self._tunnels.hold(_like(before, record), caller)
        tunnel.taken_from = found.taken_from
        return tunnel

    async def _with_callers_settings(
        self, tunnel: ManagedTunnel, caller: CallerControl, timeout: float
    ) -> ManagedTunnel:
        """The tunnel, linked with the caller's data plane settings if its own no longer work."""
        if tunnel.linked or caller.data_plane == tunnel.record.data_plane:
            return tunnel
        await tunnel.settle(timeout)
        if tunnel.linked or not tunnel.alive:
            return tunnel
        async with self._lock(tunnel.record.key):
            if self._tunnels.get(tunnel.record.key) is tunnel:
                return await self._tunnels.hold(replace(tunnel.up_to_date(), data_plane=caller.data_plane), caller)
        return tunnel

    async def _wait_for_destination(self, tunnel: ManagedTunnel, since: float, seconds: float) -> None:
        """Wait until the device has connected: it learns its token only when the tunnel is opened.

        All callers that ask for the tunnel meanwhile wait too, and so does the next hub if this one is killed.
        """
        pause, longest = DESTINATION_POLL_SECONDS
        thing, name = tunnel.record.thing, tunnel.record.name
        while (states := await tunnel.ask_ends()).destination != "connected":
            if time.time() >= since + seconds:
                self._stop_awaiting(tunnel)
                if states.destination == "unknown":
                    raise HubError(
                        f"it is not known whether the device {thing} has connected to its tunnel ({name}): the control "
                        f"API did not describe it within {seconds:.0f} s; see hub.log",
                        code="device-unknown",
                    )
                raise HubError(
                    f"the device {thing} did not connect to its tunnel ({name}) within {seconds:.0f} s: check that it "
                    f"is online, and that its agent runs and has an address for each of "
                    f"{', '.join(tunnel.record.services)}",
                    code="device-not-connected",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        self._stop_awaiting(tunnel)

    def _stop_awaiting(self, tunnel: ManagedTunnel) -> None:
        tunnel.stop_awaiting()
        self._tunnels.save()

    @contextmanager
    def _counted_as_opening(self, key: TunnelKey) -> Iterator[None]:
        self._opening[key] += 1
        try:
            yield
        finally:
            self._opening[key] -= 1
            self._opening += Counter()  # drops what is zero

    async def _prepare(self, request: requests.Prepare) -> Reply:
        caller, thing = self._callers.of(request.caller), request.thing
        if thing is not None:
            check_name("thing", thing)
        account = await caller.account(thing or "")
        before = None if thing is None else self._tunnels.get(TunnelKey(account, thing))
        await self._opener.check(
            account,
            thing,
            request.plan,
            caller=caller,
            own_ports=before.ports.values() if before is not None else (),
            unregistered=request.unregistered,
        )
        return {"account": account.key, "region": account.region}

    async def _adopt(self, request: requests.Adopt) -> Reply:
        caller = self._callers.of(request.caller)
        known = await caller.account(request.thing)
        record = TunnelRecord(
            thing=request.thing,
            account=_from_arn(request.tunnel_arn, known.endpoint),
            owner=request.owner,
            tunnel_id=request.tunnel_id,
            region=known.region,
            source_token=request.source_token,
            services=request.plan.services,
            data_plane=caller.data_plane,
            expires_at=request.expires_at,
        )
        async with self._lock(record.key):
            tunnel = self._tunnels.get(record.key)
            if tunnel is None or not tunnel.alive or tunnel.record.source_token != record.source_token:
                tunnel = await self._tunnels.hold(_like(tunnel, record), caller)
        await tunnel.wait_linked(request.timeout)
        await self._listen(tunnel, request.plan)
        self._tunnels.save()
        return {**self._row(tunnel), "not_saved": self._tunnels.not_saved}

    async def _listen(self, tunnel: ManagedTunnel, plan: requests.ServicePlan) -> None:
        """Make a tunnel's services listen on the ports that the user wants."""
        if not plan.ports:
            # The usual case, in each task of each host: do not go through all other tunnels.
            return
        self._check_ports_of_others(tunnel, plan.ports)
        before = tunnel.ports, tunnel.record.any_host
        await tunnel.listen(plan.ports, plan.any_host)
        if (tunnel.ports, tunnel.record.any_host) != before:
            self._tunnels.save()

    def _check_ports_of_others(self, tunnel: ManagedTunnel, ports: Mapping[str, int | None]) -> None:
        """Raise HubError if another thing's service uses one of these ports."""
        for other in self._tunnels:
            if other is tunnel or not other.alive:
                continue
            for service_id, port in other.ports.items():
                # 0 stands for any free port, also in a tunnel that does not listen yet.
                wanting = next((name for name, wanted in ports.items() if port and wanted == port), None)
                if wanting is not None:
                    raise HubError(
                        f"{wanting} of {tunnel.record.thing} cannot have port {port} on 127.0.0.1: {service_id} of "
                        f"{other.record.thing} uses it. Give each host its own port (iotops_tunnel_ports, or "
                        f"the option ports), or {wanting}=any",
                        code="port-in-use",
                    )

    # --- Accounts.

    async def _locate(self, request: requests.Locate) -> Reply:
        caller = self._callers.of(request.caller)
        if request.thing is None:
            account = await caller.account("")
            return {"account": account.key, "account_name": str(account), "region": account.region}
        key = await self._key(caller, request.thing)
        return {**self._names_of(key), "region": key.account.region}

    async def _call(self, request: requests.Call) -> Reply:
        caller = self._callers.of(request.caller)
        try:
            return await caller.call(request.api, request.operation, request.parameters, request.purpose)
        except HubError as error:
            raise HubError(f"Could not {request.purpose}: {error}.", code=error.code) from None

    async def _key(self, caller: CallerControl, thing: str) -> TunnelKey:
        """The key of a caller's tunnel to a thing.

        Raises:
            HubError: the control API does not reveal the caller's account.
        """
        check_name("thing", thing)
        try:
            key = TunnelKey(await caller.account(thing), thing)
        except HubError as error:
            raise not_found(thing, error) from None
        legacy = self._tunnels.get(TunnelKey(UNKNOWN_ACCOUNT, thing))
        if legacy is not None:
            await self._settle_account(legacy, key, caller)
        return key

    async def _settle_account(self, tunnel: ManagedTunnel, key: TunnelKey, caller: CallerControl) -> None:
        """Find out whether a tunnel left by an earlier release is in a caller's account."""
        states = await caller.end_states(tunnel.record.tunnel_id)
        if not states.arn or self._tunnels.get(tunnel.record.key) is not tunnel:
            return
        if Account.from_arn(states.arn, key.account.endpoint) == key.account and key not in self._tunnels:
            self._tunnels.assign(tunnel, key.account, states.owner)

    def _names_of(self, key: TunnelKey) -> Reply:
        """The names of a thing and its account for programs, ssh, and people."""
        return {
            "account": key.account.key,
            "account_name": str(key.account),
            "ssh_name": self._names.host(key),
            "host_key_name": self._names.host_key(key),
            "qualified_name": qualified_name(key),
        }

    def _row(self, tunnel: ManagedTunnel) -> Reply:
        return {**tunnel.row(), **self._names_of(tunnel.record.key)}

    # --- Tunnels that the hub holds.

    async def _open(self, request: requests.Open) -> tuple[Reply, socket.socket]:
        tunnel = await self._target(request.target)
        await tunnel.wait_linked(request.timeout)
        tunnel.check_offers(request.service)
        stream = await tunnel.open_stream(request.service, request.timeout, speaks_first=request.speaks_first)
        return {"opened": True}, stream

    async def _describe(self, request: requests.Describe) -> Reply:
        tunnel = await self._target(request.target)
        states = await tunnel.ask_ends()
        row = self._row(tunnel)
        source = "connected" if row["state"] == "connected" else "disconnected"
        return {**row, "source": source, "destination": states.destination}

    async def _explain(self, request: requests.Explain) -> Reply:
        tunnel = await self._target(request.target)
        why = await tunnel.explain(request.service, refused=request.refused)
        return {"sentence": str(why), "code": why.code}

    async def _release(self, request: requests.Release) -> Reply:
        for tunnel in self._tunnels:
            if _is(tunnel, request.name):
                await self._tunnels.drop(tunnel)
                return {"released": True}
        return {"released": False}

    async def _holds(self, request: requests.Holds) -> Reply:
        return {"holds": any(tunnel.alive and _is(tunnel, request.name) for tunnel in self._tunnels)}

    async def _status(self, request: requests.Status) -> Reply:
        return {
            "pid": os.getpid(),
            "tunnels": [tunnel.row() for tunnel in self._tunnels.sorted()],
            "opening": sorted(key.thing for key in self._opening),
            "not_saved": self._tunnels.not_saved,
        }

    async def _inherit(self, request: requests.Inherit) -> Reply:
        self._tunnels.take_over(request.records)
        self._tunnels.save()
        return {}

    async def _stop(self, request: requests.Stop) -> Reply:
        self.stopping.set()
        return {"stopping": True}

    def _lock(self, key: TunnelKey) -> asyncio.Lock:
        """The lock of a thing's tunnel: two callers that ask for it at the same time get the same tunnel."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def _target(self, target: requests.Target) -> ManagedTunnel:
        """The tunnel of a request that names an account, or a caller, which determines the account."""
        if target.caller is None:
            return self._find(TunnelKey(_from_key(target.account), target.thing), None)
        caller = self._callers.of(target.caller)
        return self._find(await self._key(caller, target.thing), caller)

    def _find(self, key: TunnelKey, caller: CallerControl | None) -> ManagedTunnel:
        tunnel = self._tunnels.get(key)
        if tunnel is None:
            raise HubError(
                f"there is no tunnel to {key}: open one with the module iotops.tunnel.tunnel, or the playbook "
                "iotops.tunnel.open",
                code="no-tunnel",
            )
        if caller is not None:
            tunnel.caller = caller
        return tunnel


def _like(before: ManagedTunnel | None, record: TunnelRecord) -> TunnelRecord:
    """The record, with the ports of the thing's previous tunnel and what was known about its device."""
    if before is None:
        return record
    known = before.up_to_date()
    return replace(
        record,
        ports=before.ports,
        chosen_ports=known.chosen_ports,
        any_host=known.any_host,
        **known.known_of_device,
    )


def _is(tunnel: ManagedTunnel, name: requests.TunnelName) -> bool:
    """Whether it is the tunnel that a request names; one left by an earlier release may belong to any account."""
    record = tunnel.record
    return record.tunnel_id == name.tunnel_id and record.account.key in (name.account, UNKNOWN_ACCOUNT.key)


def _from_key(key: str) -> Account:
    try:
        return Account.from_key(key)
    except ValueError as error:
        raise HubError(str(error), code="bad-input") from None


def _from_arn(arn: str, endpoint: str) -> Account:
    try:
        return Account.from_arn(arn, endpoint)
    except ValueError as error:
        raise HubError(str(error), code="bad-input") from None
