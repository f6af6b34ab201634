# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures made by botocore are accepted; anything changed after signing is not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tunnelproxy.service.api.sigv4 import SERVICE_NAME, SignedRequest, verify
from tunnelproxy.service.errors import ApiError
from tunnelproxy.service.model import AccessKey
from tunnelproxy.service.model import Credentials as AccessKeyPair

KEY, SECRET, REGION = "AKIAEXAMPLEEXAMPLE22", "secret" * 6 + "four", "us-east-1"
BODY = b'{"tunnelId": "abc"}'


def signed(
    *, key: str = KEY, secret: str = SECRET, region: str = REGION, service: str = SERVICE_NAME, **headers: str
) -> SignedRequest:
    """A request as botocore signs it."""
    request = AWSRequest(
        "POST", "https://127.0.0.1:8443/", headers={"X-Amz-Target": "IoTSecuredTunneling.X"}, data=BODY
    )
    for name, value in headers.items():
        request.headers[name.replace("_", "-")] = value
    SigV4Auth(Credentials(key, secret), service, region).add_auth(request)
    received = {name.lower(): value for name, value in request.headers.items()}
    return SignedRequest("POST", "/", {"host": "127.0.0.1:8443", **received}, BODY)


def check(request: SignedRequest, *, after: dt.timedelta = dt.timedelta()) -> str:
    keys = {KEY: AccessKey("name", AccessKeyPair(KEY, SECRET))}
    verified = verify(request, find_key=keys.get, region=REGION, now=dt.datetime.now(dt.timezone.utc) + after)
    return verified.key.credentials.access_key_id


def refusal(request: SignedRequest, *, after: dt.timedelta = dt.timedelta()) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check(request, after=after)
    assert caught.value.status == 403
    return caught.value


def with_header(name: str, value: str) -> Callable[[SignedRequest], SignedRequest]:
    return lambda request: replace(request, headers={**request.headers, name: value})


def test_a_request_signed_by_botocore_is_accepted() -> None:
    assert check(signed()) == KEY


def test_headers_that_botocore_would_not_sign_count_where_a_client_signs_them() -> None:
    request = signed(x_custom="a   b")
    assert check(request) == KEY
    assert refusal(with_header("x-custom", "other")(request)).kind == "InvalidSignatureException"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda request: replace(request, body=b'{"tunnelId": "abd"}'),
        lambda request: replace(request, method="PUT"),
        lambda request: replace(request, target="/other"),
        lambda request: replace(request, target="/?a=b"),
        with_header("host", "elsewhere"),
        with_header("x-amz-target", "IoTSecuredTunneling.CloseTunnel"),
    ],
    ids=["body", "method", "path", "query", "host", "operation"],
)
def test_a_request_changed_after_signing_is_rejected(tamper: Callable[[SignedRequest], SignedRequest]) -> None:
    assert refusal(tamper(signed())).kind == "InvalidSignatureException"


def test_a_wrong_secret_is_refused() -> None:
    assert refusal(signed(secret="x" * 40)).kind == "InvalidSignatureException"


def test_an_unknown_key_is_refused() -> None:
    assert refusal(signed(key="AKIAOTHEROTHEROTHER2")).kind == "UnrecognizedClientException"


def test_no_signature_is_refused() -> None:
    request = replace(signed(), headers={"host": "127.0.0.1:8443"})
    assert refusal(request).kind == "MissingAuthenticationTokenException"


def test_half_a_signature_is_refused() -> None:
    request = with_header("authorization", "AWS4-HMAC-SHA256 Credential=x")(signed())
    assert refusal(request).kind == "IncompleteSignatureException"


def test_another_region_or_service_is_refused() -> None:
    assert "region" in refusal(signed(region="eu-west-1")).message
    assert "service" in refusal(signed(service="iotdata")).message


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_date_more_than_five_minutes_off_is_refused(minutes: int) -> None:
    error = refusal(signed(), after=dt.timedelta(minutes=minutes))
    assert error.kind == "InvalidSignatureException"
    assert error.message.startswith("Signature expired" if minutes > 0 else "Signature not yet current")


@pytest.mark.parametrize("minutes", [-4, 4])
def test_a_clock_that_is_a_little_off_is_tolerated(minutes: int) -> None:
    assert check(signed(), after=dt.timedelta(minutes=minutes)) == KEY


def test_host_and_date_and_every_amz_header_must_be_signed() -> None:
    request = with_header("x-amz-extra", "1")(signed())
    assert "'x-amz-extra' must be a 'SignedHeader'" in refusal(request).message
    for name in ("host;", "x-amz-date;"):
        authorization = signed().headers["authorization"].replace(name, "")
        assert refusal(with_header("authorization", authorization)(signed())).kind == "InvalidSignatureException"


def test_a_hash_of_the_body_that_the_client_names_must_be_the_body_s() -> None:
    assert refusal(signed(x_amz_content_sha256="UNSIGNED-PAYLOAD")).kind == "InvalidSignatureException"


def test_a_signed_session_token_with_a_known_key_is_accepted_and_has_no_effect() -> None:
    request = signed(x_amz_security_token="from STS")
    assert check(request) == KEY
    assert refusal(with_header("x-amz-security-token", "another")(request)).kind == "InvalidSignatureException"
    assert refusal(signed(key="ASIAOTHEROTHEROTHER2", x_amz_security_token="t")).kind == "UnrecognizedClientException"
    assert refusal(signed(secret="x" * 40, x_amz_security_token="t")).kind == "InvalidSignatureException"


def test_a_session_token_that_is_not_signed_is_refused() -> None:
    request = with_header("x-amz-security-token", "put in on the way")(signed())
    assert "'x-amz-security-token' must be a 'SignedHeader'" in refusal(request).message


def test_no_representation_shows_what_was_signed_or_how() -> None:
    request = signed()
    assert "Signature" not in repr(request)
    assert "tunnelId" not in repr(request)
