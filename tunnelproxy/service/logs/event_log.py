# SPDX-License-Identifier: Apache-2.0
"""What the service's log says of those who were refused."""

from __future__ import annotations

import logging

from ..events import ControlCall, Event, Refused, Suppressed

__all__ = ["log_refusal"]

_log = logging.getLogger(__name__)

_CLIENTS_FAULT = range(400, 500)


def log_refusal(event: Event) -> None:
    """Log a refusal, or how many there were; other events are logged where they happen."""
    if isinstance(event, ControlCall) and event.status in _CLIENTS_FAULT:
        _log.info(
            "%s of %s refused: %s (request %s)",
            event.operation or "a request",
            event.address,
            event.outcome,
            event.request_id,
        )
    elif isinstance(event, Refused):
        _log.info(
            "channel %s of %s: handshake refused: %s",
            event.channel,
            event.address,
            event.reason,
            extra={"channel": event.channel},
        )
    elif isinstance(event, Suppressed):
        what = "requests" if event.of == "control" else "handshakes"
        _log.warning(
            "%d more %s were refused within %.0f s, from %d addresses: %s; they are counted, not logged one by one",
            event.count,
            what,
            event.seconds,
            event.addresses,
            event.outcome,
        )
