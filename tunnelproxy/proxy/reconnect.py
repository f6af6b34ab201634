# SPDX-License-Identifier: Apache-2.0
"""Keeping a link up: connect, and connect again, until the tunnel is gone."""

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

__all__ = ["PATIENT", "RetryPolicy", "keep_linked"]

log = logging.getLogger(__name__)

STABLE_SECONDS = 10.0
"""A link that lasted this long was a success: the next attempt after it is quick again."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on trying.

    Attributes:
        first_delay: the longest first wait between two attempts, in seconds; it grows.
        attempts: after how many failures one after the other to give up; None for never.
        reconnect: whether to connect again when a link is lost that was up.
    """

    first_delay: float = 1.0
    attempts: int | None = None
    reconnect: bool = True


PATIENT = RetryPolicy()
"""Never gives up."""


async def keep_linked(
    route: Route,
    access: TunnelCredentials,
    new_receiver: Callable[[], Receiver],
    report: Callable[[Link | Exception], None],
    retry_policy: RetryPolicy = PATIENT,
) -> None:
    """Hold a link to the service until the tunnel ends.

    Args:
        new_receiver: makes the receiver of each new link.
        report: is told of each link that comes up, and why one went down or could not be made.

    Raises:
        TunnelRefused: the service refused the very first connection, or a later one for another cause than that the
            tunnel is gone.
        TunnelClosed: the tunnel was closed or has expired.
        LinkLost: trying again is of no use: it is LinkTaken, or the first connection failed with ``permanent`` set.
            Later on even that passes, such as a captive portal on the way, and a proxy in the field must outlast it.
            Or retry_policy is at its end.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(retry_policy.first_delay)
    failures = 0
    was_linked = False
    while True:
        link: Link | None = None
        since = loop.time()
        try:
            link = await connect(route, access, new_receiver())
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
        log.warning("%s; trying again in %.1f s", cause, delay)
        await asyncio.sleep(delay)
