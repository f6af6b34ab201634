# SPDX-License-Identifier: Apache-2.0
"""Closes each tunnel when its time is up, and forgets the closed ones after a day."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from ..errors import StoreError
from .store import Store

__all__ = ["Expiry"]

_CLOSED_TUNNELS_KEPT = 24 * 3600.0
# Not longer: the wall clock may be set meanwhile.
_LONGEST_WAIT = 3600.0
_SHORTEST_WAIT = 0.05
_WAIT_AFTER_FAILURE = 5.0

_log = logging.getLogger(__name__)


class Expiry:
    """The clock that ends tunnels.

    Args:
        store: the state.
        disconnect: disconnects the ends of the tunnel with this ID.
        clock: gives seconds since the epoch.
    """

    def __init__(self, store: Store, disconnect: Callable[[str], None], *, clock: Callable[[], float]) -> None:
        self._store = store
        self._disconnect = disconnect
        self._clock = clock
        self._opened = asyncio.Event()

    def tunnel_opened(self) -> None:
        """Look anew for the tunnel that expires next."""
        self._opened.set()

    async def run(self) -> None:
        """Close tunnels until cancelled. While nothing can be stored, try again and again."""
        while True:
            self._opened.clear()
            try:
                wait = self.close_due()
            except StoreError as error:
                _log.debug("tunnels that expire cannot be stored as closed: %s", error)
                wait = _WAIT_AFTER_FAILURE
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._opened.wait(), wait)

    def close_due(self) -> float:
        """Close what is due now.

        Returns:
            seconds until the next tunnel expires, or until it is time to look again.

        Raises:
            StoreError: that could not be stored. The ends are disconnected all the same, and stay so: no token of a
                tunnel whose time is up is accepted.
        """
        now = self._clock()
        due = self._store.expired(now)
        for tunnel_id in due:
            self._disconnect(tunnel_id)
        for tunnel_id in due:
            self._store.close_tunnel(tunnel_id, now)
            _log.info("tunnel %s expired", tunnel_id, extra={"tunnel": tunnel_id})
        self._store.delete_closed_before(now - _CLOSED_TUNNELS_KEPT)
        self._store.write_ends()
        wait = (self._store.next_expiry() or now + _LONGEST_WAIT) - now
        return max(min(_LONGEST_WAIT, wait), _SHORTEST_WAIT)
