# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API, used by boto3, and by plain HTTPS for requests that boto3 would not send."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from peers.service import TunnelingService


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService() as running:
        yield running


@pytest.fixture(scope="module")
def client(service: TunnelingService) -> Any:
    return service.boto3_client()


def error(call: Any, **params: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as caught:
        call(**params)
    response = caught.value.response
    assert response["ResponseMetadata"]["RequestId"]
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Message"]


def test_all_eight_operations(client: Any) -> None:
    opened = client.open_tunnel(
        description="Größe",
        destinationConfig={"thingName": "pump", "services": ["SSH1", "HTTP1"]},
        timeoutConfig={"maxLifetimeTimeoutMinutes": 5},
        tags=[{"key": "owner", "value": "me"}],
    )
    tunnel_id, arn = opened["tunnelId"], opened["tunnelArn"]
    client.tag_resource(resourceArn=arn, tags=[{"key": "site", "value": "north"}])
    client.untag_resource(resourceArn=arn, tagKeys=["owner"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"] == [{"key": "site", "value": "north"}]
    assert [summary["tunnelId"] for summary in client.list_tunnels(thingName="pump")["tunnelSummaries"]] == [tunnel_id]
    rotated = client.rotate_tunnel_access_token(tunnelId=tunnel_id, clientMode="ALL")
    assert rotated["sourceAccessToken"] != opened["sourceAccessToken"]
    client.close_tunnel(tunnelId=tunnel_id)
    described = client.describe_tunnel(tunnelId=tunnel_id)["tunnel"]
    assert (described["status"], described["description"]) == ("CLOSED", "Größe")
    assert described["createdAt"] < described["lastUpdatedAt"]
    client.close_tunnel(tunnelId=tunnel_id, delete=True)
    assert error(client.describe_tunnel, tunnelId=tunnel_id)[:2] == ("ResourceNotFoundException", 400)


def test_a_wrong_secret_and_an_unknown_key_get_403(service: TunnelingService) -> None:
    wrong = service.boto3_client(aws_secret_access_key="x" * 40)
    assert error(wrong.list_tunnels)[:2] == ("InvalidSignatureException", 403)
    unknown = service.boto3_client(aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")
    assert error(unknown.list_tunnels)[:2] == ("UnrecognizedClientException", 403)


def test_another_region_is_refused(service: TunnelingService) -> None:
    assert error(service.boto3_client(region_name="eu-west-1").list_tunnels)[:2] == ("InvalidSignatureException", 403)


def test_input_that_violates_the_model_is_refused(client: Any) -> None:
    code, status, message = error(client.open_tunnel, timeoutConfig={"maxLifetimeTimeoutMinutes": 721})
    assert (code, status) == ("ValidationException", 400)
    assert "less than or equal to 720" in message


def test_a_fourth_service_exceeds_the_limit(client: Any) -> None:
    code, status, _ = error(client.open_tunnel, destinationConfig={"services": list("ABCD")})
    assert (code, status) == ("LimitExceededException", 400)


class Raw:
    """Requests that boto3 would not send."""

    def __init__(self, service: TunnelingService) -> None:
        self._service = service

    def send(
        self,
        body: bytes = b"{}",
        target: str = "IoTSecuredTunneling.ListTunnels",
        method: str = "POST",
        path: str = "/",
    ) -> http.client.HTTPResponse:
        environment = self._service.environment
        url = environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"] + path
        request = AWSRequest(method, url, headers={"X-Amz-Target": target}, data=body)
        keys = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        SigV4Auth(keys, "IoTSecuredTunneling", environment["AWS_REGION"]).add_auth(request)
        return self.send_as_it_is(method, path, body, dict(request.headers))

    def send_as_it_is(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        context = ssl.create_default_context(capath=self._service.ca)
        connection = http.client.HTTPSConnection(self._service.api.removeprefix("https://"), context=context)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined] - read before the connection goes
        connection.close()
        return response


@pytest.fixture
def raw(service: TunnelingService) -> Raw:
    return Raw(service)


def test_every_response_has_a_request_id(raw: Raw) -> None:
    for response in (raw.send(), raw.send(body=b"{"), raw.send_as_it_is("GET", "/x", b"", {})):
        assert response.headers["x-amzn-RequestId"]
        assert response.headers["Content-Type"] == "application/x-amz-json-1.1"


@pytest.mark.parametrize(
    ("changes", "status", "kind"),
    [
        ({"target": "IoTSecuredTunneling.MakeCoffee"}, 400, b"UnknownOperationException"),
        ({"target": "Other.ListTunnels"}, 400, b"UnknownOperationException"),
        ({"path": "/other"}, 400, b"UnknownOperationException"),
        ({"method": "GET"}, 400, b"UnknownOperationException"),
        ({"body": b"{"}, 400, b"SerializationException"),
        ({"body": b"[" * 60_000}, 400, b"SerializationException"),
        ({"body": b"x" * 65_537}, 413, b"RequestEntityTooLargeException"),
        ({"body": b'{"maxResults": "many"}'}, 400, b"ValidationException"),
        ({"body": b""}, 200, b"tunnelSummaries"),
    ],
)
def test_malformed_requests(raw: Raw, changes: dict[str, Any], status: int, kind: bytes) -> None:
    response = raw.send(**changes)
    assert response.status == status
    assert kind in response.content  # type: ignore[attr-defined] - set by Raw


def test_an_unsigned_request_is_refused(raw: Raw) -> None:
    response = raw.send_as_it_is("POST", "/", b"{}", {"X-Amz-Target": "IoTSecuredTunneling.ListTunnels"})
    assert response.status == 403
    assert b"MissingAuthenticationTokenException" in response.content  # type: ignore[attr-defined] - set by Raw
