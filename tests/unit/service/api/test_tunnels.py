# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations on a real store; whom they disconnect is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.errors import ApiError
from tunnelproxy.service.model import Mode
from tunnelproxy.service.state.store import Store


class Service:
    def __init__(self, folder: Path) -> None:
        self.now = 1_700_000_000.0
        self.disconnected: list[str] = []
        self.revoked: list[tuple[str, Mode]] = []
        self.opened = 0
        self.notified: list[tuple[str | None, tuple[str, ...], str]] = []
        self.operations = TunnelOperations(
            Store(folder / "service.db"),
            disconnect=self.disconnected.append,
            revoke=lambda tunnel_id, mode: self.revoked.append((tunnel_id, mode)),
            clock=lambda: self.now,
            tunnel_opened=self.note_opened,
            deliver=lambda tunnel, token: self.notified.append((tunnel.thing_name, tunnel.services, token)),
        )

    def note_opened(self) -> None:
        self.opened += 1

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return self.operations.call(operation, params)

    def refusal(self, operation: str, **params: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.call(operation, **params)
        return caught.value

    def open(self, *services: str, **params: Any) -> dict[str, Any]:
        if services:
            params["destinationConfig"] = {"services": list(services)}
        return self.call("OpenTunnel", **params)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_an_opened_tunnel_is_described_as_it_was_asked_for(service: Service) -> None:
    opened = service.call(
        "OpenTunnel",
        description="a pump",
        tags=[{"key": "owner", "value": "me"}],
        destinationConfig={"thingName": "pump", "services": ["SSH1", "HTTP1"]},
        timeoutConfig={"maxLifetimeTimeoutMinutes": 60},
    )
    disconnected = {"status": "DISCONNECTED", "lastUpdatedAt": service.now}
    assert service.call("DescribeTunnel", tunnelId=opened["tunnelId"]) == {
        "tunnel": {
            "tunnelId": opened["tunnelId"],
            "tunnelArn": opened["tunnelArn"],
            "status": "OPEN",
            "description": "a pump",
            "createdAt": service.now,
            "lastUpdatedAt": service.now,
            "sourceConnectionState": disconnected,
            "destinationConnectionState": disconnected,
            "destinationConfig": {"thingName": "pump", "services": ["SSH1", "HTTP1"]},
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": 60},
            "tags": [{"key": "owner", "value": "me"}],
        }
    }
    assert opened["sourceAccessToken"] != opened["destinationAccessToken"]
    assert service.opened == 1


def test_a_tunnel_may_be_opened_with_nothing_and_lives_twelve_hours(service: Service) -> None:
    described = service.call("DescribeTunnel", tunnelId=service.open()["tunnelId"])["tunnel"]
    assert described["timeoutConfig"] == {"maxLifetimeTimeoutMinutes": 720}
    assert "destinationConfig" not in described


def test_three_services_are_the_limit_and_none_comes_twice(service: Service) -> None:
    service.open("A", "B", "C")
    assert service.refusal("OpenTunnel", destinationConfig={"services": list("ABCD")}).kind == "LimitExceededException"
    assert service.refusal("OpenTunnel", destinationConfig={"services": list("AA")}).kind == "ValidationException"


def test_closing_disconnects_once_and_keeps_the_tunnel(service: Service) -> None:
    tunnel_id = service.open()["tunnelId"]
    for _ in range(2):
        assert service.call("CloseTunnel", tunnelId=tunnel_id) == {}
    assert service.disconnected == [tunnel_id]
    assert service.call("DescribeTunnel", tunnelId=tunnel_id)["tunnel"]["status"] == "CLOSED"


def test_closing_with_delete_forgets_the_tunnel(service: Service) -> None:
    tunnel_id = service.open()["tunnelId"]
    service.call("CloseTunnel", tunnelId=tunnel_id, delete=True)
    assert service.disconnected == [tunnel_id]
    assert service.refusal("DescribeTunnel", tunnelId=tunnel_id).kind == "ResourceNotFoundException"


def test_tunnels_are_listed_newest_first_page_by_page(service: Service) -> None:
    ids = [service.open()["tunnelId"] for _ in range(5)]
    seen: list[str] = []
    more: dict[str, Any] = {}
    while True:
        page = service.call("ListTunnels", maxResults=2, **more)
        seen += [summary["tunnelId"] for summary in page["tunnelSummaries"]]
        if "nextToken" not in page:
            break
        more = {"nextToken": page["nextToken"]}
    assert seen == ids[::-1]


def test_tunnels_are_listed_by_thing(service: Service) -> None:
    service.open("SSH1")
    config = {"thingName": "pump", "services": ["SSH1"]}
    wanted = service.call("OpenTunnel", destinationConfig=config)["tunnelId"]
    listed = service.call("ListTunnels", thingName="pump")["tunnelSummaries"]
    assert [summary["tunnelId"] for summary in listed] == [wanted]


@pytest.mark.parametrize("token", ["=", "abc", "YmVmb3JlOng=", "b3RoZXI6MQ=="])
def test_a_next_token_made_up_is_refused(service: Service, token: str) -> None:
    assert service.refusal("ListTunnels", nextToken=token).kind == "ValidationException"


@pytest.mark.parametrize(
    ("client_mode", "modes"),
    [("SOURCE", [Mode.SOURCE]), ("DESTINATION", [Mode.DESTINATION]), ("ALL", [Mode.SOURCE, Mode.DESTINATION])],
)
def test_rotation_returns_and_revokes_what_was_asked_for(service: Service, client_mode: str, modes: list[Mode]) -> None:
    opened = service.open("SSH1")
    rotated = service.call("RotateTunnelAccessToken", tunnelId=opened["tunnelId"], clientMode=client_mode)
    assert rotated.pop("tunnelArn") == opened["tunnelArn"]
    assert sorted(rotated) == sorted(f"{mode.value}AccessToken" for mode in modes)
    assert not set(rotated.values()) & set(opened.values())
    assert service.revoked == [(opened["tunnelId"], mode) for mode in modes]


def test_rotation_may_name_the_thing_but_not_other_services(service: Service) -> None:
    tunnel_id = service.open("SSH1")["tunnelId"]
    rotate = {"tunnelId": tunnel_id, "clientMode": "DESTINATION"}
    service.call("RotateTunnelAccessToken", **rotate, destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    described = service.call("DescribeTunnel", tunnelId=tunnel_id)["tunnel"]
    assert described["destinationConfig"] == {"thingName": "pump", "services": ["SSH1"]}
    refusal = service.refusal("RotateTunnelAccessToken", **rotate, destinationConfig={"services": ["VNC"]})
    assert refusal.kind == "ValidationException"
    assert "cannot be changed" in refusal.message


def test_rotation_of_the_source_takes_no_destination(service: Service) -> None:
    tunnel_id = service.open("SSH1")["tunnelId"]
    refusal = service.refusal(
        "RotateTunnelAccessToken", tunnelId=tunnel_id, clientMode="SOURCE", destinationConfig={"services": ["SSH1"]}
    )
    assert refusal.kind == "ValidationException"


def test_tokens_of_a_closed_tunnel_cannot_be_rotated(service: Service) -> None:
    tunnel_id = service.open()["tunnelId"]
    service.call("CloseTunnel", tunnelId=tunnel_id)
    refusal = service.refusal("RotateTunnelAccessToken", tunnelId=tunnel_id, clientMode="ALL")
    assert refusal.kind == "ResourceNotFoundException"
    assert "closed" in refusal.message


def test_tags_are_added_replaced_and_removed(service: Service) -> None:
    arn = service.open(tags=[{"key": "a", "value": "1"}])["tunnelArn"]
    service.call("TagResource", resourceArn=arn, tags=[{"key": "a", "value": "2"}, {"key": "b", "value": ""}])
    tags = [{"key": "a", "value": "2"}, {"key": "b", "value": ""}]
    assert service.call("ListTagsForResource", resourceArn=arn) == {"tags": tags}
    service.call("UntagResource", resourceArn=arn, tagKeys=["a", "absent"])
    assert service.call("ListTagsForResource", resourceArn=arn) == {"tags": tags[1:]}


def test_too_many_reserved_and_repeated_tags_are_refused(service: Service) -> None:
    arn = service.open(tags=[{"key": f"k{n}", "value": ""} for n in range(50)])["tunnelArn"]
    one_more = [{"key": "more", "value": ""}]
    assert service.refusal("TagResource", resourceArn=arn, tags=one_more).kind == "LimitExceededException"
    service.call("TagResource", resourceArn=arn, tags=[{"key": "k1", "value": "changed"}])
    reserved = [{"key": "aws:x", "value": ""}]
    assert service.refusal("OpenTunnel", tags=reserved).kind == "ValidationException"
    assert service.refusal("OpenTunnel", tags=one_more * 2).kind == "ValidationException"


def test_what_does_not_exist_is_not_found(service: Service) -> None:
    arn = service.open()["tunnelArn"]
    for operation, params in [
        ("CloseTunnel", {"tunnelId": "absent"}),
        ("DescribeTunnel", {"tunnelId": "absent"}),
        ("RotateTunnelAccessToken", {"tunnelId": "absent", "clientMode": "ALL"}),
        ("ListTagsForResource", {"resourceArn": "arn:aws:iot:us-east-1:1:tunnel/absent"}),
        ("TagResource", {"resourceArn": arn + "x", "tags": []}),
        ("UntagResource", {"resourceArn": "absent", "tagKeys": []}),
    ]:
        assert service.refusal(operation, **params).kind == "ResourceNotFoundException"


def test_a_tunnel_for_a_thing_is_notified_of(service: Service) -> None:
    opened = service.call("OpenTunnel", destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    assert service.notified == [("pump", ("SSH1",), opened["destinationAccessToken"])]


@pytest.mark.parametrize(("mode", "times"), [("SOURCE", 0), ("DESTINATION", 1), ("ALL", 1)])
def test_a_rotation_is_notified_of_when_it_concerns_the_thing(service: Service, mode: str, times: int) -> None:
    opened = service.call("OpenTunnel", destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    service.notified.clear()
    rotated = service.call("RotateTunnelAccessToken", tunnelId=opened["tunnelId"], clientMode=mode)
    assert service.notified == [("pump", ("SSH1",), rotated.get("destinationAccessToken"))] * times


def test_a_rotation_may_name_the_thing_to_notify(service: Service) -> None:
    opened = service.open("SSH1")
    service.notified.clear()
    service.call(
        "RotateTunnelAccessToken",
        tunnelId=opened["tunnelId"],
        clientMode="DESTINATION",
        destinationConfig={"thingName": "valve", "services": ["SSH1"]},
    )
    assert [thing for thing, _, _ in service.notified] == ["valve"]
