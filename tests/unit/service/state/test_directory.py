# SPDX-License-Identifier: GPL-3.0-or-later
"""The state directory is private, has one owner at a time, and remembers where the service listens."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from tunnelproxy.files import replace_file
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.directory import Endpoints, StateDirectory, default_path


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path / "deep" / "state")
    directory.create()
    return directory


def test_it_is_made_for_the_owner_only(state: StateDirectory) -> None:
    state.path.chmod(0o755)
    state.create()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_a_place_where_it_cannot_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="--state-dir"):
        StateDirectory(tmp_path / "file" / "state").create()


def test_one_service_at_a_time(state: StateDirectory) -> None:
    with state.locked(), pytest.raises(ServiceError, match="already runs"), StateDirectory(state.path).locked():
        pass
    with StateDirectory(state.path).locked():
        pass


def test_endpoints_are_remembered(state: StateDirectory) -> None:
    assert state.read_endpoints() is None
    endpoints = Endpoints("127.0.0.1", 8443, 9443)
    state.write_endpoints(endpoints)
    assert state.read_endpoints() == endpoints
    assert (endpoints.api, endpoints.data) == ("https://127.0.0.1:8443", "127.0.0.1:9443")


def test_an_ipv6_address_is_written_in_brackets() -> None:
    endpoints = Endpoints("::1", 1, 2)
    assert (endpoints.api, endpoints.data) == ("https://[::1]:1", "[::1]:2")


def test_damaged_endpoints_are_reported(state: StateDirectory) -> None:
    (state.path / "endpoints.json").write_text("{}")
    with pytest.raises(ServiceError, match="damaged"):
        state.read_endpoints()


@pytest.mark.parametrize(
    ("variable", "below"),
    [("/var/lib/x", Path("/var/lib/x")), ("relative", Path("~/.local/state")), ("", Path("~/.local/state"))],
)
def test_the_default_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, variable: str, below: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", variable)
    assert default_path() == below.expanduser() / "tunnelproxy" / "service"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_root_writes_as_the_owner_of_the_directory() -> None:
    # Not below tmp_path, which nobody else can enter.
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, "daemon")
        with StateDirectory(Path(folder)).entered():
            replace_file(Path(folder) / "file", b"")
        assert (Path(folder) / "file").owner() == "daemon"
    assert os.geteuid() == 0
