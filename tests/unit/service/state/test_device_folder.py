# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder for a device's password: not one that others could read or change."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.device_folder import DeviceFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pump"
    made.mkdir()
    return made


def refusal(path: Path) -> str:
    with pytest.raises(ServiceError) as caught, DeviceFolder.opened(path):
        pass
    return str(caught.value)


def test_one_that_is_made_is_for_its_owner_only_and_so_are_its_files(tmp_path: Path) -> None:
    with DeviceFolder.opened(tmp_path / "new" / "pump") as made:
        assert not made.has("password")
        made.write("password", b"secret")
        made.write("password", b"another")
        assert made.has("password")
    there = tmp_path / "new" / "pump"
    assert [path.read_bytes() for path in there.iterdir()] == [b"another"]
    assert stat.S_IMODE((there / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(there.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_one_of_another_user_is_refused(folder: Path) -> None:
    shutil.chown(folder, "daemon")
    assert f"the directory {folder} belongs to daemon, who could read the password" in refusal(folder)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_one_that_others_may_write_to_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert f"others may write to the directory {folder}" in refusal(folder)


def test_a_link_to_one_is_refused(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert f"{link} is a symbolic link" in refusal(link)


@pytest.mark.parametrize("name", ["password", "password.partial"])
def test_a_link_that_lies_in_it_is_replaced_and_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (folder / name).symlink_to(elsewhere)
    with DeviceFolder.opened(folder) as opened:
        opened.write("password", b"secret")
    assert elsewhere.read_bytes() == b""
    assert (folder / "password").read_bytes() == b"secret"
    assert not (folder / "password").is_symlink()


def test_a_directory_that_replaces_it_later_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    with DeviceFolder.opened(folder) as opened:
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        opened.write("password", b"secret")
    assert list(folder.iterdir()) == []
    assert (tmp_path / "moved" / "password").exists()
