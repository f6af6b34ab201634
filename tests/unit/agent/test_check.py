# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``agent check`` finds in files. What a broker says, the integration tests show."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tunnelproxy.agent.check import find_faults
from tunnelproxy.cli.main import main

NOBODY = 65534

GOOD = "thing: pump\nbroker: {host: mqtt.example.com}\nservices: {SSH1: 22}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.yml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_there_may_be_none(tmp_path: Path) -> None:
    config, faults = find_faults(write(tmp_path, GOOD + "state_dir: a/b/c\n"), {})
    assert config is not None
    assert faults == []
    # It looks, and makes nothing.
    assert not (tmp_path / "a").exists()


def test_a_state_directory_that_cannot_be_made_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config, faults = find_faults(write(tmp_path, GOOD + "state_dir: file/state\n"), {})
    assert config is not None
    assert faults == [f"state_dir: {tmp_path}/file is not a directory"]
    _, faults = find_faults(write(tmp_path, GOOD), {"STATE_DIRECTORY": str(tmp_path / "file")})
    assert faults == [f"state_dir: {tmp_path}/file is not a directory"]


def test_a_state_directory_that_this_user_may_not_look_at_is_one() -> None:
    user = os.geteuid()
    if user != 0:
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o700)
        config = write(folder, GOOD + "state_dir: closed/state\n")
        os.chown(config, NOBODY, -1)
        os.seteuid(NOBODY)
        try:
            _, faults = find_faults(config, {})
        finally:
            os.seteuid(user)
    assert faults == [f"state_dir: cannot access {folder}/closed/state: Permission denied"]


def test_a_secret_that_everybody_can_read_is_one(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("com}", "com, user: u, password: HIDDEN}"))
    path.chmod(0o644)
    config, [fault] = find_faults(path, {})
    assert config is not None
    assert f"chmod 600 {path}" in fault
    assert "HIDDEN" not in fault


def test_each_gets_a_line_and_the_status_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "thing: a/b\nbroker: {host: x, port: 0}\nservices: {SSH1: 22}\nfoo: 1\n")
    assert main(["agent", "check", "--config", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.removeprefix(f"tunnelproxy: error: {path}: ").partition(":")[0] for line in said.err.splitlines()] == [
        "thing",
        "broker.port",
        "foo",
    ]


def test_where_there_is_none_the_status_is_0_whatever_there_is_to_warn_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD.replace("com}", "com, tls: false}"))
    assert main(["agent", "check", "--config", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}: no problems found\n"
    assert said.err.startswith("tunnelproxy: warning: ")
    assert "tokens can be read on the network" in said.err
