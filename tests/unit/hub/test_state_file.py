# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tunnelproxy.hub import json_lines, state_file
from tunnelproxy.hub.account import UNKNOWN_ACCOUNT, Account
from tunnelproxy.hub.tunnel_record import DataPlaneSettings, TunnelRecord

RECORD = TunnelRecord(
    thing="thing1",
    tunnel_id="id1",
    region="us-east-1",
    source_token="the-source-token",
    account=Account("aws", "123456789012", "us-east-1", "https://127.0.0.1:8443"),
    owner="alice@jump1",
    services=("SSH1", "HTTP1"),
    data_plane=DataPlaneSettings("127.0.0.1:9443", "/ca", {"https_proxy": "http://user:the-password@127.0.0.1:3128"}),
    ports={"HTTP1": 4711},
    any_host=("HTTP1",),
)


def save(path: Path, records: list[TunnelRecord]) -> None:
    json_lines.replace(path, state_file.lines(records))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tunnels.jsonl"
    save(path, [RECORD])
    assert state_file.load(path) == [RECORD]


def test_what_an_earlier_release_saved_is_loaded_without_an_account_and_without_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "tunnels.jsonl"
    aws = {"AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_REGION": "us-east-1"}
    saved = {
        "thing": "thing1",
        "tunnel_id": "id1",
        "region": "us-east-1",
        "source_token": "the-source-token",
        "services": ["SSH1", "HTTP1"],
        "endpoint": "127.0.0.1:9443",
        "capath": "/ca",
        "expires_at": None,
        "client_token": "the-client-token",
        "ports": {"HTTP1": 4711},
        "chosen_ports": {},
        "aws": aws,
        "awaited_since": None,
    }
    path.write_text(json.dumps(saved) + "\n")
    (record,) = state_file.load(path)
    assert (record.account, record.data_plane) == (UNKNOWN_ACCOUNT, DataPlaneSettings("127.0.0.1:9443", "/ca"))
    assert (record.client_token, record.ports) == ("the-client-token", {"HTTP1": 4711})
    save(path, [record])
    assert "secret-key" not in path.read_text()
    assert state_file.load(path) == [record]


def test_the_file_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "tunnels.jsonl"
    save(path, [RECORD])
    assert path.stat().st_mode & 0o777 == 0o600


def test_tunnels_whose_life_is_over_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tunnels.jsonl"
    save(path, [replace(RECORD, expires_at=time.time() - 1), replace(RECORD, thing="thing2")])
    assert [record.thing for record in state_file.load(path)] == ["thing2"]


@pytest.mark.parametrize("text", ["", "not json", "{}", '[{"thing": "x"}]', '[{"thing": "x", "services": 1}]'])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tunnels.jsonl"
    path.write_text(text)
    assert state_file.load(path) == []


def test_a_tunnel_without_a_time_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "tunnels.jsonl"
    save(path, [replace(RECORD, expires_at="soon"), replace(RECORD, thing="thing2")])  # type: ignore[arg-type]
    assert [record.thing for record in state_file.load(path)] == ["thing2"]


def test_secrets_are_not_in_the_record_as_it_prints() -> None:
    assert "the-source-token" not in repr(RECORD)
    assert "the-password" not in repr(RECORD)
    assert RECORD.client_token not in repr(RECORD)


def test_only_what_is_new_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    dumps = json.dumps

    def counting(value: dict[str, object]) -> str:
        encoded.append(value["thing"])
        return dumps(value)

    monkeypatch.setattr(json, "dumps", counting)
    records = [replace(RECORD, thing=name) for name in "abc"]
    save(tmp_path / "tunnels.jsonl", records)
    save(tmp_path / "tunnels.jsonl", [*records, replace(RECORD, thing="d")])
    assert encoded == ["a", "b", "c", "d"]
