# SPDX-License-Identifier: Apache-2.0
"""What the hub does for those who ask: holds every tunnel of one user, opens and renews them, hands out streams."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from ..errors import ConfigurationError
from ..names import SAFE_NAME
from ..proxy.link import LinkLost, probe
from . import state_file
from .account import UNKNOWN_ACCOUNT, Account, TunnelKey
from .client import HubError, cannot_write
from .control_process import CallerControl, Callers, FoundTunnel
from .json_lines import KeptFile
from .known_accounts import KnownAccounts
from .ssh_names import SshNames, qualified_name
from .tunnel import ManagedTunnel, TunnelRecord, Way, check_port

__all__ = ["Hub"]

log = logging.getLogger(__name__)

RENEW_SECONDS = 10 * 60.0
"""A tunnel with less life than this is not handed out any more where another may be opened."""

DESTINATION_POLL_SECONDS = (0.25, 1.0)
"""How often to ask for a device that is awaited: soon at first, for an agent comes within a fraction of a second."""

PROBE_SECONDS = 60.0
"""How long a way to a data plane counts as tried."""

STATE_NAME = "tunnels.jsonl"
ACCOUNTS_NAME = "accounts.jsonl"


class Hub:
    """Every tunnel of one user on one controller, by the account that it was opened in and the thing at its far end.

    Args:
        folder: for what the next hub is to know.
        names: by which ssh knows things.
    """

    def __init__(self, folder: Path, names: SshNames) -> None:
        self._state = KeptFile(folder / STATE_NAME, self._lines)
        self._names = names
        self._known = KnownAccounts(folder / ACCOUNTS_NAME)
        self._callers = Callers(self._known)
        self._tunnels: dict[TunnelKey, ManagedTunnel] = {}
        self._unusable: dict[TunnelKey, TunnelRecord] = {}
        """What the hub before left and this one cannot use, such as for a wrong HTTP proxy; the next one may."""
        self._retired: list[ManagedTunnel] = []
        """Tunnels that were replaced while they carried connections."""
        self._locks: dict[TunnelKey, asyncio.Lock] = {}
        self._opening: Counter[TunnelKey] = Counter()
        """How many callers wait until the tunnel of a thing is open and its device has come."""
        self._probed: dict[str, float] = {}
        """When the ways to data planes were tried with success."""
        self._saves = True
        self.stopping = asyncio.Event()
        self._last_used = asyncio.get_running_loop().time()
        self._answering = 0
        """How many requests are under way."""

    def restore(self) -> None:
        """Take over the tunnels that the hub before this one left."""
        self._take_over(state_file.load(self._state.path))

    def _take_over(self, records: Iterable[TunnelRecord]) -> None:
        for record in records:
            try:
                self._tunnels[record.key] = ManagedTunnel(record, None, self._has_plain_name)
            except ConfigurationError as error:
                self._unusable[record.key] = record
                log.warning("cannot take over the tunnel of %s: %s", record.thing, error, extra=record.subject)
            else:
                log.info("took over the tunnel of %s (%s)", record.thing, record.tunnel_id, extra=record.subject)

    def idle_for(self, seconds: float) -> bool:
        """Whether, for so long, nobody asked for anything and no tunnel worked or could work again by itself."""
        now = asyncio.get_running_loop().time()
        if self._answering or any(tunnel.alive for tunnel in self._tunnels.values()):
            self._last_used = now
        return now - self._last_used >= seconds

    async def tidy(self) -> None:
        """Disconnect the tunnels that were replaced and carry nothing any more, and save what could not be saved."""
        for file in (self._state, self._known.file, self._names.file):
            file.try_again()
        done = [tunnel for tunnel in self._retired if not tunnel.busy]
        self._retired = [tunnel for tunnel in self._retired if tunnel not in done]
        await asyncio.gather(*(tunnel.stop() for tunnel in done))
        self._callers.tidy([tunnel.caller for tunnel in self._tunnels.values() if tunnel.caller is not None])

    @property
    def busy(self) -> bool:
        """Whether a request is under way, which may open a tunnel, or any tunnel carries connections."""
        return self._answering > 0 or any(tunnel.busy for tunnel in (*self._tunnels.values(), *self._retired))

    def move(self, folder: Path) -> None:
        """Keep what the next hub is to know in a folder that was made anew."""
        if self._names.file.path.parent == self._state.path.parent:
            self._names.file.path = folder / self._names.file.path.name
        self._state.path, self._known.file.path = folder / STATE_NAME, folder / ACCOUNTS_NAME
        for file in (self._state, self._known.file, self._names.file):
            file.save()

    async def hand_over(self) -> list[str]:
        """Give up what carries no connections, and write no file any more: another hub has this one's place.

        Returns:
            what that hub needs to go on with these tunnels, which are disconnected.
        """
        self._saves = False
        free = [(key, tunnel) for key, tunnel in self._tunnels.items() if not tunnel.busy]
        for key, tunnel in free:
            del self._tunnels[key]
            await tunnel.stop()
        unusable, self._unusable = self._unusable, {}
        records = [*unusable.values(), *(tunnel.up_to_date() for _, tunnel in free if not tunnel.failed)]
        return list(state_file.lines(records))

    async def stop(self) -> None:
        """Disconnect every tunnel; what is needed to go on stays in the file."""
        self._save()
        tunnels = (*self._tunnels.values(), *self._retired)
        await asyncio.gather(self._callers.stop(), *(tunnel.stop() for tunnel in tunnels))

    async def answer(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        """Carry out one request: the reply, and for ``open`` the stream to pass along.

        Raises:
            HubError: it cannot be done; the text is for the operator.
        """
        operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "ensure": self._ensure,
            "locate": self._locate,
            "prepare": self._prepare,
            "call": self._call,
            "adopt": self._adopt,
            "describe": self._describe,
            "explain": self._explain,
            "release": self._release,
            "holds": self._holds,
            "status": self._status,
            "open": self._open,
            "stop": self._stop_request,
            "inherit": self._inherit,
        }
        operation = operations.get(str(request.get("op")))
        if operation is None:
            raise HubError(f"this hub does not know the request '{request.get('op')}': stop it (tunnelproxy hub stop)")
        self._answering += 1
        try:
            result = await operation(request)
        finally:
            self._answering -= 1
            self._last_used = asyncio.get_running_loop().time()
        return result if isinstance(result, tuple) else (result, None)

    async def _ensure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        caller = self._callers.of(request["caller"])
        key = await self._key(caller, request["thing"])
        with self._counted_as_opening(key):
            try:
                tunnel = await self._linked(key, caller, request)
            except HubError as error:
                if error.code != "tunnel-closed" or request["open"] == "never":
                    raise
                # Somebody closed it while no link was up to tell this hub: it was just started, or the link was lost.
                tunnel = await self._linked(key, caller, request)
            tunnel.check_offers(request["service"])
            await self._listen(tunnel, request["ports"], request.get("any_host", ()))
            if tunnel.record.awaited_since is not None and request["open"] != "never":
                await self._wait_for_destination(tunnel, tunnel.record.awaited_since, request["wait"])
        taken_from, tunnel.taken_from = tunnel.taken_from, ""
        return {
            **self._row(tunnel),
            "hub_pid": os.getpid(),
            "taken_from": taken_from,
            "not_saved": self._not_saved(),
        }

    async def _linked(self, key: TunnelKey, caller: CallerControl, request: Mapping[str, Any]) -> ManagedTunnel:
        """The tunnel that a request is to have, once its link is up."""
        if request["open"] == "never":
            tunnel = self._find(key, caller)
        else:
            async with self._lock(key):
                tunnel = await self._provide(key, caller, request)
        tunnel = await self._by_the_callers_way(tunnel, caller, request["timeout"])
        await tunnel.wait_linked(request["timeout"])
        return tunnel

    async def _by_the_callers_way(self, tunnel: ManagedTunnel, caller: CallerControl, timeout: float) -> ManagedTunnel:
        """A tunnel, linked by the newest caller's way to the data plane where its own leads nowhere."""
        way = Way.of(caller)
        if tunnel.linked or way == tunnel.record.way:
            return tunnel
        await tunnel.settle(timeout)
        if tunnel.linked or not tunnel.alive:
            return tunnel
        async with self._lock(tunnel.record.key):
            if self._tunnels.get(tunnel.record.key) is tunnel:
                return await self._hold(replace(tunnel.up_to_date(), way=way), caller)
        return tunnel

    async def _key(self, caller: CallerControl, thing: str) -> TunnelKey:
        """What a tunnel of a caller's to a thing is known by.

        Raises:
            HubError: the control API does not say which account the caller is in.
        """
        _check_name("thing", thing)
        try:
            key = TunnelKey(await caller.account(thing), thing)
        except HubError as error:
            raise _not_found(thing, error) from None
        legacy = self._tunnels.get(TunnelKey(UNKNOWN_ACCOUNT, thing))
        if legacy is not None:
            await self._settle_account(legacy, key, caller)
        return key

    async def _settle_account(self, tunnel: ManagedTunnel, key: TunnelKey, caller: CallerControl) -> None:
        """Find out whether a tunnel that an earlier release left is in the account of a caller."""
        states = await caller.end_states(tunnel.record.tunnel_id)
        if not states.arn or self._tunnels.get(tunnel.record.key) is not tunnel:
            return
        if Account.from_arn(states.arn, key.account.endpoint) == key.account and key not in self._tunnels:
            del self._tunnels[tunnel.record.key]
            tunnel.record = replace(tunnel.record, account=key.account, owner=states.owner)
            self._tunnels[key] = tunnel
            self._save()

    async def _locate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        caller, thing = self._callers.of(request["caller"]), request["thing"]
        if thing is None:
            account = await caller.account("")
            return {"account": account.key, "account_name": str(account), "region": account.region}
        key = await self._key(caller, thing)
        return {**self._named(key), "region": key.account.region}

    def _named(self, key: TunnelKey) -> dict[str, Any]:
        """What programs, ssh, and people call a thing and its account."""
        return {
            "account": key.account.key,
            "account_name": str(key.account),
            "ssh_name": self._names.host(key),
            "host_key_name": self._names.host_key(key),
            "qualified_name": qualified_name(key),
        }

    def _has_plain_name(self, key: TunnelKey) -> bool:
        return self._names.host(key) == key.thing

    def _row(self, tunnel: ManagedTunnel) -> dict[str, Any]:
        return {**tunnel.row(), **self._named(tunnel.record.key)}

    async def _prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        caller, thing = self._callers.of(request["caller"]), request["thing"]
        if thing is not None:
            _check_name("thing", thing)
        account = await caller.account(thing or "")
        await self._check_before_opening(caller, account, thing, request)
        return {"account": account.key, "region": account.region}

    async def _check_before_opening(
        self, caller: CallerControl, account: Account, thing: str | None, request: Mapping[str, Any]
    ) -> None:
        """See to all that can fail before a tunnel is paid for: names, the way to the data plane, and the registry."""
        before = None if thing is None else self._tunnels.get(TunnelKey(account, thing))
        _check_services(request, {} if before is None else before.ports)
        await self._probe(Way.of(caller), account.region)
        if thing is not None and not request["unregistered"]:
            await caller.check_registered(thing)

    async def _probe(self, way: Way, region: str) -> None:
        """See that there is a way to the data plane."""
        tried = repr((way, sorted(way.web_proxy.items()), region))
        now = time.monotonic()
        if now < self._probed.get(tried, 0.0):
            return
        try:
            await probe(way.route(region))
        except ConfigurationError as error:
            raise HubError(str(error), code="bad-input") from None
        except LinkLost as error:
            raise HubError(str(error), code="not-linked") from None
        self._probed = {known: until for known, until in self._probed.items() if until > now}
        self._probed[tried] = now + PROBE_SECONDS

    async def _call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        caller, purpose = self._callers.of(request["caller"]), request["purpose"]
        try:
            return await caller.call(request["api"], request["operation"], request["parameters"], purpose)
        except HubError as error:
            raise HubError(f"Could not {purpose}: {error}.", code=error.code) from None

    async def _listen(self, tunnel: ManagedTunnel, ports: Mapping[str, int | None], any_host: Sequence[str]) -> None:
        """Have a tunnel's services listen where the user wants them to."""
        if not ports:
            # As most want it, with each task of each host: no look at all other tunnels.
            return
        thing = tunnel.record.thing
        for other in self._tunnels.values():
            if other is tunnel or not other.alive:
                continue
            for service_id, port in other.ports.items():
                wanting = next((name for name, wanted in ports.items() if wanted == port), None)
                if wanting is not None:
                    raise HubError(
                        f"{wanting} of {thing} cannot have port {port} on 127.0.0.1: {service_id} of "
                        f"{other.record.thing} has it. Give each host a port of its own (iotops_tunnel_ports, or "
                        f"the option ports), or {wanting}=any",
                        code="port-in-use",
                    )
        before = tunnel.ports, tunnel.record.any_host
        await tunnel.listen(ports, any_host)
        if (tunnel.ports, tunnel.record.any_host) != before:
            self._save()

    @contextmanager
    def _counted_as_opening(self, key: TunnelKey) -> Iterator[None]:
        self._opening[key] += 1
        try:
            yield
        finally:
            self._opening[key] -= 1
            self._opening += Counter()  # drops what is zero

    async def _provide(self, key: TunnelKey, caller: CallerControl, request: Mapping[str, Any]) -> ManagedTunnel:
        """The tunnel of a thing: the one held, or an open one, or a new one."""
        held = self._tunnels.get(key)
        if held is not None and held.alive and not held.record.expires_within(RENEW_SECONDS):
            held.caller = caller
            return held
        found = await self._find_or_open(key, caller, request)
        account = Account.from_arn(found.arn, key.account.endpoint)
        if account != key.account:
            # The service did not tell before.
            caller.learn(account)
        record = TunnelRecord(
            thing=key.thing,
            account=account,
            owner=request["owner"],
            tunnel_id=found.tunnel_id,
            region=found.region,
            source_token=found.source_token,
            services=found.services,
            way=Way.of(caller),
            expires_at=found.expires_at,
            ports=held.ports if held is not None else {},
            chosen_ports=held.record.chosen_ports if held is not None else {},
            any_host=held.record.any_host if held is not None else (),
            awaited_since=time.time(),
            **(held.up_to_date().known_of_device if held is not None else {}),
        )
        tunnel = await self._hold(record, caller)
        tunnel.taken_from = found.taken_from
        return tunnel

    async def _find_or_open(self, key: TunnelKey, caller: CallerControl, request: Mapping[str, Any]) -> FoundTunnel:
        policy, owner = request["open"], request["owner"]
        try:
            await self._probe(Way.of(caller), key.account.region)
            if policy in ("reuse", "take_over"):
                held = [tunnel.record.tunnel_id for tunnel in self._tunnels.values() if tunnel.alive]
                taken = await caller.take(
                    key.thing, request["service"], RENEW_SECONDS, owner, take_over=policy == "take_over", held=held
                )
                if taken is not None:
                    whose = f", which was {taken.taken_from}'s" if taken.taken_from else ""
                    log.info("took up the open tunnel %s of %s%s", taken.tunnel_id, key, whose)
                    return taken
            await self._check_before_opening(caller, key.account, key.thing, request)
            opened = await caller.open(key.thing, request["services"], owner)
        except HubError as error:
            raise _not_found(key, error) from None
        log.info("opened the tunnel %s to %s", opened.tunnel_id, key)
        return opened

    async def _wait_for_destination(self, tunnel: ManagedTunnel, since: float, seconds: float) -> None:
        """Wait until the device has taken up its end: it learns its token only when the tunnel is opened.

        Whoever asks for the tunnel meanwhile waits too, and so does the next hub, should this one be killed.
        """
        pause, longest = DESTINATION_POLL_SECONDS
        thing, name = tunnel.record.thing, tunnel.record.name
        while (states := await tunnel.ask_ends()).destination != "connected":
            if time.time() >= since + seconds:
                self._await_no_longer(tunnel)
                if states.destination == "unknown":
                    raise HubError(
                        f"whether the device {thing} has connected to its tunnel ({name}) cannot be said, for the "
                        f"control API did not describe it within {seconds:.0f} s: see hub.log",
                        code="device-unknown",
                    )
                raise HubError(
                    f"the device {thing} did not connect to its tunnel ({name}) within {seconds:.0f} s: see that it is "
                    f"online, and that its agent runs and has an address for each of "
                    f"{', '.join(tunnel.record.services)}",
                    code="device-not-connected",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        self._await_no_longer(tunnel)

    def _await_no_longer(self, tunnel: ManagedTunnel) -> None:
        tunnel.await_no_longer()
        self._save()

    async def _adopt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        caller = self._callers.of(request["caller"])
        known = await caller.account(request["thing"])
        record = TunnelRecord(
            thing=request["thing"],
            account=Account.from_arn(request["tunnel_arn"], known.endpoint),
            owner=request["owner"],
            tunnel_id=request["tunnel_id"],
            region=known.region,
            source_token=request["source_token"],
            services=tuple(request["services"]),
            way=Way.of(caller),
            expires_at=request["expires_at"],
        )
        async with self._lock(record.key):
            tunnel = self._tunnels.get(record.key)
            if tunnel is None or not tunnel.alive or tunnel.record.source_token != record.source_token:
                if tunnel is not None:
                    before = tunnel.up_to_date()
                    record = replace(
                        record,
                        ports=tunnel.ports,
                        chosen_ports=before.chosen_ports,
                        any_host=before.any_host,
                        **before.known_of_device,
                    )
                tunnel = await self._hold(record, caller)
        await tunnel.wait_linked(request["timeout"])
        await self._listen(tunnel, request["ports"], request.get("any_host", ()))
        self._save()
        return {**self._row(tunnel), "not_saved": self._not_saved()}

    async def _hold(self, record: TunnelRecord, caller: CallerControl) -> ManagedTunnel:
        """Hold a tunnel in place of the one that was held for its thing, which may finish what it carries."""
        before = self._tunnels.get(record.key)
        same = before is not None and before.record.tunnel_id == record.tunnel_id
        if before is not None and same:
            # Its ports are to be had again, and the service takes its client for one that has come back.
            await before.stop()
        try:
            tunnel = ManagedTunnel(record, caller, self._has_plain_name)
        except ConfigurationError as error:
            raise HubError(str(error), code="bad-input") from None
        if before is not None and before.busy and not same:
            await before.stop_listening()
            self._retired.append(before)
        elif before is not None:
            await before.stop()
        self._tunnels[record.key] = tunnel
        log.info("holds the tunnel of %s (%s) now", record.key, record.tunnel_id, extra=record.subject)
        self._save()
        return tunnel

    async def _describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnel = await self._found(request)
        states = await tunnel.ask_ends()
        row = self._row(tunnel)
        source = "connected" if row["state"] == "connected" else "disconnected"
        return {**row, "source": source, "destination": states.destination}

    async def _explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        why = await (await self._found(request)).explain(request["service"], refused=request["refused"])
        return {"sentence": str(why), "code": why.code}

    async def _release(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for key, tunnel in list(self._tunnels.items()):
            if _is(tunnel, request):
                del self._tunnels[key]
                await tunnel.stop()
                self._save()
                log.info("dropped the tunnel of %s (%s)", key, request["tunnel_id"], extra=tunnel.record.subject)
                return {"released": True}
        return {"released": False}

    async def _holds(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"holds": any(tunnel.alive and _is(tunnel, request) for tunnel in self._tunnels.values())}

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnels = [self._tunnels[key].row() for key in sorted(self._tunnels, key=lambda key: (key.thing, key.account))]
        return {
            "pid": os.getpid(),
            "tunnels": tunnels,
            "opening": sorted(key.thing for key in self._opening),
            "not_saved": self._not_saved(),
        }

    async def _open(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket]:
        tunnel = await self._found(request)
        await tunnel.wait_linked(request["timeout"])
        tunnel.check_offers(request["service"])
        stream = await tunnel.open_stream(
            request["service"], request["timeout"], speaks_first=request.get("speaks_first", True)
        )
        return {"opened": True}, stream

    async def _inherit(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take over the tunnels of the hub that had this one's place, but for those that are held here already."""
        records = [TunnelRecord.from_json(record) for record in request["tunnels"]]
        self._take_over(record for record in records if record.key not in self._tunnels)
        self._save()
        return {}

    async def _stop_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.stopping.set()
        return {"stopping": True}

    def _lock(self, key: TunnelKey) -> asyncio.Lock:
        """Two that ask for the same thing at once get the same tunnel."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def _found(self, request: Mapping[str, Any]) -> ManagedTunnel:
        """The tunnel of a request that names an account, or a caller who is in one."""
        if request.get("account"):
            return self._find(TunnelKey(_account(request["account"]), request["thing"]), None)
        caller = self._callers.of(request["caller"])
        return self._find(await self._key(caller, request["thing"]), caller)

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

    def _save(self) -> None:
        if self._saves:
            self._state.save()

    def _lines(self) -> Iterator[str]:
        records = [record for key, record in self._unusable.items() if key not in self._tunnels]
        records += [tunnel.up_to_date() for tunnel in self._tunnels.values()]
        return state_file.lines(records)

    def _not_saved(self) -> str:
        """Why the next hub would not know all tunnels; empty where it would."""
        error = self._state.error
        if error is None:
            return ""
        return f"{cannot_write(self._state.path, error)}; until then only this hub knows its tunnels: do not stop it"


def _not_found(what: object, error: HubError) -> HubError:
    return HubError(f"no tunnel to {what} could be found or opened: {error}", code=error.code)


def _is(tunnel: ManagedTunnel, request: Mapping[str, Any]) -> bool:
    """Whether it is the tunnel that a request names; one that an earlier release left may be of any account."""
    record = tunnel.record
    accounts = (request["account"], UNKNOWN_ACCOUNT.key)
    return record.tunnel_id == request["tunnel_id"] and record.account.key in accounts


def _account(key: str) -> Account:
    try:
        return Account.from_key(key)
    except ValueError as error:
        raise HubError(str(error), code="bad-input") from None


def _check_services(request: Mapping[str, Any], ports_before: Mapping[str, int]) -> None:
    """Raise HubError where a tunnel with these services would not be what is asked for.

    Args:
        ports_before: where the services of the thing's last tunnel listen.
    """
    services: Sequence[str] = request["services"]
    for service in services:
        _check_name("service", service)
    if not services or len(set(services)) != len(services):
        raise HubError(
            f"a tunnel carries at least one service, and each once, not {', '.join(services) or 'none'}: set "
            "iotops_tunnel_services, or the option services",
            code="bad-input",
        )
    ports: Mapping[str, int | None] = request.get("ports") or {}
    for service in (*filter(None, [request.get("service")]), *ports):
        if service not in services:
            raise HubError(
                f"a tunnel with {', '.join(services)} does not carry {service}: add it to iotops_tunnel_services, or "
                "the option services",
                code="service-not-offered",
            )
    for service, port in ports.items():
        check_port(service, port, request["thing"] or "the tunnel", its_own=ports_before.values())


def _check_name(kind: str, name: str) -> None:
    if not SAFE_NAME.match(name):
        raise HubError(
            f"{name!r} cannot be the name of a {kind}: it takes 1 to 128 letters, digits, colons, underscores and "
            "hyphens, and no hyphen first",
            code="bad-input",
        )
