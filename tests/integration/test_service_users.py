# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service`` with several users: root, the service's user, and others, who have no access."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.process import REPOSITORY, wait_for
from peers.service import TunnelingService
from peers.thing import ThingClient
from peers.troubleshooting import assert_documented
from peers.users import as_user

USER, OTHER = "games", "daemon"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

# All in one process: starting Python takes longer than everything else.
_RUN_ALL = """
import contextlib, io, json, sys
from tunnelproxy.cli.main import main
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main(["service", *arguments])
    print(json.dumps([status, said.getvalue()]))
"""


def commands(state_dir: Path) -> list[list[str]]:
    """All commands of ``tunnelproxy service``."""
    return [
        [*command, "--state-dir", str(state_dir)]
        for command in (
            ["run"],
            ["env"],
            ["key", "list"],
            ["key", "add", "ci"],
            ["key", "remove", "ci"],
            ["add-thing", "gate", "--output", "/nonexistent/gate"],
            ["describe-thing", "gate", "--type", "gates"],
            ["remove-thing", "gate"],
        )
    ]


def complaints(state_dir: Path, user: str | None = None) -> dict[str, str]:
    """The output of each command, run as this user."""
    asked = commands(state_dir)
    return {" ".join(command[:2]): said for command, said in zip(asked, refusals(asked, user))}


def refusals(asked: list[list[str]], user: str | None = None) -> list[str]:
    """The errors of commands that are refused with one line each."""
    done = subprocess.run(
        [*([] if user is None else as_user(user)), sys.executable, "-c", _RUN_ALL, json.dumps(asked)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for status, said in answers:
        assert status == 1, said
        assert said.startswith("tunnelproxy: error: "), said
        assert said.count("\n") == 1, said
    return [said.removeprefix("tunnelproxy: error: ").rstrip("\n") for _, said in answers]


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService("--mqtt-port", "0", user=USER) as running:
        yield running


def test_commands_run_by_root_leave_the_files_to_the_service(service: TunnelingService, tmp_path: Path) -> None:
    service.add_thing("pump", tmp_path / "pump")
    subprocess.run(
        [sys.executable, "-m", "tunnelproxy", "service", "key", "add", "ci", "--state-dir", service.state_dir],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    assert {path.owner() for path in service.state_dir.rglob("*")} == {USER}
    assert {path.owner() for path in (tmp_path / "pump").iterdir()} == {"root"}

    service.stop()
    service.start()
    pump = ThingClient("pump", tmp_path / "pump", int(service.mqtt.rpartition(":")[2]))
    wait_for(pump.is_let_in, "the thing is let in")


def test_no_password_is_written_where_another_user_can_read_it(service: TunnelingService, tmp_path: Path) -> None:
    for name in ("theirs", "open"):
        (tmp_path / name).mkdir()
    shutil.chown(tmp_path / "theirs", OTHER)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir()

    where = ["theirs", "open", "link"]
    asked = [
        ["add-thing", "gate", "--output", str(tmp_path / name), "--state-dir", str(service.state_dir)] for name in where
    ]
    theirs, open_to_others, link = refusals(asked)
    assert_documented("Service: device folder of another user", theirs)
    assert_documented("Service: device folder open to others", open_to_others)
    assert_documented("Service: device folder a link", link)
    assert [path for name in where for path in (tmp_path / name).iterdir()] == []
    # Nothing was enrolled either.
    service.add_thing("gate", tmp_path / "own")


def test_the_error_for_another_user_names_the_owner(service: TunnelingService) -> None:
    service.state_dir.parent.chmod(0o755)
    for command, said in complaints(service.state_dir, OTHER).items():
        assert_documented("Service: state directory of another user", said)
        assert f"{service.state_dir} belongs to another user: run this as {USER} " in said, command


def test_a_read_only_state_directory_is_reported(tmp_path: Path) -> None:
    for part in (tmp_path, *list(tmp_path.parents)[:2]):
        part.chmod(0o755)
    # In a folder of theirs that contains nothing that they may write.
    (tmp_path / "state").mkdir(mode=0o500)
    said = complaints(tmp_path / "state" / "new", OTHER)
    assert all(str(tmp_path / "state" / "new") in each for each in said.values()), said


def test_an_invalid_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "service.db").write_bytes(b"no database" * 1000)
    (tmp_path / "endpoints.json").write_text('{"host": "127.0.0.1", "api_port": 1, "data_port": 2}')
    (tmp_path / "broker.json").write_text("not JSON")
    said = complaints(tmp_path)
    about_the_broker = said.pop("add-thing gate")
    assert f"{tmp_path}/broker.json is damaged" in about_the_broker
    assert all(str(tmp_path / "service.db") in each for each in said.values()), said
