# SPDX-License-Identifier: Apache-2.0
"""Listen on the local addresses of a source; retry those that are not available yet, as the reference does."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable
from typing import NoReturn

from ..errors import ConfigurationError
from ..proxy.addresses import Address, TcpAddress
from ..proxy.source import SourceProxy
from ..proxy.tunnel_end import Plan

__all__ = ["RetryingListener"]

log = logging.getLogger(__name__)


class RetryingListener:
    """Makes a source listen for one service after the other; retries ports in use and addresses that do not exist yet.

    Args:
        plan: returns the address of each service.
        bind_address: the host to listen on for addresses without one.
        retries: how often to retry before giving up if no service can listen; None to retry forever.
        pause: seconds between two attempts.
    """

    def __init__(self, plan: Plan, bind_address: str, retries: int | None, pause: float) -> None:
        self.begun = asyncio.Event()
        """Set once each address has been tried."""
        self._plan = plan
        self._bind_address = bind_address
        self._retries = retries
        self._pause = pause
        self._waiting: dict[str, TcpAddress] = {}

    def plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        """The plan for the source, which itself listens nowhere."""
        planned = self._plan(offered)
        self._waiting = {
            name: TcpAddress(address.host or self._bind_address, address.port)
            for name, address in planned.items()
            if isinstance(address, TcpAddress)
        }
        return dict.fromkeys(planned)

    async def run(self, source: SourceProxy) -> None:
        """Start once the services are known; return when all services have their ports.

        Raises:
            ConfigurationError: no service could listen, and the retries are used up.
        """
        await source.end.ready.wait()
        count = len(self._waiting)
        said: dict[str, str] = {}
        for retries in itertools.count():
            problems = await self._try_all(source)
            self.begun.set()
            if not problems:
                return
            if len(problems) == count and retries == self._retries:
                _give_up(problems.values())
            for name, problem in problems.items():
                if said.get(name) != problem:
                    log.warning("%s; trying again every %g s", problem, self._pause, extra={"service": name})
            said = problems
            await asyncio.sleep(self._pause)

    async def _try_all(self, source: SourceProxy) -> dict[str, str]:
        """Listen for the services that have no port yet; return the problems of those that still have none."""
        problems: dict[str, str] = {}
        for name, address in list(self._waiting.items()):
            try:
                await source.listen(name, address)
            except ConfigurationError as error:
                problems[name] = str(error)
            else:
                del self._waiting[name]
        return problems


def _give_up(problems: Iterable[str]) -> NoReturn:
    raise ConfigurationError("; ".join(problems))
