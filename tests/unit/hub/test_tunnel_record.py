# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a tunnel, and how its data plane is reached."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from tunnelproxy.errors import ConfigurationError
from tunnelproxy.hub.account import Account, TunnelKey
from tunnelproxy.hub.tunnel_record import DataPlaneSettings, TunnelRecord

ACCOUNT = Account("aws", "123456789012", "eu-central-1")
RECORD = TunnelRecord("pump", "id", "eu-central-1", "token", account=ACCOUNT)


class TestDataPlaneSettings:
    def test_they_are_what_the_environment_says(self) -> None:
        environment = {
            "AWSIOT_TUNNEL_ENDPOINT": "127.0.0.1:9443",
            "AWSIOT_TUNNEL_CAPATH": "ca",
            "https_proxy": "http://proxy:3128",
            "NO_PROXY": "",
            "AWS_SECRET_ACCESS_KEY": "s",
        }
        found = DataPlaneSettings.from_environment(environment, "/home/ops")
        assert found == DataPlaneSettings("127.0.0.1:9443", "/home/ops/ca", {"https_proxy": "http://proxy:3128"})

    def test_without_any_it_is_aws_s_in_the_region(self) -> None:
        settings = DataPlaneSettings.from_environment({}, "/")
        assert settings == DataPlaneSettings()
        assert "data.tunneling.iot.eu-central-1.amazonaws.com" in str(settings.route("eu-central-1"))

    def test_an_endpoint_that_is_none_is_refused(self) -> None:
        with pytest.raises(ConfigurationError):
            DataPlaneSettings("not an endpoint").route("eu-central-1")

    def test_a_web_proxy_s_password_is_not_in_its_print(self) -> None:
        assert "secret" not in repr(DataPlaneSettings(web_proxy={"https_proxy": "http://u:secret@proxy"}))


def test_what_is_saved_says_way_as_earlier_releases_do() -> None:
    record = replace(RECORD, data_plane=DataPlaneSettings("127.0.0.1:9443", "/ca", {"no_proxy": "*"}))
    saved = json.loads(record.saved)
    assert saved["way"] == {"endpoint": "127.0.0.1:9443", "capath": "/ca", "web_proxy": {"no_proxy": "*"}}
    assert "data_plane" not in saved
    assert TunnelRecord.from_json(saved) == record


def test_it_is_known_by_its_account_and_thing() -> None:
    assert RECORD.key == TunnelKey(ACCOUNT, "pump")
    assert RECORD.name == "id in 123456789012/eu-central-1"
    assert RECORD.log_fields == {"thing": "pump", "tunnel": "id", "account": "123456789012/eu-central-1"}
    assert TunnelRecord("pump", "id", "eu-central-1", "token").name == "id"


@pytest.mark.parametrize(
    ("version", "expected", "known"),
    [
        (None, False, {"expects_v1": False}),
        (None, True, {"expects_v1": True}),
        ("V1", True, {"expects_v1": True}),
        ("V3", False, {"destination_version": "V3"}),
    ],
)
def test_what_was_found_of_a_device_is_a_start_for_the_next_tunnel(
    version: str | None, expected: bool, known: dict[str, object]
) -> None:
    assert replace(RECORD, destination_version=version, expects_v1=expected).known_of_device == known


def test_a_tunnel_expires_when_its_time_is_over() -> None:
    now = time.time()
    assert not RECORD.expires_within(1e9)
    assert not replace(RECORD, expires_at=now + 60).expires_within(30)
    assert replace(RECORD, expires_at=now + 60).expires_within(90)
    assert replace(RECORD, expires_at=now - 1).expires_within(0)
