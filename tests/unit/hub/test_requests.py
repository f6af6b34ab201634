# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests are parsed once, and those of an earlier client of the same protocol are understood."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunnelproxy.hub import client, requests, wire
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.requests import ServicePlan, Target, TunnelName
from tunnelproxy.hub.tunnel_record import TunnelRecord
from tunnelproxy.hub.wire import Caller

ACCOUNT = "aws:123456789012:eu-central-1"
CALLER = Caller({"AWS_PROFILE": "ops"}, "/home", verify=False, python="/usr/bin/python3")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests that the client sends."""
    sent: list[dict[str, Any]] = []

    def keep(hub: object, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        sent.append(json.loads(json.dumps(request)))
        return {"protocol": 2, "sentence": "", "code": ""}

    monkeypatch.setattr(wire, "_connect_or_start", lambda: None)
    monkeypatch.setattr(wire, "connect_to_running", lambda: None)
    monkeypatch.setattr(wire, "_exchange", keep)
    return sent


class TestWhatTheClientSends:
    def test_ensure(self, sent: list[dict[str, Any]]) -> None:
        client.ensure(
            "pump",
            open_policy="reuse",
            ports={"HTTP1": 0},
            any_host=["HTTP1"],
            owner="me",
            unregistered=True,
            caller=CALLER,
        )
        found = requests.parse(sent[0])
        plan = ServicePlan(("SSH1", "HTTP1"), {"HTTP1": 0}, ("HTTP1",))
        assert found == requests.Ensure("pump", "SSH1", "reuse", plan, 30.0, 10.0, "me", True, CALLER)
        assert found.may_open

    def test_locate(self, sent: list[dict[str, Any]]) -> None:
        client.locate(None, caller=CALLER)
        client.locate("pump", caller=CALLER)
        assert [*map(requests.parse, sent)] == [requests.Locate(None, CALLER), requests.Locate("pump", CALLER)]

    def test_prepare(self, sent: list[dict[str, Any]]) -> None:
        client.prepare("pump", ["SSH1"], caller=CALLER)
        assert requests.parse(sent[0]) == requests.Prepare("pump", ServicePlan(("SSH1",), {}, ()), False, CALLER)

    def test_call(self, sent: list[dict[str, Any]]) -> None:
        client.call("list_things", {"maxResults": 1}, purpose="list things", api="iot", caller=CALLER)
        assert requests.parse(sent[0]) == requests.Call("iot", "list_things", {"maxResults": 1}, "list things", CALLER)

    @pytest.mark.parametrize("expires_at", [None, 1.5])
    def test_adopt(self, sent: list[dict[str, Any]], expires_at: float | None) -> None:
        client.adopt(
            "pump",
            tunnel_id="id",
            tunnel_arn="arn",
            source_token="t",
            services=["SSH1"],
            expires_at=expires_at,
            caller=CALLER,
        )
        plan = ServicePlan(("SSH1",), {}, ())
        assert requests.parse(sent[0]) == requests.Adopt("pump", "id", "arn", "t", "", expires_at, plan, 10.0, CALLER)

    def test_what_is_asked_of_a_tunnel_that_is_held(self, sent: list[dict[str, Any]]) -> None:
        client.describe("pump", caller=CALLER)
        client.explain("pump", "SSH1", refused=True, account=ACCOUNT)
        client.holds("id", ACCOUNT)
        client.release("id", ACCOUNT)
        client.status()
        assert [*map(requests.parse, sent)] == [
            requests.Describe(Target("pump", "", CALLER)),
            requests.Explain(Target("pump", ACCOUNT, None), "SSH1", True),
            requests.Holds(TunnelName("id", ACCOUNT)),
            requests.Release(TunnelName("id", ACCOUNT)),
            requests.Status(),
        ]


def test_what_an_earlier_client_left_out_has_a_default() -> None:
    target = {"thing": "pump", "service": "SSH1", "account": ACCOUNT, "timeout": 3}
    assert requests.parse({"op": "open", **target}) == requests.Open(Target("pump", ACCOUNT, None), "SSH1", True, 3.0)
    prepare = {"op": "prepare", "thing": None, "services": [], "unregistered": False, "caller": CALLER.to_json()}
    assert requests.parse(prepare) == requests.Prepare(None, ServicePlan((), {}, ()), False, CALLER)


def test_what_a_later_client_adds_is_ignored() -> None:
    request = {"op": "holds", "tunnel_id": "id", "account": ACCOUNT, "new": 1}
    assert requests.parse(request) == requests.Holds(TunnelName("id", ACCOUNT))


def test_tunnels_are_inherited_as_they_are_saved() -> None:
    record = TunnelRecord("pump", "id", "eu-central-1", "token")
    assert requests.parse({"op": "inherit", "tunnels": [json.loads(record.saved)]}) == requests.Inherit((record,))


def test_stopping_needs_nothing() -> None:
    assert requests.parse({"op": "stop"}) == requests.Stop()


def test_an_operation_that_is_not_known_is_named() -> None:
    with pytest.raises(HubError, match="this hub does not know the request 'fly': stop it"):
        requests.parse({"op": "fly"})


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "open", "thing": 7, "service": "SSH1", "account": ACCOUNT, "timeout": 3},
        {"op": "open", "thing": "pump", "service": "SSH1", "timeout": 3},
        {"op": "open", "thing": "pump", "service": "SSH1", "account": ACCOUNT, "timeout": None},
        {"op": "locate", "thing": None, "caller": {}},
    ],
)
def test_what_has_not_its_fields_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        requests.parse(request_)


def test_secrets_are_not_in_a_request_s_print() -> None:
    adopt = requests.Adopt("pump", "id", "arn", "the-token", "", None, ServicePlan((), {}, ()), 1.0, CALLER)
    call = requests.Call("iot", "x", {"key": "the-token"}, "x", CALLER)
    assert "the-token" not in repr((adopt, call))
    assert "AWS_PROFILE" not in repr((adopt, call))
