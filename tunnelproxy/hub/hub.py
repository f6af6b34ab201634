# SPDX-License-Identifier: Apache-2.0
"""What the hub does for those who ask: holds every tunnel of one user, opens and renews them, hands out streams."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from ..errors import ConfigurationError
from . import state_file
from .client import HubError
from .control_plane import ControlPlane, FoundTunnel
from .held_tunnel import HeldTunnel, TunnelRecord

__all__ = ["Hub"]

log = logging.getLogger(__name__)

RENEW_SECONDS = 10 * 60.0
"""A tunnel with less life than this is not handed out any more where another may be opened."""

DESTINATION_POLL_SECONDS = (0.25, 1.0)
"""How often to ask for a device that is awaited: soon at first, for an agent comes within a fraction of a second."""


class Hub:
    """Every tunnel of one user on one controller, by the thing at its far end."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._tunnels: dict[str, HeldTunnel] = {}
        self._unusable: dict[str, TunnelRecord] = {}
        """What the hub before left and this one cannot use, such as for a wrong web proxy; the next one may."""
        self._retired: list[HeldTunnel] = []
        """Tunnels that were replaced while they carried connections."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._opening: Counter[str] = Counter()
        """How many callers wait until the tunnel of a thing is open and its device has come, by thing."""
        self.stopping = asyncio.Event()
        self._last_used = asyncio.get_running_loop().time()

    def restore(self) -> None:
        """Take over the tunnels that the hub before this one left."""
        for record in state_file.load(self._state):
            try:
                self._tunnels[record.thing] = HeldTunnel(record)
            except ConfigurationError as error:
                self._unusable[record.thing] = record
                log.warning("cannot take over the tunnel of %s: %s", record.thing, error, extra=record.subject)
            else:
                log.info("took over the tunnel of %s (%s)", record.thing, record.tunnel_id, extra=record.subject)

    def idle_for(self, seconds: float) -> bool:
        """Whether, for so long, nobody asked for anything and no tunnel worked or could work again by itself."""
        now = asyncio.get_running_loop().time()
        if any(tunnel.alive for tunnel in self._tunnels.values()):
            self._last_used = now
        return now - self._last_used >= seconds

    async def tidy(self) -> None:
        """Disconnect the tunnels that were replaced and carry nothing any more."""
        done = [tunnel for tunnel in self._retired if not tunnel.busy]
        self._retired = [tunnel for tunnel in self._retired if tunnel not in done]
        await asyncio.gather(*(tunnel.stop() for tunnel in done))

    async def stop(self) -> None:
        """Disconnect every tunnel; what is needed to go on stays in the file."""
        self._save()
        await asyncio.gather(*(tunnel.stop() for tunnel in (*self._tunnels.values(), *self._retired)))

    async def answer(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        """Carry out one request: the reply, and for ``open`` the stream to pass along.

        Raises:
            HubError: it cannot be done; the text is for the operator.
        """
        operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "ensure": self._ensure,
            "adopt": self._adopt,
            "describe": self._describe,
            "explain": self._explain,
            "release": self._release,
            "holds": self._holds,
            "status": self._status,
            "open": self._open,
            "stop": self._stop_request,
        }
        operation = operations.get(str(request.get("op")))
        if operation is None:
            raise HubError(f"this hub does not know the request '{request.get('op')}': stop it (tunnelproxy hub stop)")
        self._last_used = asyncio.get_running_loop().time()
        result = await operation(request)
        return result if isinstance(result, tuple) else (result, None)

    async def _ensure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._counted_as_opening(request["thing"]):
            try:
                tunnel = await self._linked(request)
            except HubError as error:
                if error.code != "tunnel-closed" or request["open"] == "never":
                    raise
                # Somebody closed it while no link was up to tell this hub: it was just started, or the link was lost.
                tunnel = await self._linked(request)
            tunnel.check_offers(request["service"])
            await self._listen(tunnel, request["ports"])
            if tunnel.record.awaited_since is not None and request["open"] != "never":
                await self._wait_for_destination(tunnel, tunnel.record.awaited_since, request["wait"])
        return {**tunnel.row(), "hub_pid": os.getpid()}

    async def _linked(self, request: Mapping[str, Any]) -> HeldTunnel:
        """The tunnel that a request is to have, once its link is up."""
        if request["open"] == "never":
            tunnel = self._find(request)
        else:
            async with self._lock(request["thing"]):
                tunnel = await self._provide(request)
        await tunnel.wait_linked(request["timeout"])
        return tunnel

    async def _listen(self, tunnel: HeldTunnel, ports: Mapping[str, int | None]) -> None:
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
        before = tunnel.ports
        await tunnel.listen(ports)
        if tunnel.ports != before:
            self._save()

    @contextmanager
    def _counted_as_opening(self, thing: str) -> Iterator[None]:
        self._opening[thing] += 1
        try:
            yield
        finally:
            self._opening[thing] -= 1
            self._opening += Counter()  # drops what is zero

    async def _provide(self, request: Mapping[str, Any]) -> HeldTunnel:
        """The tunnel of a thing: the one held, or the open one, or a new one."""
        thing = request["thing"]
        held = self._tunnels.get(thing)
        if held is not None and held.alive and not held.record.expires_within(RENEW_SECONDS):
            held.use_aws(request["aws"])
            return held
        found = await self._find_or_open(request)
        record = TunnelRecord(
            thing=thing,
            tunnel_id=found.tunnel_id,
            region=found.region,
            source_token=found.source_token,
            services=found.services,
            endpoint=request["endpoint"],
            capath=request["capath"],
            expires_at=found.expires_at,
            ports=held.ports if held is not None else {},
            chosen_ports=held.record.chosen_ports if held is not None else {},
            aws=request["aws"],
            awaited_since=time.time(),
        )
        return await self._hold(record)

    async def _find_or_open(self, request: Mapping[str, Any]) -> FoundTunnel:
        thing, plane = request["thing"], ControlPlane(request["aws"])
        try:
            taken = await plane.take(thing, request["service"], RENEW_SECONDS) if request["open"] == "reuse" else None
            return taken if taken is not None else await plane.open(thing, request["services"])
        except HubError as error:
            raise HubError(f"no tunnel to {thing} could be found or opened: {error}", code=error.code) from None

    async def _wait_for_destination(self, tunnel: HeldTunnel, since: float, seconds: float) -> None:
        """Wait until the device has taken up its end: it learns its token only when the tunnel is opened.

        Whoever asks for the tunnel meanwhile waits too, and so does the next hub, should this one be killed.
        """
        pause, longest = DESTINATION_POLL_SECONDS
        while (await tunnel.ask_ends()).destination == "disconnected":
            if time.time() >= since + seconds:
                self._await_no_longer(tunnel)
                raise HubError(
                    f"the device {tunnel.record.thing} did not connect to its tunnel ({tunnel.record.tunnel_id}) "
                    f"within {seconds:.0f} s: see that it is online, and that its agent runs and has an address for "
                    f"each of {', '.join(tunnel.record.services)}",
                    code="device-not-connected",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        self._await_no_longer(tunnel)

    def _await_no_longer(self, tunnel: HeldTunnel) -> None:
        tunnel.await_no_longer()
        self._save()

    async def _adopt(self, request: Mapping[str, Any]) -> dict[str, Any]:
        record = TunnelRecord.from_json({k: v for k, v in request.items() if k not in ("op", "timeout", "ports")})
        async with self._lock(record.thing):
            tunnel = self._tunnels.get(record.thing)
            if tunnel is None or not tunnel.alive or tunnel.record.source_token != record.source_token:
                if tunnel is not None:
                    record = replace(record, ports=tunnel.ports, chosen_ports=tunnel.record.chosen_ports)
                tunnel = await self._hold(record)
        await tunnel.wait_linked(request["timeout"])
        await self._listen(tunnel, request["ports"])
        self._save()
        return tunnel.row()

    async def _hold(self, record: TunnelRecord) -> HeldTunnel:
        """Hold a tunnel in place of the one that was held for its thing, which may finish what it carries."""
        try:
            tunnel = HeldTunnel(record)
        except ConfigurationError as error:
            raise HubError(str(error), code="bad-input") from None
        before = self._tunnels.get(record.thing)
        if before is not None and before.busy and before.record.tunnel_id != record.tunnel_id:
            await before.stop_listening()
            self._retired.append(before)
        elif before is not None:
            await before.stop()
        self._tunnels[record.thing] = tunnel
        log.info("holds the tunnel of %s (%s) now", record.thing, record.tunnel_id, extra=record.subject)
        self._save()
        return tunnel

    async def _describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnel = self._find(request)
        states = await tunnel.ask_ends()
        row = tunnel.row()
        source = "connected" if row["state"] == "connected" else "disconnected"
        return {**row, "source": source, "destination": states.destination}

    async def _explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        why = await self._find(request).explain(request["service"], refused=request["refused"])
        return {"sentence": str(why), "code": why.code}

    async def _release(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for thing, tunnel in list(self._tunnels.items()):
            if tunnel.record.tunnel_id == request["tunnel_id"]:
                del self._tunnels[thing]
                await tunnel.stop()
                self._save()
                log.info("dropped the tunnel of %s (%s)", thing, request["tunnel_id"], extra=tunnel.record.subject)
                return {"released": True}
        return {"released": False}

    async def _holds(self, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = request["tunnel_id"]
        return {"holds": any(t.alive and t.record.tunnel_id == wanted for t in self._tunnels.values())}

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tunnels = [self._tunnels[thing].row() for thing in sorted(self._tunnels)]
        return {"pid": os.getpid(), "tunnels": tunnels, "opening": sorted(self._opening)}

    async def _open(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket]:
        tunnel = self._find(request)
        await tunnel.wait_linked(request["timeout"])
        tunnel.check_offers(request["service"])
        stream = await tunnel.open_stream(
            request["service"], request["timeout"], speaks_first=request.get("speaks_first", True)
        )
        return {"opened": True}, stream

    async def _stop_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.stopping.set()
        return {"stopping": True}

    def _lock(self, thing: str) -> asyncio.Lock:
        """Two that ask for the same thing at once get the same tunnel."""
        return self._locks.setdefault(thing, asyncio.Lock())

    def _find(self, request: Mapping[str, Any]) -> HeldTunnel:
        thing = request["thing"]
        tunnel = self._tunnels.get(thing)
        if tunnel is None:
            raise HubError(
                f"there is no tunnel to {thing}: open one with the module iotops.tunnel.tunnel, or the playbook "
                "iotops.tunnel.open",
                code="no-tunnel",
            )
        tunnel.use_aws(request.get("aws") or {})
        return tunnel

    def _save(self) -> None:
        records = [record for thing, record in self._unusable.items() if thing not in self._tunnels]
        records += [tunnel.up_to_date() for tunnel in self._tunnels.values()]
        state_file.save(self._state, records)
