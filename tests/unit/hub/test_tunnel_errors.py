# SPDX-License-Identifier: GPL-3.0-or-later
"""Each way in which a tunnel does not work has a code and a sentence."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tunnelproxy.errors import TunnelClosed, TunnelRefused
from tunnelproxy.hub.account import Account
from tunnelproxy.hub.control_answers import EndStates
from tunnelproxy.hub.tunnel_errors import code_of, no_answer, not_linked, not_offered
from tunnelproxy.hub.tunnel_record import TunnelRecord

RECORD = TunnelRecord(
    "pump", "id", "eu-central-1", "t", account=Account("aws", "123456789012", "eu-central-1"), owner="me"
)
OPEN = EndStates(tunnel="OPEN", destination="connected", owner="me")
USED = TunnelRefused("the token was used", cause="token-used", status=403)
UNKNOWN = TunnelRefused("the token is not known", cause="token-unknown", status=403)


@pytest.mark.parametrize(
    ("cause", "states", "code", "words"),
    [
        (None, EndStates(), "not-linked", "(id in 123456789012/eu-central-1) is not linked: no answer"),
        (OSError("cannot reach it"), EndStates(), "not-linked", "is not linked: cannot reach it"),
        (TunnelClosed("Tunnel closed"), EndStates(), "tunnel-closed", "was closed: open another"),
        (TunnelClosed("Tunnel expired"), EndStates(), "tunnel-closed", "has expired: open another"),
        (TunnelRefused("it is closed", cause="tunnel-closed", status=403), OPEN, "tunnel-closed", "was closed"),
        (USED, replace(OPEN, tunnel="GONE"), "tunnel-closed", "was closed"),
        (USED, replace(OPEN, owner="you"), "taken-over", "you took over the tunnel of pump"),
        (UNKNOWN, OPEN, "reused-elsewhere", "is used from elsewhere: another hub, or job, of me reused it"),
        (UNKNOWN, EndStates(), "token-unknown", "does not work: the token is not known; or open another"),
        (USED, OPEN, "token-used", "does not work: the token was used; or open another (iotops_tunnel_open=reuse"),
    ],
)
def test_why_a_tunnel_is_not_linked(cause: Exception | None, states: EndStates, code: str, words: str) -> None:
    error = not_linked(RECORD, cause, states, "no answer")
    assert error.code == code
    assert words in error.message


def test_a_tunnel_whose_time_is_over_has_expired() -> None:
    record = replace(RECORD, expires_at=time.time() - 1)
    assert "has expired" in not_linked(record, TunnelClosed("Tunnel closed"), OPEN, "").message


@pytest.mark.parametrize(
    ("states", "refused", "code", "words"),
    [
        (replace(OPEN, tunnel="CLOSED"), True, "tunnel-closed", "was closed"),
        (replace(OPEN, destination="disconnected"), True, "device-not-connected", "is not connected to its tunnel"),
        (OPEN, True, "refused", "the device pump refused SSH1: check that the server behind SSH1 runs there"),
        (EndStates(), True, "refused", "refused SSH1 (or it is not connected: the control API did not answer)"),
        (OPEN, False, "no-answer", "did not answer on SSH1 in time; its end of the tunnel is connected"),
    ],
)
def test_why_a_stream_gave_nothing(states: EndStates, refused: bool, code: str, words: str) -> None:
    error = no_answer(RECORD, "SSH1", states, cause=None, refused=refused)
    assert error.code == code
    assert words in error.message


def test_a_service_that_is_not_offered_is_told_with_those_that_are() -> None:
    assert str(not_offered(RECORD, "VNC", ["SSH1", "HTTP1"])).endswith("VNC; it carries SSH1, HTTP1")
    assert str(not_offered(RECORD, "VNC", [])).endswith("it carries no services")


def test_a_link_without_a_cause_is_not_linked() -> None:
    assert [code_of(None), code_of(TunnelClosed()), code_of(USED)] == ["not-linked", "tunnel-closed", "token-used"]
