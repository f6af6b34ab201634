# SPDX-License-Identifier: GPL-3.0-or-later
"""What the service's log says of rejected clients."""

from __future__ import annotations

import logging

import pytest

from tunnelproxy.service.events import ControlCall, CutOff, Event, Refused, Suppressed
from tunnelproxy.service.logs.event_log import log_refusal


def call(status: int, operation: str | None = "OpenTunnel") -> ControlCall:
    return ControlCall("r-1", "192.0.2.1", None, None, operation, None, None, "Outcome", status, 0.0)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (call(403), "OpenTunnel from 192.0.2.1 refused: Outcome (request r-1)"),
        (call(403, None), "a request from 192.0.2.1 refused: Outcome (request r-1)"),
        (
            Refused("c-1", "192.0.2.1", None, None, None, "token-used", "the token was used"),
            "channel c-1 from 192.0.2.1: handshake refused: the token was used",
        ),
        (
            Suppressed("control", "Outcome", 80, 2, 60.0),
            "80 more requests from 2 addresses were refused within 60 s: Outcome; they are counted, not logged "
            "individually",
        ),
        (
            Suppressed("refused", "token-unknown", 80, 1, 60.0),
            "80 more handshakes from 1 address were refused within 60 s: token-unknown; they are counted, not logged "
            "individually",
        ),
    ],
)
def test_a_refusal_is_logged_with_who_and_why(caplog: pytest.LogCaptureFixture, event: Event, message: str) -> None:
    caplog.set_level(logging.INFO)
    log_refusal(event)
    assert caplog.messages == [message]


@pytest.mark.parametrize("event", [call(200), call(500), CutOff("192.0.2.1", "tls")])
def test_other_events_are_not_logged_here(caplog: pytest.LogCaptureFixture, event: Event) -> None:
    caplog.set_level(logging.DEBUG)
    log_refusal(event)
    assert caplog.messages == []
