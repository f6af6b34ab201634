# SPDX-License-Identifier: GPL-3.0-or-later
"""Control API requests signed by hand that boto3 would not send: with other dates, and replayed."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .service import TunnelingService

__all__ = ["now", "post", "send", "sign"]


def now() -> dt.datetime:
    """The time, with its zone."""
    return dt.datetime.now(dt.timezone.utc)


def sign(
    url: str, operation: str, *, key_id: str, secret: str, signed_at: dt.datetime, body: bytes = b"{}"
) -> dict[str, str]:
    """The headers of a signed request."""
    request = AWSRequest("POST", url, headers={"X-Amz-Target": f"IoTSecuredTunneling.{operation}"}, data=body)
    signer = SigV4Auth(Credentials(key_id, secret), "IoTSecuredTunneling", "us-east-1")
    date = signed_at.strftime("%Y%m%dT%H%M%SZ")
    request.headers["X-Amz-Date"] = request.context["timestamp"] = date
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    names = signer.signed_headers(signer.headers_to_sign(request))
    scope = f"{key_id}/{signer.credential_scope(request)}"
    request.headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}"
    )
    return dict(request.headers)


def post(
    url: str, headers: dict[str, str], body: bytes = b"{}", context: ssl.SSLContext | None = None
) -> tuple[int, dict[str, Any]]:
    """Send a request unchanged; return the status and the decoded answer."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    else:
        connection = http.client.HTTPSConnection(parts.netloc, timeout=20, context=context)
    try:
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def send(service: TunnelingService, operation: str, *, signed_at: dt.datetime) -> tuple[int, str, str]:
    """Send a request, signed with the service's first key; return the status, and the name and message of an error."""
    environment = service.environment
    headers = sign(
        service.api,
        operation,
        key_id=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        signed_at=signed_at,
    )
    context = ssl.create_default_context(capath=service.ca)
    status, answer = post(service.api, headers, context=context)
    return status, answer.get("__type", ""), answer.get("message", "")
