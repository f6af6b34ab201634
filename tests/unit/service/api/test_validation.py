# SPDX-License-Identifier: GPL-3.0-or-later
"""Input against botocore's model, which botocore's clients check only in part."""

from __future__ import annotations

from typing import Any

import pytest

from tunnelproxy.service.api.http import service_model
from tunnelproxy.service.api.validation import validate
from tunnelproxy.service.errors import ApiError

MODEL = service_model()


def check(operation: str, params: object) -> dict[str, Any]:
    shape = MODEL.operation_model(operation).input_shape
    assert shape is not None
    return validate(params, shape)


def faults(operation: str, params: object) -> str:
    with pytest.raises(ApiError) as caught:
        check(operation, params)
    assert (caught.value.kind, caught.value.status) == ("ValidationException", 400)
    return caught.value.message


def test_a_full_request_passes_unchanged() -> None:
    params = {
        "description": "Größe: 3 µm",
        "tags": [{"key": "a b/ö", "value": ""}],
        "destinationConfig": {"thingName": "pump:1", "services": ["SSH1", "HTTP1"]},
        "timeoutConfig": {"maxLifetimeTimeoutMinutes": 720},
    }
    assert check("OpenTunnel", params) == params


def test_null_and_unknown_members_are_left_out() -> None:
    assert check("ListTunnels", {"thingName": None, "colour": "red", "maxResults": 5}) == {"maxResults": 5}


@pytest.mark.parametrize(
    ("operation", "params", "said"),
    [
        ("DescribeTunnel", {}, "Value null at 'tunnelId' failed to satisfy constraint: Member must not be null"),
        ("OpenTunnel", {"destinationConfig": {}}, "Value null at 'destinationConfig.services'"),
        ("OpenTunnel", {"timeoutConfig": {"maxLifetimeTimeoutMinutes": 721}}, "value less than or equal to 720"),
        ("OpenTunnel", {"timeoutConfig": {"maxLifetimeTimeoutMinutes": 0}}, "value greater than or equal to 1"),
        ("OpenTunnel", {"timeoutConfig": {"maxLifetimeTimeoutMinutes": True}}, "must be of type integer"),
        ("OpenTunnel", {"timeoutConfig": {"maxLifetimeTimeoutMinutes": "9"}}, "must be of type integer"),
        ("OpenTunnel", {"destinationConfig": {"services": []}}, "length greater than or equal to 1"),
        ("OpenTunnel", {"destinationConfig": {"services": ["a b"]}}, "'destinationConfig.services.1.member'"),
        ("OpenTunnel", {"destinationConfig": {"services": ["x" * 129]}}, "length less than or equal to 128"),
        ("OpenTunnel", {"destinationConfig": {"services": ["SSH\n"]}}, "regular expression pattern"),
        ("OpenTunnel", {"description": "bell \x07"}, "regular expression pattern"),
        ("OpenTunnel", {"tags": [{"key": "semi;colon", "value": ""}]}, "'tags.1.member.key'"),
        ("OpenTunnel", {"tags": [{"key": "k"}]}, "Value null at 'tags.1.member.value'"),
        ("CloseTunnel", {"tunnelId": "a", "delete": 1}, "must be of type boolean"),
        (
            "RotateTunnelAccessToken",
            {"tunnelId": "a", "clientMode": "BOTH"},
            "Member must satisfy enum value set: [SOURCE, DESTINATION, ALL]",
        ),
        ("ListTunnels", {"maxResults": 101}, "less than or equal to 100"),
        ("ListTunnels", [], "must be of type structure"),
    ],
)
def test_input_that_violates_the_model_is_rejected_in_awss_words(operation: str, params: object, said: str) -> None:
    message = faults(operation, params)
    assert message.startswith("1 validation error detected: ")
    assert said in message


def test_all_faults_are_told_at_once() -> None:
    message = faults("RotateTunnelAccessToken", {"tunnelId": "ö"})
    assert message.startswith("2 validation errors detected: ")


def test_a_long_value_is_not_sent_back_whole() -> None:
    assert len(faults("DescribeTunnel", {"tunnelId": "x" * 10_000})) < 500
