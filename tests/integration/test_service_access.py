# SPDX-License-Identifier: GPL-3.0-or-later
"""All access rules of the control API, tested from outside: with boto3 and the command line."""

from __future__ import annotations

import configparser
import datetime as dt
import json
import re
import ssl
import subprocess
import sys
from typing import Any

import pytest
from botocore.exceptions import ClientError

from peers.process import REPOSITORY, wait_for
from peers.service import TunnelingService, read_exports
from peers.signing import now, post, send, sign
from tunnelproxy.service.state.store import Store


@pytest.fixture(scope="module", autouse=True)
def overheard(service: TunnelingService) -> dict[str, str]:
    """The headers of an answered request, as an eavesdropper sees them. Their grace period starts here."""
    headers = signed(service, "OpenTunnel")
    assert post(service.api, headers, context=trusting(service))[0] == 200
    return headers


def signed(service: TunnelingService, operation: str, body: bytes = b"{}") -> dict[str, str]:
    key, secret = (service.environment[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    return sign(service.api, operation, key_id=key, secret=secret, signed_at=now(), body=body)


def trusting(service: TunnelingService) -> ssl.SSLContext:
    return ssl.create_default_context(capath=service.ca)


def run(service: TunnelingService, *arguments: str, status: int = 0) -> str:
    """The output of a ``tunnelproxy service`` command, on stderr if it is expected to fail."""
    command = [sys.executable, "-m", "tunnelproxy", "service", *arguments, "--state-dir", str(service.state_dir)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def client_with_key(service: TunnelingService, name: str, *limits: str, api: str = "iotsecuretunneling") -> Any:
    """A boto3 client with a new access key, which the running service accepts immediately."""
    profiles = configparser.ConfigParser(interpolation=None)
    profiles.read_string(run(service, "key", "add", name, *limits))
    return service.boto3_client(api, **dict(profiles[name]))


def refusal(call: Any, **params: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as caught:
        call(**params)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Message"]


@pytest.fixture(scope="module")
def owner(service: TunnelingService) -> Any:
    return service.boto3_client()


def test_a_read_only_key_can_describe_but_not_open(service: TunnelingService, owner: Any) -> None:
    opened = owner.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    reader = client_with_key(service, "reader", "--read-only")
    tunnel_id, arn = opened["tunnelId"], opened["tunnelArn"]
    assert reader.describe_tunnel(tunnelId=tunnel_id)["tunnel"]["tunnelId"] == tunnel_id
    assert tunnel_id in [found["tunnelId"] for found in reader.list_tunnels()["tunnelSummaries"]]
    assert reader.list_tags_for_resource(resourceArn=arn)["tags"] == []
    account = re.escape(arn.split(":")[4])
    code, status, message = refusal(reader.open_tunnel, destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    assert (code, status) == ("AccessDeniedException", 403)
    assert re.match(
        rf"User: arn:aws:iam::{account}:user/reader is not authorized to perform: iot:OpenTunnel on resource: arn:aws:",
        message,
    )
    for call, params in [
        (reader.close_tunnel, {"tunnelId": tunnel_id}),
        (reader.rotate_tunnel_access_token, {"tunnelId": tunnel_id, "clientMode": "ALL"}),
        (reader.tag_resource, {"resourceArn": arn, "tags": [{"key": "a", "value": "b"}]}),
        (reader.untag_resource, {"resourceArn": arn, "tagKeys": ["a"]}),
    ]:
        assert refusal(call, **params)[:2] == ("AccessDeniedException", 403)
    assert owner.describe_tunnel(tunnelId=tunnel_id)["tunnel"]["status"] == "OPEN"


def test_a_key_for_some_things_cannot_access_others(service: TunnelingService, owner: Any) -> None:
    line3 = client_with_key(service, "line3", "--things", "line-3-*", "--things", "gate")
    mine = line3.open_tunnel(destinationConfig={"thingName": "line-3-press", "services": ["SSH1"]})
    others = owner.open_tunnel(destinationConfig={"thingName": "line-4-press", "services": ["SSH1"]})
    nobodys = owner.open_tunnel()
    assert [found["tunnelId"] for found in line3.list_tunnels()["tunnelSummaries"]] == [mine["tunnelId"]]
    assert line3.list_tunnels(thingName="line-4-press")["tunnelSummaries"] == []
    for tunnel in (others, nobodys):
        assert refusal(line3.describe_tunnel, tunnelId=tunnel["tunnelId"])[:2] == ("AccessDeniedException", 403)
        assert refusal(line3.close_tunnel, tunnelId=tunnel["tunnelId"])[:2] == ("AccessDeniedException", 403)
    assert refusal(line3.open_tunnel)[0] == "AccessDeniedException"
    assert refusal(line3.open_tunnel, destinationConfig={"thingName": "line-4-x", "services": ["SSH1"]})[1] == 403
    line3.close_tunnel(tunnelId=mine["tunnelId"])


def test_things_are_visible_to_keys_that_cover_them_and_access_is_audited(service: TunnelingService) -> None:
    store = Store(service.state_dir / "service.db")
    for thing in ("line-5:press", "line-6:press"):
        store.put_thing(thing, "press", {"site": "north"})
    store.close()
    owner = service.boto3_client("iot")
    some = client_with_key(service, "line5", "--read-only", "--things", "line-5:*", api="iot")

    by_site = {"attributeName": "site", "attributeValue": "north"}
    assert [thing["thingName"] for thing in owner.list_things(**by_site)["things"]] == ["line-5:press", "line-6:press"]
    assert [thing["thingName"] for thing in some.list_things(**by_site)["things"]] == ["line-5:press"]
    assert some.describe_thing(thingName="line-5:press")["thingTypeName"] == "press"
    code, status, message = refusal(some.describe_thing, thingName="line-6:press")
    assert (code, status) == ("AccessDeniedException", 403)
    assert "iot:DescribeThing on resource: " in message
    assert ":thing/line-6:press" in message
    assert refusal(owner.describe_thing, thingName="nobody")[:2] == ("ResourceNotFoundException", 404)
    assert refusal(owner.list_things, maxResults=251)[:2] == ("InvalidRequestException", 400)
    assert refusal(owner.search_index, queryString="*")[:2] == ("UnknownOperationException", 404)
    wrong = service.boto3_client("iot", aws_secret_access_key="x" * 40)
    assert refusal(wrong.list_things)[:2] == ("InvalidSignatureException", 403)
    lines = [json.loads(line) for line in (service.state_dir / "audit.log").read_text().splitlines()]
    assert ("line5", "DescribeThing", "line-6:press", "AccessDeniedException") in [
        (line["key"], line["operation"], line["thing"], line["outcome"]) for line in lines if line["event"] == "control"
    ]


def test_a_removed_key_is_rejected_immediately(service: TunnelingService) -> None:
    client = client_with_key(service, "leaver")
    client.list_tunnels()
    run(service, "key", "remove", "leaver")
    assert refusal(client.list_tunnels)[:2] == ("UnrecognizedClientException", 403)


def test_keys_are_listed_without_their_secrets(service: TunnelingService) -> None:
    made = run(service, "key", "add", "shown-once", "--read-only", "--things", "a*")
    secret = made.split()[-1]
    listed = run(service, "key", "list")
    assert re.search(r"^default +AKIA\w{16} +full +all$", listed, re.MULTILINE)
    assert re.search(r"^shown-once +AKIA\w{16} +read only +a\*$", listed, re.MULTILINE)
    assert secret not in listed
    assert "already" in run(service, "key", "add", "shown-once", status=1)
    assert "no access key nobody" in run(service, "key", "remove", "nobody", status=1)


def test_service_env_prints_a_named_key(service: TunnelingService) -> None:
    made = run(service, "key", "add", "for-env")
    environment = read_exports(run(service, "env", "--key", "for-env"))
    assert f"aws_access_key_id = {environment['AWS_ACCESS_KEY_ID']}\n" in made
    assert environment["AWS_SECRET_ACCESS_KEY"] == made.split()[-1]
    assert "no access key nobody" in run(service, "env", "--key", "nobody", status=1)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_signature_with_a_wrong_date_is_refused(service: TunnelingService, minutes: int) -> None:
    status, kind, message = send(service, "ListTunnels", signed_at=now() + dt.timedelta(minutes=minutes))
    assert (status, kind) == (403, "InvalidSignatureException")
    assert ("Signature expired" if minutes < 0 else "Signature not yet current") in message


def test_equal_calls_within_one_second_are_all_carried_out(service: TunnelingService, owner: Any) -> None:
    # Their signatures are equal: signed dates have whole seconds.
    before = len(owner.list_tunnels()["tunnelSummaries"])
    moment = now()
    assert [send(service, "OpenTunnel", signed_at=moment)[0] for _ in range(2)] == [200, 200]
    assert len(owner.list_tunnels()["tunnelSummaries"]) == before + 2


def test_a_signature_is_valid_only_for_the_signed_request(service: TunnelingService) -> None:
    headers = signed(service, "ListTunnels")
    for changed, body in (
        ({"X-Amz-Target": "IoTSecuredTunneling.OpenTunnel"}, b"{}"),
        ({}, b'{"thingName": "pump"}'),
        ({"X-Amz-Date": "20200101T000000Z"}, b"{}"),
    ):
        status, answer = post(service.api, {**headers, **changed}, body, trusting(service))
        assert (status, answer["__type"]) == (403, "InvalidSignatureException")


# Last, because by now the signature's grace period is over, or nearly so.
def test_a_replayed_request_opens_nothing(service: TunnelingService, owner: Any, overheard: dict[str, str]) -> None:
    def answer() -> dict[str, Any] | None:
        status, content = post(service.api, overheard, context=trusting(service))
        return content if status != 200 else None

    refused = wait_for(answer, "the signature to be refused", 10)
    assert refused is not None
    assert refused["__type"] == "InvalidSignatureException"
    assert "first used more than 5 seconds ago" in refused["message"]
    before = owner.list_tunnels(maxResults=100)["tunnelSummaries"]
    assert answer() is not None
    assert owner.list_tunnels(maxResults=100)["tunnelSummaries"] == before
