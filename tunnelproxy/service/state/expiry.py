# SPDX-License-Identifier: Apache-2.0
"""Closes tunnels when their lifetime is over, and deletes closed tunnels after a day."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from ..errors import StoreError
from .store import Store

__all__ = ["Expiry"]

_CLOSED_TUNNELS_KEPT = 24 * 3600.0
# No longer, because the wall clock may be set in the meantime.
_MAX_WAIT = 3600.0
_MIN_WAIT = 0.05
_WAIT_AFTER_FAILURE = 5.0

log = logging.getLogger(__name__)


class Expiry:
    """Expires tunnels.

    Args:
        store: the state.
        disconnect: disconnects both ends of the tunnel with this ID.
        clock: returns seconds since the epoch.
    """

    def __init__(self, store: Store, disconnect: Callable[[str], None], *, clock: Callable[[], float]) -> None:
        self._store = store
        self._disconnect = disconnect
        self._clock = clock
        self._opened = asyncio.Event()

    def tunnel_opened(self) -> None:
        """Recalculate which tunnel expires next."""
        self._opened.set()

    async def run(self) -> None:
        """Close tunnels until cancelled. While the database cannot be written, keep trying."""
        while True:
            self._opened.clear()
            try:
                wait = self.close_due()
            except StoreError as error:
                log.debug("expired tunnels cannot be stored as closed: %s", error)
                wait = _WAIT_AFTER_FAILURE
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._opened.wait(), wait)

    def close_due(self) -> float:
        """Close the tunnels that are due.

        Returns:
            Seconds until the next tunnel expires, or until the next check.

        Raises:
            StoreError: the tunnels could not be stored as closed. Their ends are disconnected all the same, and stay
                disconnected: the tokens of an expired tunnel are not accepted.
        """
        now = self._clock()
        due = self._store.expired(now)
        for tunnel_id in due:
            self._disconnect(tunnel_id)
        for tunnel_id in due:
            self._store.close_tunnel(tunnel_id, now)
            log.info("tunnel %s expired", tunnel_id, extra={"tunnel": tunnel_id})
        self._store.delete_closed_before(now - _CLOSED_TUNNELS_KEPT)
        self._store.write_ends()
        wait = (self._store.next_expiry() or now + _MAX_WAIT) - now
        return max(min(_MAX_WAIT, wait), _MIN_WAIT)
