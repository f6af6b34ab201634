# SPDX-License-Identifier: Apache-2.0
"""All tunnels that the hub holds, by account and thing, and the file from which the next hub takes them over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigurationError
from . import state_file
from .account import Account, TunnelKey
from .control_process import CallerControl
from .json_lines import JsonLinesFile
from .location import HubError, cannot_write
from .ssh_names import SshNames
from .tunnel import ManagedTunnel
from .tunnel_record import TunnelRecord

__all__ = ["TunnelTable"]

log = logging.getLogger(__name__)


class TunnelTable:
    """The tunnels of one hub.

    Args:
        path: the file for the next hub.
        names: the names of things in ssh.
    """

    def __init__(self, path: Path, names: SshNames) -> None:
        self.file = JsonLinesFile(path, self._lines)
        self._names = names
        self._tunnels: dict[TunnelKey, ManagedTunnel] = {}
        self._unusable: dict[TunnelKey, TunnelRecord] = {}
        """Records that this hub cannot use, for example because of a wrong HTTP proxy; the next one may be able to."""
        self._replaced: list[ManagedTunnel] = []
        """Tunnels that were replaced while they carried connections."""
        self._saves = True

    def __iter__(self) -> Iterator[ManagedTunnel]:
        return iter([*self._tunnels.values()])

    def __contains__(self, key: TunnelKey) -> bool:
        return key in self._tunnels

    def get(self, key: TunnelKey) -> ManagedTunnel | None:
        """The tunnel of a thing, if there is one."""
        return self._tunnels.get(key)

    def sorted(self) -> list[ManagedTunnel]:
        """All tunnels, by thing and account."""
        return [self._tunnels[key] for key in sorted(self._tunnels, key=lambda key: (key.thing, key.account))]

    @property
    def busy(self) -> bool:
        """Whether any tunnel carries connections."""
        return any(tunnel.busy for tunnel in (*self._tunnels.values(), *self._replaced))

    def restore(self) -> None:
        """Take over the tunnels that the previous hub left."""
        self.take_over(state_file.load(self.file.path))

    def take_over(self, records: Iterable[TunnelRecord]) -> None:
        """Hold the tunnels of another hub, except for things that have one here."""
        for record in records:
            if record.key in self._tunnels:
                continue
            try:
                self._tunnels[record.key] = ManagedTunnel(record, None, self._has_plain_name)
            except ConfigurationError as error:
                self._unusable[record.key] = record
                log.warning("cannot take over the tunnel of %s: %s", record.thing, error, extra=record.log_fields)
            else:
                log.info("took over the tunnel of %s (%s)", record.thing, record.tunnel_id, extra=record.log_fields)

    async def hold(self, record: TunnelRecord, caller: CallerControl) -> ManagedTunnel:
        """Hold a tunnel in place of its thing's current one, whose connections may finish.

        Raises:
            HubError: the route to its data plane is not valid.
        """
        before = self._tunnels.get(record.key)
        same = before is not None and before.record.tunnel_id == record.tunnel_id
        if before is not None and same:
            # This frees its ports, and the service sees its client reconnect.
            await before.stop()
        try:
            tunnel = ManagedTunnel(record, caller, self._has_plain_name)
        except ConfigurationError as error:
            raise HubError(str(error), code="bad-input") from None
        if before is not None and before.busy and not same:
            await before.stop_listening()
            self._replaced.append(before)
        elif before is not None:
            await before.stop()
        self._tunnels[record.key] = tunnel
        log.info("holds the tunnel of %s (%s) now", record.key, record.tunnel_id, extra=record.log_fields)
        self.save()
        return tunnel

    async def drop(self, tunnel: ManagedTunnel) -> None:
        """Drop a tunnel. It stays open for others."""
        del self._tunnels[tunnel.record.key]
        await tunnel.stop()
        self.save()
        log.info(
            "dropped the tunnel of %s (%s)",
            tunnel.record.key,
            tunnel.record.tunnel_id,
            extra=tunnel.record.log_fields,
        )

    def assign(self, tunnel: ManagedTunnel, account: Account, owner: str) -> None:
        """Set the account and owner of a tunnel whose record had none."""
        del self._tunnels[tunnel.record.key]
        tunnel.record = replace(tunnel.record, account=account, owner=owner)
        self._tunnels[tunnel.record.key] = tunnel
        self.save()

    async def stop_replaced(self) -> None:
        """Disconnect the tunnels that were replaced and no longer carry connections."""
        done = [tunnel for tunnel in self._replaced if not tunnel.busy]
        self._replaced = [tunnel for tunnel in self._replaced if tunnel not in done]
        await asyncio.gather(*(tunnel.stop() for tunnel in done))

    async def give_up_idle(self) -> list[str]:
        """Disconnect and forget the tunnels without connections, and stop saving: another hub has taken the folder.

        Returns:
            the lines of the file that the other hub needs to hold them.
        """
        self._saves = False
        free = [tunnel for tunnel in self if not tunnel.busy]
        for tunnel in free:
            del self._tunnels[tunnel.record.key]
            await tunnel.stop()
        unusable, self._unusable = self._unusable, {}
        records = [*unusable.values(), *(tunnel.up_to_date() for tunnel in free if not tunnel.failed)]
        return list(state_file.lines(records))

    async def stop(self) -> None:
        """Disconnect every tunnel; the next hub finds what it needs in the file."""
        self.save()
        await asyncio.gather(*(tunnel.stop() for tunnel in (*self._tunnels.values(), *self._replaced)))

    def save(self) -> None:
        """Write the file, unless another hub has taken the folder."""
        if self._saves:
            self.file.save()

    @property
    def not_saved(self) -> str:
        """Why the next hub would not know all tunnels; empty if it would."""
        error = self.file.error
        if error is None:
            return ""
        return f"{cannot_write(self.file.path, error)}; until then only this hub knows its tunnels: do not stop it"

    def _lines(self) -> Iterator[str]:
        records = [record for key, record in self._unusable.items() if key not in self._tunnels]
        records += [tunnel.up_to_date() for tunnel in self._tunnels.values()]
        return state_file.lines(records)

    def _has_plain_name(self, key: TunnelKey) -> bool:
        return self._names.host(key) == key.thing
