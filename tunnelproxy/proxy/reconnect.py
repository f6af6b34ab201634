# SPDX-License-Identifier: Apache-2.0
"""Keeping a link up: connecting, and reconnecting, until the tunnel ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Callable

from ..errors import TunnelClosed, TunnelRefused, without_frames
from ..net.backoff import Backoff
from ..net.route import Route
from .link import Link, LinkLost, LinkTaken, Receiver, Reconnect, TunnelCredentials, connect
from .link_errors import TokenRevoked

__all__ = ["RETRY_FOREVER", "RetryPolicy", "keep_linked"]

log = logging.getLogger(__name__)

STABLE_SECONDS = 10.0
"""After a link that lasted this long, the first retry comes soon again."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry, and when to give up.

    Attributes:
        first_delay: the longest delay before the first retry, in seconds; later delays are longer.
        attempts: how many attempts may fail in a row; None for any number.
        reconnect: whether to reconnect when a link is lost that was up.
    """

    first_delay: float = 1.0
    attempts: int | None = None
    reconnect: bool = True


RETRY_FOREVER = RetryPolicy()
"""The default: no limit to attempts."""


async def keep_linked(
    route: Route,
    credentials: TunnelCredentials,
    new_receiver: Callable[[], Receiver],
    report: Callable[[Link | Exception], None],
    retry_policy: RetryPolicy = RETRY_FOREVER,
) -> None:
    """Keep a link to the service up until the tunnel ends.

    Args:
        new_receiver: makes the receiver for each link.
        report: is given each link that comes up, and the reason why one was lost or could not be made.

    Raises:
        TunnelRefused: the service refused the first connection, or a later one although the tunnel still exists.
        TunnelClosed: the tunnel was closed or has expired.
        LinkLost: retrying is useless: another proxy took the link (LinkTaken), the first connection failed with
            ``permanent`` set, or the retry policy is exhausted. After the first link even permanent failures are
            retried: a captive portal on the way, for example, goes away, and a proxy in the field must outlast it.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(retry_policy.first_delay)
    failures = 0
    was_linked = False
    while True:
        link: Link | None = None
        since = loop.time()
        try:
            link = await connect(route, credentials, new_receiver())
            failures = 0
            was_linked = True
            log.info("connected to %s (channel-id %s)", route, link.channel_id or "not given")
            report(link)
            cause = await asyncio.shield(link.lost)
        except TunnelRefused as refused:
            if was_linked and refused.cause == "tunnel-closed":
                raise TunnelClosed(str(refused)) from None
            raise
        except LinkLost as lost:
            cause = without_frames(lost)
        finally:
            if link is not None and not link.lost.done():
                link.close()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(link.lost)
        if isinstance(cause, (TunnelClosed, TunnelRefused, LinkTaken)):
            raise cause
        if isinstance(cause, LinkLost) and cause.permanent and not was_linked:
            raise cause
        report(cause)
        if isinstance(cause, Reconnect):
            log.info("%s", cause)
            continue
        failures += link is None
        if failures == retry_policy.attempts or (link is not None and not retry_policy.reconnect):
            raise cause
        if link is not None and loop.time() - since > STABLE_SECONDS:
            backoff.reset()
        delay = backoff.next_delay()
        # A rotation is not a fault. The next attempt is refused, and the caller decides what to tell.
        level = logging.INFO if isinstance(cause, TokenRevoked) else logging.WARNING
        log.log(level, "%s; trying again in %.1f s", cause, delay)
        await asyncio.sleep(delay)
