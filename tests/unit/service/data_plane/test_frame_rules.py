# SPDX-License-Identifier: GPL-3.0-or-later
"""What each end may send."""

from __future__ import annotations

import pytest

from tunnelproxy.protocol.framing import Message
from tunnelproxy.protocol.session import Mode
from tunnelproxy.service.data_plane.frame_rules import BrokenRule, FrameRules

SERVICES = ("SSH1", "HTTP1")


def message(kind: int, *, stream: int = 1, service: str = "SSH1", ignorable: bool = False) -> Message:
    return Message(type=kind, streamId=stream, serviceId=service, ignorable=ignorable)


@pytest.mark.parametrize("kind", [Message.STREAM_START, Message.CONNECTION_START])
def test_only_a_source_starts(kind: int) -> None:
    assert FrameRules(Mode.SOURCE, SERVICES).check(message(kind))
    with pytest.raises(BrokenRule, match="destination must not start"):
        FrameRules(Mode.DESTINATION, SERVICES).check(message(kind))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("kind", [Message.DATA, Message.STREAM_RESET, Message.CONNECTION_RESET])
def test_both_ends_send_data_and_resets(mode: Mode, kind: int) -> None:
    assert FrameRules(mode, SERVICES).check(message(kind))


@pytest.mark.parametrize("kind", [Message.SESSION_RESET, Message.SERVICE_IDS])
def test_some_messages_are_the_service_s_own(kind: int) -> None:
    with pytest.raises(BrokenRule, match="only the service"):
        FrameRules(Mode.SOURCE, SERVICES).check(message(kind, ignorable=True))


@pytest.mark.parametrize("kind", [Message.UNKNOWN, 42])
def test_an_unknown_type_is_skipped_if_it_may_be_ignored(kind: int) -> None:
    rules = FrameRules(Mode.SOURCE, SERVICES)
    assert not rules.check(message(kind, ignorable=True, stream=0))
    with pytest.raises(BrokenRule, match="unknown message type"):
        rules.check(message(kind))


@pytest.mark.parametrize(
    "kind",
    [Message.DATA, Message.STREAM_START, Message.STREAM_RESET, Message.CONNECTION_START, Message.CONNECTION_RESET],
)
def test_stream_id_0_is_invalid(kind: int) -> None:
    with pytest.raises(BrokenRule, match="stream ID 0"):
        FrameRules(Mode.SOURCE, SERVICES).check(message(kind, stream=0))


def test_a_service_must_be_one_of_the_tunnel_s() -> None:
    with pytest.raises(BrokenRule, match="service ID that the tunnel does not have"):
        FrameRules(Mode.SOURCE, SERVICES).check(message(Message.DATA, service="VNC"))


@pytest.mark.parametrize(("first", "then"), [("SSH1", ""), ("", "SSH1")])
def test_messages_with_and_without_service_do_not_mix(first: str, then: str) -> None:
    rules = FrameRules(Mode.SOURCE, SERVICES)
    assert rules.check(message(Message.DATA, service=first))
    with pytest.raises(BrokenRule, match="with and without service ID"):
        rules.check(message(Message.DATA, service=then))


def test_a_v1_client_s_service_ids_do_not_count() -> None:
    rules = FrameRules(Mode.SOURCE, None)
    assert rules.check(message(Message.DATA, service="anything"))
    assert rules.check(message(Message.DATA, service=""))
