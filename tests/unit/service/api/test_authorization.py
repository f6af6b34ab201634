# SPDX-License-Identifier: GPL-3.0-or-later
"""Which key may do what, with which things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.service.api.authorization import Authorizer
from tunnelproxy.service.errors import ApiError
from tunnelproxy.service.model import (
    AccessKey,
    Mode,
    NewTunnel,
    Tunnel,
    digest,
    new_access_token,
    new_key_pair,
)
from tunnelproxy.service.state.store import Store

CHANGING = ("OpenTunnel", "CloseTunnel", "RotateTunnelAccessToken", "TagResource", "UntagResource")
READING = ("DescribeTunnel", "ListTunnels", "ListTagsForResource")


class Gate:
    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "service.db")
        self.identity = self.store.identity()
        self.access = Authorizer(self.identity, self.store.find_tunnel)

    def open(self, thing: str | None) -> Tunnel:
        tokens = {mode: digest(new_access_token()) for mode in Mode}
        return self.store.open_tunnel(NewTunnel(thing_name=thing), tokens, 1_700_000_000.0)

    def allows(self, key: AccessKey, operation: str, **params: Any) -> bool:
        try:
            self.access.check(key, operation, params)
        except ApiError as error:
            if (error.kind, error.status) != ("AccessDeniedException", 403):
                raise
            return False
        return True


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def key(**limits: Any) -> AccessKey:
    return AccessKey("ci", new_key_pair(), **limits)


@pytest.mark.parametrize("operation", CHANGING + READING)
def test_a_key_without_limits_may_do_everything(gate: Gate, operation: str) -> None:
    assert gate.allows(key(), operation, tunnelId=gate.open(None).tunnel_id)


def test_a_read_only_key_may_look_and_change_nothing(gate: Gate) -> None:
    tunnel_id = gate.open("pump").tunnel_id
    for operation in READING:
        assert gate.allows(key(read_only=True), operation, tunnelId=tunnel_id)
    for operation in CHANGING:
        assert not gate.allows(key(read_only=True), operation, tunnelId=tunnel_id)


def test_a_refusal_is_in_aws_s_words(gate: Gate) -> None:
    with pytest.raises(ApiError) as caught:
        gate.access.check(key(read_only=True), "OpenTunnel", {})
    account = gate.identity.account_id
    assert caught.value.message == (
        f"User: arn:aws:iam::{account}:user/ci is not authorized to perform: iot:OpenTunnel on resource: "
        f"arn:aws:iot:us-east-1:{account}:tunnel/* because no identity-based policy allows the iot:OpenTunnel action"
    )


@pytest.mark.parametrize(
    ("thing", "allowed"),
    [("line-3-press", True), ("pump", True), ("line-4-press", False), ("LINE-3-press", False), (None, False)],
)
def test_a_key_for_some_things_deals_with_their_tunnels_only(gate: Gate, thing: str | None, allowed: bool) -> None:
    some = key(things=("line-3-*", "pump"))
    tunnel = gate.open(thing)
    arn = gate.identity.arn(tunnel.tunnel_id)
    destination = {} if thing is None else {"destinationConfig": {"thingName": thing}}
    assert gate.allows(some, "OpenTunnel", **destination) is allowed
    for operation in ("DescribeTunnel", "CloseTunnel", "RotateTunnelAccessToken"):
        assert gate.allows(some, operation, tunnelId=tunnel.tunnel_id) is allowed
    for operation in ("TagResource", "UntagResource", "ListTagsForResource"):
        assert gate.allows(some, operation, resourceArn=arn) is allowed


def test_a_rotation_cannot_take_a_tunnel_to_a_thing_of_others(gate: Gate) -> None:
    some = key(things=("pump",))
    tunnel_id = gate.open("pump").tunnel_id
    named = {"destinationConfig": {"thingName": "press"}}
    assert not gate.allows(some, "RotateTunnelAccessToken", tunnelId=tunnel_id, **named)


def test_a_tunnel_that_does_not_exist_is_left_to_the_operation(gate: Gate) -> None:
    assert gate.allows(key(things=("pump",)), "DescribeTunnel", tunnelId="none")


def test_only_tunnels_of_its_things_are_listed_page_by_page(gate: Gate) -> None:
    for thing in ("pump", "press", None, "pump", "press", "pump"):
        gate.open(thing)
    some = key(things=("pump",))
    first = gate.store.list_tunnels(thing_name=None, before=None, limit=2, key=some)
    rest = gate.store.list_tunnels(thing_name=None, before=first[-1].number, limit=9, key=some)
    assert [tunnel.thing_name for tunnel in first + rest] == ["pump"] * 3
    assert gate.store.list_tunnels(thing_name="press", before=None, limit=9, key=some) == []


@pytest.mark.parametrize("by", ["tunnelId", "resourceArn"])
def test_the_subject_of_a_request_is_its_tunnel_and_the_tunnels_thing(gate: Gate, by: str) -> None:
    tunnel = gate.open("pump")
    value = tunnel.tunnel_id if by == "tunnelId" else gate.identity.arn(tunnel.tunnel_id)
    assert gate.access.subject({by: value}) == (tunnel.tunnel_id, "pump")


def test_the_subject_of_a_request_may_be_unknown_or_a_thing_only(gate: Gate) -> None:
    assert gate.access.subject({"tunnelId": "none"}) == ("none", None)
    assert gate.access.subject({"destinationConfig": {"thingName": "pump"}}) == (None, "pump")
    assert gate.access.subject({"thingName": "pump"}) == (None, "pump")
    assert gate.access.subject({}) == (None, None)


def test_a_thing_is_described_to_a_key_that_covers_it(gate: Gate) -> None:
    assert gate.allows(key(read_only=True, things=("pump",)), "DescribeThing", thingName="pump")
    assert not gate.allows(key(things=("pump",)), "DescribeThing", thingName="press")
