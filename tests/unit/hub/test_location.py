# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the hub's folder is, and who may use it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tunnelproxy.hub import location


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    return path


def test_the_folder_is_made_for_this_user_alone(folder: Path) -> None:
    assert location.directory() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(location.HubError, match=r"nobody else may enter \(mode 0700\)"):
        location.directory()


def test_a_folder_behind_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(location.HubError, match="must be a folder that belongs to you"):
        location.directory()


@pytest.mark.parametrize(
    ("given", "meant"), [("hub", "work/hub"), ("./a/../hub", "work/hub"), ("~/hub", "home/hub"), ("~", "home")]
)
def test_a_path_is_one_in_the_working_or_the_home_directory(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "home"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", given)
    assert location.directory() == str(tmp_path / meant)


def test_a_relative_path_without_a_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", "hub")
    with pytest.raises(location.HubError, match="the working directory is gone"):
        location.directory()


def test_something_that_is_no_folder_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(location.HubError, match="must be a folder that belongs to you"):
        location.directory()


class TestDefault:
    """Without IOTOPS_TUNNEL_DIR."""

    @pytest.fixture(autouse=True)
    def runtime(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("IOTOPS_TUNNEL_DIR")
        path = tmp_path / "runtime"
        path.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
        # Of somebody who has no other folder on this machine.
        monkeypatch.setattr(location, "_DEFAULTS", (str(tmp_path / "run-{user}"), str(tmp_path / "tmp-{user}")))
        return path

    def test_it_is_in_the_runtime_directory(self, runtime: Path) -> None:
        assert location.directory() == str(runtime / "iotops-tunnel")

    @pytest.mark.parametrize("mode", [0o755, 0o710])
    def test_a_runtime_directory_for_others_is_none(self, runtime: Path, tmp_path: Path, mode: int) -> None:
        runtime.chmod(mode)
        assert location.directory() == str(tmp_path / f"tmp-{os.getuid()}")

    def test_one_that_is_relative_or_not_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in ("runtime", "/nowhere"):
            monkeypatch.setenv("XDG_RUNTIME_DIR", path)
            assert location.directory() == str(tmp_path / f"tmp-{os.getuid()}")

    def test_a_process_without_a_session_finds_that_of_its_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
        run = tmp_path / f"run-{os.getuid()}"
        run.mkdir(mode=0o700)
        assert location.directory() == str(run / "iotops-tunnel")

    def test_one_that_is_there_already_is_kept_to(self, tmp_path: Path) -> None:
        there = tmp_path / f"tmp-{os.getuid()}"
        there.mkdir(mode=0o700)
        assert location.directory() == str(there)

    def test_one_that_somebody_else_may_enter_is_not(self, runtime: Path, tmp_path: Path) -> None:
        (tmp_path / f"tmp-{os.getuid()}").mkdir(mode=0o755)
        assert location.directory() == str(runtime / "iotops-tunnel")


class TestWords:
    """What is said of a file that cannot be used."""

    @pytest.mark.parametrize(
        ("number", "remedy"),
        [
            (errno.ENOSPC, "free some space there, or set IOTOPS_TUNNEL_DIR to another folder"),
            (errno.EROFS, "make it writable for you, or set IOTOPS_TUNNEL_DIR to another folder"),
        ],
    )
    def test_a_file_that_cannot_be_written_is_named_with_a_remedy(self, number: int, remedy: str) -> None:
        error = OSError(number, os.strerror(number), "/hub/hub.lock")
        assert location.cannot_write("/file", error) == f"cannot write /file: {os.strerror(number)}: {remedy}"
        assert location.describe_os_error(error) == f"cannot write /hub/hub.lock: {os.strerror(number)}: {remedy}"

    def test_a_limit_of_open_files_is_named_without_a_file(self) -> None:
        said = location.describe_os_error(OSError(errno.EMFILE, "Too many open files"))
        assert said == "Too many open files: raise the limit of open files (ulimit -n)"

    def test_an_error_without_a_file_is_told_as_it_is(self) -> None:
        assert location.describe_os_error(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"

    def test_a_user_who_is_not_there_has_no_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IOTOPS_TUNNEL_DIR", "~nobody-of-this-name/hub")
        with pytest.raises(location.HubError, match="there is no such user; give an absolute path"):
            location.directory()

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "file" / "hub"))
        with pytest.raises(
            location.HubError, match=r"cannot create the hub's folder .*: Not a directory: make it writab"
        ):
            location.directory()

    def test_a_path_that_is_too_long_for_a_socket_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / ("x" * 100)))
        with pytest.raises(location.HubError, match=r"too long for a Unix socket in it: .* to one of 98 bytes at most"):
            location.directory()

    def test_the_log_is_in_the_folder(self, folder: Path) -> None:
        assert location.log_path() == str(folder / "hub.log")
