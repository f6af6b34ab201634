# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service key``."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from tunnelproxy.cli.main import main


def key(folder: Path, *arguments: str) -> int:
    command, *more = arguments
    return main(["service", "key", command, "--state-dir", str(folder), *more])


def test_a_new_key_is_printed_as_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert key(tmp_path, "add", "ci") == 0
    profile = ConfigParser()
    profile.read_string(capsys.readouterr().out)
    assert set(profile["ci"]) == {"aws_access_key_id", "aws_secret_access_key"}


def test_keys_are_listed_with_their_rights_and_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key(tmp_path, "add", "ci")
    profile = ConfigParser()
    profile.read_string(capsys.readouterr().out)
    key(tmp_path, "add", "viewer", "--read-only", "--things", "line-1-*", "--things", "line-2-*")
    capsys.readouterr()
    assert key(tmp_path, "list") == 0
    listed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in listed.splitlines()}
    assert rows["NAME"].split() == ["NAME", "ACCESS", "KEY", "ID", "USE", "THINGS"]
    assert rows["ci"].endswith("  full       all")
    assert rows["viewer"].endswith("  read only  line-1-*, line-2-*")
    assert profile["ci"]["aws_access_key_id"] in rows["ci"]
    assert profile["ci"]["aws_secret_access_key"] not in listed


def test_a_removed_key_is_listed_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key(tmp_path, "add", "ci")
    assert key(tmp_path, "remove", "ci") == 0
    capsys.readouterr()
    key(tmp_path, "list")
    assert "ci " not in capsys.readouterr().out


@pytest.mark.parametrize("command", [("add", "a b"), ("remove", "nobody")])
def test_what_cannot_be_done_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, str]
) -> None:
    assert key(tmp_path, *command) == 1
    assert capsys.readouterr().err.startswith("tunnelproxy: error: ")
