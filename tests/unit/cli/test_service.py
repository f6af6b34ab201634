# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service``: run the service, and print how to reach it."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.cli.main import main
from tunnelproxy.service.state.directory import Endpoints, StateDirectory
from tunnelproxy.service.state.store import Store


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """The state of a service that has run."""
    made = StateDirectory(tmp_path / "state")
    made.create()
    Store(made.database).close()
    made.write_endpoints(Endpoints("example.com", 1, 2))
    return made


def test_run_announces_its_ports_and_ends_with_sigterm(
    tmp_path: Path, manager: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = manager.stop_when_ready()
    assert main(["service", "run", "--state-dir", str(tmp_path / "state"), "-v", "0"]) == 0
    ending.join()
    ready = capsys.readouterr().out
    assert re.fullmatch(r"ready api=https://127\.0\.0\.1:\d+ data=127\.0\.0\.1:\d+ ca=\S+/ca\n", ready)


def test_run_writes_its_log_to_a_file(tmp_path: Path, manager: Any) -> None:
    ending = manager.stop_when_ready()
    log = tmp_path / "service.log"
    assert main(["service", "run", "--state-dir", str(tmp_path / "state"), "--log-file", str(log), "-v", "5"]) == 0
    ending.join()
    assert log.exists()


def test_run_with_options_that_contradict_each_other_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--mqtt-port", "0", "--mqtt-broker", "mqtts://joe@b"]
    assert main(["service", "run", "--state-dir", str(tmp_path / "state"), *options]) == 1
    assert capsys.readouterr().err.startswith("tunnelproxy: error: --mqtt-port and --mqtt-broker exclude each other")


@pytest.mark.parametrize("port", ["x", "65536", "-1"])
def test_a_port_is_a_number_that_a_port_can_have(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["service", "run", f"--api-port={port}"])
    assert ended.value.code == 1
    assert f"'{port}' is not a port number from 0 to 65535" in capsys.readouterr().err


def test_env_prints_the_variables_for_a_shell(state: StateDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "env", "--state-dir", str(state.path)]) == 0
    assert "export AWS_ENDPOINT_URL_IOTSECURETUNNELING='https://example.com:1'\n" in capsys.readouterr().out


def test_a_service_that_never_ran_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "env", "--state-dir", str(tmp_path / "nowhere")]) == 1
    assert "there is no tunneling service in" in capsys.readouterr().err


def test_the_state_directory_has_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["service", "env"]) == 1
    assert f"{tmp_path}/tunnelproxy/service" in capsys.readouterr().err


def test_a_database_that_cannot_be_used_is_named(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("tunnelproxy.service.client_environment.client_environment", broken)
    assert main(["service", "env", "--state-dir", str(state.path)]) == 1
    said = f"the service's database in {state.path} cannot be used: disk I/O error\n"
    assert capsys.readouterr().err == f"tunnelproxy: error: {said}"


def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(13, os.strerror(13), "/some/file")

    monkeypatch.setattr("tunnelproxy.service.server.serve", broken)
    assert main(["service", "run", "--state-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "tunnelproxy: error: cannot use /some/file: Permission denied\n"


def test_a_library_that_is_missing_is_named(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")

    monkeypatch.setattr("tunnelproxy.service.client_environment.client_environment", broken)
    assert main(["service", "env", "--state-dir", str(state.path)]) == 1
    assert "the Python package nothing is missing, which the tunneling service needs" in capsys.readouterr().err
