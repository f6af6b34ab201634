# SPDX-License-Identifier: Apache-2.0
"""Writes refused requests and handshakes to the service's log."""

from __future__ import annotations

import logging

from ..events import ControlCall, Event, Refused, Suppressed

__all__ = ["log_refusal"]

log = logging.getLogger(__name__)

_CLIENT_ERRORS = range(400, 500)


def log_refusal(event: Event) -> None:
    """Log a refusal, or the number of refusals; other events are logged where they happen."""
    if isinstance(event, ControlCall) and event.status in _CLIENT_ERRORS:
        log.info(
            "%s from %s refused: %s (request %s)",
            event.operation or "a request",
            event.address,
            event.outcome,
            event.request_id,
        )
    elif isinstance(event, Refused):
        log.info(
            "channel %s from %s: handshake refused: %s",
            event.channel,
            event.address,
            event.reason,
            extra={"channel": event.channel},
        )
    elif isinstance(event, Suppressed):
        what = "requests" if event.of == "control" else "handshakes"
        log.warning(
            "%d more %s from %s were refused within %.0f s: %s; they are counted, not logged individually",
            event.count,
            what,
            "1 address" if event.addresses == 1 else f"{event.addresses} addresses",
            event.seconds,
            event.outcome,
        )
