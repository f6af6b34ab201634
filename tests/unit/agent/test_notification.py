# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads as AWS documents them, and others."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelproxy.agent.notification import (
    MAX_PAYLOAD,
    NotificationRefused,
    notify_topic,
    read_notification,
)

# "IoT agent snippet" of the AWS IoT Developer Guide, with values.
AWS = {"clientAccessToken": "AQGAAXkSECRET", "clientMode": "destination", "region": "eu-west-1", "services": ["SSH1"]}


def payload(**changes: Any) -> bytes:
    return json.dumps({**AWS, **changes}).encode()


def test_a_payload_of_aws_is_read() -> None:
    read = read_notification(payload())
    assert (read.token, read.region, read.services) == ("AQGAAXkSECRET", "eu-west-1", ("SSH1",))


def test_the_topic_is_the_one_that_aws_reserves() -> None:
    assert notify_topic("pump") == "$aws/things/pump/tunnels/notify"


def test_members_that_are_not_known_yet_are_no_reason_to_refuse() -> None:
    assert read_notification(payload(tunnelId="later")).services == ("SSH1",)


def test_a_tunnel_may_have_no_named_services() -> None:
    content = {name: value for name, value in AWS.items() if name != "services"}
    assert read_notification(json.dumps(content).encode()).services == ()


def test_the_same_token_has_the_same_digest_and_another_one_another() -> None:
    first, again, other = (read_notification(payload(clientAccessToken=token)) for token in ("AQ1", "AQ1", "AQ2"))
    assert first.digest == again.digest != other.digest


def test_the_token_is_not_shown() -> None:
    read = read_notification(payload())
    assert "SECRET" not in f"{read} {read!r}"


@pytest.mark.parametrize(
    "changes",
    [
        {"clientAccessToken": None},
        {"clientAccessToken": ""},
        {"clientAccessToken": 7},
        {"clientAccessToken": "two words"},
        {"clientAccessToken": "line\r\nx-header: y"},
        {"clientAccessToken": "ü"},
        {"clientMode": "source"},
        {"clientMode": "DESTINATION"},
        {"clientMode": ["destination"]},
        {"region": 7},
        {"services": "SSH1"},
        {"services": [7]},
        {"services": ["a b"]},
        {"padding": "x" * MAX_PAYLOAD},
    ],
)
def test_what_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotificationRefused):
        read_notification(payload(**changes))


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*AWS, "other"]), inner),
    ).map(lambda content: json.dumps(content).encode())
)
def test_nothing_else_comes_of_a_payload_than_a_notification_or_a_refusal(content: bytes) -> None:
    with contextlib.suppress(NotificationRefused):
        assert read_notification(content).token
