# SPDX-License-Identifier: GPL-3.0-or-later
"""``--settings-json`` and ``--export-default-settings``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.cli.proxy_settings import ProxySettings, export_defaults, read_settings
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.proxy.reconnect import RetryPolicy


def settings(folder: Path, tree: Any) -> ProxySettings:
    path = folder / "settings.json"
    path.write_text(json.dumps({"tunneling": {"proxy": tree}}))
    return read_settings(path)


def test_what_is_not_set_keeps_its_default(tmp_path: Path) -> None:
    assert settings(tmp_path, {}) == ProxySettings()


def test_the_exported_ones_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "exported.json"
    export_defaults(path)
    read, default = read_settings(path), ProxySettings()
    assert {**vars(read), "endpoint_format": None, "region_endpoints": {}} == vars(default)
    for region in ("us-east-1", "eu-central-1", "cn-north-1", "cn-northwest-1"):
        assert read.endpoint_of(region) == default.endpoint_of(region)


def test_they_are_exported_in_the_references_form(tmp_path: Path) -> None:
    path = tmp_path / "exported.json"
    export_defaults(path)
    exported = json.loads(path.read_text())["tunneling"]["proxy"]
    assert exported["default_bind_address"] == "localhost"
    assert exported["tcp"] == {
        "connection_retry_count": "5",
        "connection_retry_delay_ms": "2500",
        "max_active_connections": "128",
    }
    assert exported["websocket"]["ping_period_ms"] == "20000"
    assert exported["websocket"]["connect_retry_count"] == "-1"
    assert exported["websocket"]["reconnect_on_data_error"] == "true"


@pytest.mark.parametrize(
    ("tree", "changed"),
    [
        ({"default_bind_address": "127.0.0.2"}, {"bind_address": "127.0.0.2"}),
        ({"tcp": {"connection_retry_count": "3"}}, {"connect_attempts": 3}),
        ({"tcp": {"connection_retry_count": -1}}, {"connect_attempts": None}),
        ({"tcp": {"connection_retry_delay_ms": "100"}}, {"connect_pause": 0.1}),
        ({"tcp": {"max_active_connections": 3}}, {"max_connections": 3}),
        ({"websocket": {"ping_period_ms": "5000"}}, {"ping_seconds": 5.0}),
        ({"websocket": {"retry_delay_ms": "500"}}, {"retry_policy": RetryPolicy(first_delay=0.5)}),
        ({"websocket": {"connect_retry_count": "2"}}, {"retry_policy": RetryPolicy(attempts=2)}),
        ({"websocket": {"reconnect_on_data_error": "false"}}, {"retry_policy": RetryPolicy(reconnect=False)}),
        ({"websocket": {"reconnect_on_data_error": False}}, {"retry_policy": RetryPolicy(reconnect=False)}),
    ],
)
def test_each_setting(tmp_path: Path, tree: Any, changed: dict[str, Any]) -> None:
    assert settings(tmp_path, tree) == ProxySettings(**changed)


def test_endpoints_of_regions(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        {"endpoint_format": "data.%s.example.org", "region_endpoint_overrides": {"us-west-2": "west.example.org:8444"}},
    )
    assert str(found.endpoint_of("us-east-1")) == "data.us-east-1.example.org:443"
    assert str(found.endpoint_of("us-west-2")) == "west.example.org:8444"


def test_the_references_own_export_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = settings(
            tmp_path,
            {
                "default_bind_address": "localhost",
                "message": {
                    "data_length_size": "2",
                    "data_frame_max_size": "65538",
                    "max_payload_size": "64512",
                    "max_size": "65536",
                },
                "tcp": {
                    "connection_retry_count": "5",
                    "connection_retry_delay_ms": "2500",
                    "read_buffer_size": "131076",
                    "write_buffer_size": "131076",
                    "max_active_connections": "128",
                },
                "websocket": {
                    "ping_period_ms": "20000",
                    "retry_delay_ms": "2500",
                    "connect_retry_count": "-1",
                    "reconnect_on_data_error": "true",
                    "subprotocol": "aws.iot.securetunneling-3.0",
                    "max_frame_size": "131076",
                    "write_buffer_size": "131076",
                    "read_buffer_size": "131076",
                },
                "region_endpoint_overrides": {"cn-north-1": "data.tunneling.iot.cn-north-1.amazonaws.com.cn"},
            },
        )
    assert found.retry_policy == RetryPolicy(first_delay=2.5)
    assert "these settings of the reference are ignored: message.data_length_size" in caplog.text


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"speed": 5}, "there is no setting tunneling.proxy.speed; --export-default-settings writes"),
        ({"tcp": {"connection_retry_count": "0"}}, "tcp.connection_retry_count is '0', but should be a whole number"),
        ({"tcp": {"connection_retry_count": "-2"}}, "is '-2', but should be a whole number from 1, or -1"),
        ({"tcp": {"connection_retry_delay_ms": "1.5"}}, "is '1.5', but should be a whole number of milliseconds"),
        ({"tcp": {"max_active_connections": "many"}}, "is 'many', but should be a whole number from 1"),
        ({"tcp": {"max_active_connections": None}}, "is 'null', but should be"),
        ({"tcp": {"max_active_connections": [1]}}, r"is '\[1\]', but should be"),
        ({"websocket": {"ping_period_ms": 0}}, "is '0', but should be a whole number of milliseconds"),
        ({"websocket": {"retry_delay_ms": -5}}, "is '-5', but should be a whole number of milliseconds"),
        ({"websocket": {"reconnect_on_data_error": "maybe"}}, "is 'maybe', but should be true or false"),
        ({"endpoint_format": "host"}, "is 'host', but should be a host's name with %s for the region"),
        ({"default_bind_address": ""}, "is '', but should be the address of a host"),
    ],
)
def test_values_that_do_not_do(tmp_path: Path, tree: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings(tmp_path, tree)
    assert str(caught.value).startswith(f"--settings-json: {tmp_path / 'settings.json'}: ")


def test_who_does_not_mind_gets_the_defaults_for_what_is_amiss(tmp_path: Path) -> None:
    amiss: list[str] = []
    path = tmp_path / "settings.json"
    tree = {"speed": 5, "tcp": {"max_active_connections": "many", "connection_retry_count": 3}}
    path.write_text(json.dumps({"tunneling": {"proxy": tree}}))
    found = read_settings(path, lambda problem, instead: amiss.append(f"{problem}; {instead}"))
    assert found == ProxySettings(connect_attempts=3)
    assert [text.rpartition("; ")[2] for text in amiss] == ["it is ignored", "the default is used"]


@pytest.mark.parametrize("text", ["{", "[]", "5", "\xff"])
def test_files_that_hold_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=rf"--settings-json: {path} (is not JSON|is not a JSON object)"):
        read_settings(path)


def test_a_key_beside_the_root_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"tunneled": {"proxy": {"tcp": {"max_active_connections": 5}}}}')
    with pytest.raises(ConfigurationError, match=r"there is no setting tunneled\.proxy\.tcp.max_active_connections"):
        read_settings(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--export-default-settings: cannot write .*: No such file"):
        export_defaults(tmp_path / "nowhere" / "exported.json")
