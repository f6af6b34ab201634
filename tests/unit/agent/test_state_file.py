# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent remembers of its tunnels."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tunnelproxy.agent.notification import Notification
from tunnelproxy.agent.state_file import SavedTunnel, SavedTunnels

TUNNEL = SavedTunnel(Notification("AQTOKEN", "us-east-1", ("SSH1", "HTTP1")), "client-token", 1_700_000_000.5)


@pytest.fixture
def saved(tmp_path: Path) -> SavedTunnels:
    made = SavedTunnels(tmp_path / "state")
    made.prepare()
    return made


def test_tunnels_are_remembered(saved: SavedTunnels) -> None:
    saved.write([TUNNEL])
    assert saved.read() == [TUNNEL]
    saved.write([])
    assert saved.read() == []


def test_nobody_else_can_read_them(saved: SavedTunnels, tmp_path: Path) -> None:
    saved.write([TUNNEL])
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    [file] = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_before_the_first_run_there_are_none(saved: SavedTunnels) -> None:
    assert saved.read() == []


def test_without_a_directory_nothing_is_kept() -> None:
    saved = SavedTunnels(None)
    saved.prepare()
    saved.write([TUNNEL])
    assert saved.read() == []


WHOLE = '{"token": "AQTOKEN", "region": "", "services": [], "client_token": "c", "since": %s}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "7", "[7]", "[{}]", '[{"token": "AQTOKEN", "services": 7}]'),
        *(f"[{WHOLE % since}]" for since in ("1e400", "NaN", "-1", "253402300800")),
    ],
)
def test_a_damaged_file_is_as_good_as_none(
    saved: SavedTunnels, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state" / "tunnels.json").write_text(content)
    assert saved.read() == []
    assert "cannot read the tunnels of the last run" in caplog.text
    assert "AQTOKEN" not in caplog.text


def test_a_directory_that_cannot_be_made_is_done_without_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "file").touch()
    saved = SavedTunnels(tmp_path / "file" / "state")
    saved.prepare()
    assert "state_dir: cannot create" in caplog.text
    assert not saved.write([TUNNEL])
    assert not saved.write([TUNNEL])
    assert caplog.text.count("cannot save the tunnels") == 1
    (tmp_path / "file").unlink()
    assert saved.write([TUNNEL])
    assert "saved in" in caplog.text
    assert saved.read() == [TUNNEL]


def test_the_tokens_are_not_shown() -> None:
    assert "AQTOKEN" not in repr(TUNNEL)
    assert "client-token" not in repr(TUNNEL)
