# SPDX-License-Identifier: Apache-2.0
"""Keeping a link up: connect, and connect again, until the tunnel is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Callable

from ..errors import TunnelClosed, TunnelRefused
from .backoff import Backoff
from .endpoint import Endpoint
from .link import Access, Link, LinkLost, Receiver, Relink, connect

__all__ = ["keep_linked"]

log = logging.getLogger(__name__)

STABLE_SECONDS = 10.0
"""A link that lasted this long was a success: the next attempt after it is quick again."""


async def keep_linked(
    endpoint: Endpoint,
    access: Access,
    tls: ssl.SSLContext,
    new_receiver: Callable[[], Receiver],
    report: Callable[[Link | Exception], None],
) -> None:
    """Hold a link to the service until the tunnel ends.

    Args:
        new_receiver: makes the receiver of each new link.
        report: is told of each link that comes up, and why one went down or could not be made.

    Raises:
        TunnelRefused: the service refused the very first connection, or a later one for another cause than that the
            tunnel is gone.
        TunnelClosed: the tunnel was closed or has expired.
        LinkLost: with ``permanent`` set, when trying again is of no use.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff()
    was_linked = False
    while True:
        link: Link | None = None
        since = loop.time()
        try:
            link = await connect(endpoint, access, tls, new_receiver())
            was_linked = True
            log.info("connected to %s (channel-id %s)", endpoint, link.channel_id or "not given")
            report(link)
            cause = await asyncio.shield(link.lost)
        except TunnelRefused as refused:
            if was_linked and refused.cause == "tunnel-closed":
                raise TunnelClosed(str(refused)) from None
            raise
        except LinkLost as lost:
            cause = lost
        finally:
            if link is not None and not link.lost.done():
                link.close()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(link.lost)
        if isinstance(cause, (TunnelClosed, TunnelRefused)) or (isinstance(cause, LinkLost) and cause.permanent):
            raise cause
        report(cause)
        if isinstance(cause, Relink):
            log.info("%s", cause)
            continue
        if link is not None and loop.time() - since > STABLE_SECONDS:
            backoff.reset()
        delay = backoff.next_delay()
        log.warning("%s; trying again in %.1f s", cause, delay)
        await asyncio.sleep(delay)
