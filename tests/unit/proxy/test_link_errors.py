# SPDX-License-Identifier: GPL-3.0-or-later
"""The sentences for a link that could not be made or was lost."""

from __future__ import annotations

import ssl

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus, InvalidUpgrade
from websockets.frames import Close
from websockets.http11 import Response

from tunnelproxy.errors import TunnelClosed, TunnelRefused
from tunnelproxy.net.certificate_dates import NOT_YET_VALID
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.http_proxy import HttpProxyError
from tunnelproxy.net.route import CertificateRefused, Route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.link_errors import (
    LinkLost,
    LinkTaken,
    TokenRevoked,
    connect_errors_explained,
    explain_close,
    explain_rejection,
)


def explained(error: Exception) -> LinkLost:
    route = Route(Endpoint("data.example", 443), ssl.create_default_context())
    with pytest.raises(LinkLost) as caught, connect_errors_explained(route):
        raise error
    return caught.value


def refused(code: int, message: str) -> CertificateRefused:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return CertificateRefused(error, None)


def rejected(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> TunnelRefused:
    response = Response(status, "Words", Headers(headers or {}), body)
    explained = explain_rejection(InvalidStatus(response), response, Mode.SOURCE, "")
    assert isinstance(explained, TunnelRefused)
    return explained


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Tunnel closed", TunnelClosed),
        ("Tunnel expired", TunnelClosed),
        ("Replaced by a newer connection", LinkTaken),
        ("Access token revoked", TokenRevoked),
        ("Service is stopping", LinkLost),
        ("", LinkLost),
    ],
)
def test_the_reason_of_a_close_tells_whether_to_reconnect(reason: str, kind: type[Exception]) -> None:
    assert type(explain_close(Close(1000, reason), Mode.SOURCE)) is kind


def test_the_code_and_reason_of_a_close_are_told() -> None:
    assert str(explain_close(Close(1001, "Service is stopping"), Mode.SOURCE)) == (
        "the service closed the connection (1001 Service is stopping)"
    )
    assert str(explain_close(Close(1011, ""), Mode.SOURCE)) == "the service closed the connection (1011)"
    assert "connected as the destination" in str(explain_close(Close(1008, "Replaced"), Mode.DESTINATION))


@pytest.mark.parametrize(
    ("headers", "body", "cause", "words"),
    [
        ({"x-iotops-cause": "token-used"}, b"", "token-used", "was used before"),
        ({"x-iotops-cause": "bad-request"}, b"", "bad-request", "does not accept the request"),
        ({"x-iotops-cause": "of a later version"}, b"Tunnel closed", "tunnel-closed", "is closed or has expired"),
        ({}, b"The access token was previously used", "token-used", "was used before"),
        ({}, b"Invalid local-proxy-mode", "wrong-mode", "use the source access token here"),
        ({}, b"The tunnel has expired", "tunnel-closed", "open another"),
        ({}, b"Invalid access token", "token-unknown", "does not know the access token"),
        ({}, b"no", "refused", "is this the region"),
    ],
)
def test_a_rejection_has_a_cause_and_a_remedy(headers: dict[str, str], body: bytes, cause: str, words: str) -> None:
    error = rejected(403, headers, body)
    assert (error.cause, error.status) == (cause, 403)
    assert words in str(error)
    assert (f"(it says: {body.decode()})" in str(error)) is bool(body)
    assert error.answer == body.decode()


def test_the_service_s_name_for_the_connection_is_told() -> None:
    response = Response(403, "Forbidden", Headers(), b"")
    error = explain_rejection(InvalidStatus(response), response, Mode.SOURCE, "abc123")
    assert str(error).endswith("[channel-id abc123]")


def test_a_server_error_may_pass() -> None:
    response = Response(503, "Service Unavailable", Headers(), b"")
    error = explain_rejection(InvalidStatus(response), response, Mode.SOURCE, "")
    assert isinstance(error, LinkLost)
    assert str(error) == "the service answers 503 Service Unavailable"
    assert not error.permanent


def test_a_server_that_is_not_a_tunneling_service_stays_so() -> None:
    response = Response(101, "Switching Protocols", Headers(), b"")
    error = explain_rejection(InvalidUpgrade("Upgrade", None), response, Mode.SOURCE, "")
    assert isinstance(error, LinkLost)
    assert error.permanent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "is the tunneling service running there?"),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot reach data.example:443: "),
    ],
)
def test_a_failed_connection_names_the_endpoint_and_may_succeed_later(error: OSError, words: str) -> None:
    assert words in str(explained(error))
    assert not explained(error).permanent


@pytest.mark.parametrize("permanent", [True, False])
def test_an_error_of_the_proxy_on_the_way_stays_what_it_is(permanent: bool) -> None:
    error = explained(HttpProxyError("the HTTP proxy refuses", permanent=permanent))
    assert (str(error), error.permanent) == ("the HTTP proxy refuses", permanent)


def test_the_remedy_depends_on_why_a_certificate_is_not_accepted() -> None:
    unknown = explained(refused(20, "unable to get local issuer certificate."))
    assert "cannot be verified (unable to get local issuer certificate): pass its CA" in str(unknown)
    assert unknown.permanent
    other_name = explained(refused(62, "hostname mismatch"))
    assert "(it is not valid for 'data.example'): connect by a name that the certificate has" in str(other_name)
    assert not explained(refused(NOT_YET_VALID, "certificate is not yet valid")).permanent
