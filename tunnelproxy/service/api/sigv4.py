# SPDX-License-Identifier: Apache-2.0
"""Verifies the signature of a request to the control API, like AWS.

botocore's own signer computes the canonical request and its signature, over exactly the headers that the client says it
signed. Source: "AWS Signature Version 4 for API requests", IAM User Guide.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials as BotocoreCredentials

from ..errors import ApiError
from ..model import AccessKey

__all__ = ["REGISTRY_NAME", "SERVICE_NAME", "SignedRequest", "Verified", "claimed_key_id", "verify"]

SERVICE_NAME = "IoTSecuredTunneling"
"""The signing name in botocore's ``iotsecuretunneling`` model."""

REGISTRY_NAME = "iot"
"""The signing name in botocore's ``iot`` model."""

_MAX_SKEW = dt.timedelta(minutes=5)
_DATE = "%Y%m%dT%H%M%SZ"
_MAX_KEY_ID = 128
_ALGORITHM = "AWS4-HMAC-SHA256"
# Printable ASCII except the separators.
_PART = r"[!-+\-.0-~]+"
_AUTHORIZATION = re.compile(
    rf"{_ALGORITHM}\s+Credential=(?P<key>{_PART})/(?P<day>[0-9]{{8}})/(?P<region>{_PART})/(?P<service>{_PART})"
    r"/aws4_request,\s*SignedHeaders=(?P<headers>[a-z0-9;-]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class SignedRequest:
    """A request as received.

    Attributes:
        target: path and query, not decoded.
        headers: by lower-case name; the values of a repeated header are joined by commas.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Verified:
    """The key that signed a request, the API that it was signed for, and the signature."""

    key: AccessKey
    service: str
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class _Claim:
    """The content of the ``Authorization`` header."""

    access_key_id: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str = field(repr=False)


def verify(
    request: SignedRequest, *, find_key: Callable[[str], AccessKey | None], region: str, now: dt.datetime
) -> Verified:
    """Verify that a request was signed recently, for this service, with a known key.

    A session token must be signed like every ``x-amz-`` header, and is otherwise ignored: clients whose keys come from
    STS, SSO or an instance's metadata always send one. What a key may do depends only on the key.

    Args:
        request: the request.
        find_key: returns the access key with an ID, or None.
        region: the region for which the request must be signed.
        now: the time, with its time zone.

    Raises:
        ApiError: it was not; with AWS's name, HTTP status and message for the case.
    """
    claim = _read_claim(request.headers)
    _check_target(request.target)
    _check_signed_headers(claim, request.headers)
    date = request.headers["x-amz-date"]
    _check_scope(claim, region, date)
    key = find_key(claim.access_key_id)
    if key is None:
        raise _unrecognized("The security token included in the request is invalid.")
    if not hmac.compare_digest(_signature(request, claim, key), claim.signature) or not _body_is_signed(request):
        raise _invalid_signature(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details."
        )
    # After the signature: an unauthenticated date means nothing.
    _check_date(date, now)
    return Verified(key, claim.service, bytes.fromhex(claim.signature))


def claimed_key_id(headers: Mapping[str, str]) -> str | None:
    """The access key ID in a request, for the audit log; nothing is verified."""
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", "").strip())
    return None if found is None else found["key"][:_MAX_KEY_ID]


def _read_claim(headers: Mapping[str, str]) -> _Claim:
    text = headers.get("authorization")
    if not text:
        raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
    found = _AUTHORIZATION.fullmatch(text.strip())
    if found is None:
        raise ApiError(
            "IncompleteSignatureException",
            f"Authorization header requires '{_ALGORITHM}' with 'Credential', 'SignedHeaders' and 'Signature'.",
            403,
        )
    return _Claim(
        found["key"],
        found["day"],
        found["region"],
        found["service"],
        tuple(found["headers"].split(";")),
        found["signature"],
    )


def _check_target(target: str) -> None:
    """Reject a request that cannot be signed: its path is missing or not percent-encoded."""
    if not target.startswith("/") or not target.isascii():
        raise ApiError("InvalidRequestException", "The request's path must begin with / and be percent-encoded.", 400)


def _check_signed_headers(claim: _Claim, headers: Mapping[str, str]) -> None:
    must = {"host", "x-amz-date"} | {name for name in headers if name.startswith("x-amz-")}
    unsigned = sorted(must - set(claim.signed_headers))
    if unsigned:
        raise _invalid_signature(f"'{unsigned[0]}' must be a 'SignedHeader' in the AWS Authorization.")
    for name in claim.signed_headers:
        if name not in headers or not headers[name].isascii():
            raise _invalid_signature(f"The signed header '{name}' is not in the request, or is not ASCII.")


def _check_scope(claim: _Claim, region: str, date: str) -> None:
    if claim.region != region:
        raise _invalid_signature(f"Credential should be scoped to a valid region: '{region}'.")
    if claim.service not in (SERVICE_NAME, REGISTRY_NAME):
        raise _invalid_signature(f"Credential should be scoped to correct service: '{SERVICE_NAME}'.")
    if claim.day != date[:8]:
        raise _invalid_signature(
            f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
            f"'{claim.day}' != '{date[:8]}', from '{date[:16]}'."
        )


def _check_date(date: str, now: dt.datetime) -> None:
    try:
        signed_at = dt.datetime.strptime(date, _DATE).replace(tzinfo=dt.timezone.utc)
    except ValueError:
        raise _invalid_signature(f"Date must be in ISO-8601 'basic format'. Got '{date[:32]}'.") from None
    if signed_at < now - _MAX_SKEW:
        raise _invalid_signature(
            f"Signature expired: {date} is now earlier than {now - _MAX_SKEW:{_DATE}} ({now:{_DATE}} - 5 min.)"
        )
    if signed_at > now + _MAX_SKEW:
        raise _invalid_signature(
            f"Signature not yet current: {date} is still later than {now + _MAX_SKEW:{_DATE}} ({now:{_DATE}} + 5 min.)"
        )


def _body_is_signed(request: SignedRequest) -> bool:
    """Whether the body matches the hash that the client sent, if any, which botocore's signer does not check."""
    named = request.headers.get("x-amz-content-sha256")
    return named is None or hmac.compare_digest(named, hashlib.sha256(request.body).hexdigest())


def _signature(request: SignedRequest, claim: _Claim, key: AccessKey) -> str:
    signer = _Signer(BotocoreCredentials(claim.access_key_id, key.credentials.secret_access_key), claim)
    again = AWSRequest(
        method=request.method,
        # The host is signed as a header; the one in the URL is not used.
        url=f"https://service.invalid{request.target}",
        headers={name: request.headers[name] for name in claim.signed_headers},
        data=request.body,
    )
    again.context["timestamp"] = request.headers["x-amz-date"]
    return str(signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again))


class _Signer(SigV4Auth):
    """botocore's signer, restricted to the headers that the client has signed, instead of its own list."""

    def __init__(self, credentials: BotocoreCredentials, claim: _Claim) -> None:
        super().__init__(credentials, claim.service, claim.region)
        self._names: Iterable[str] = claim.signed_headers

    def headers_to_sign(self, request: AWSRequest) -> Any:
        chosen = HTTPHeaders()
        for name in self._names:
            chosen[name] = str(request.headers[name])
        return chosen


def _unrecognized(message: str) -> ApiError:
    return ApiError("UnrecognizedClientException", message, 403)


def _invalid_signature(message: str) -> ApiError:
    return ApiError("InvalidSignatureException", message, 403)
