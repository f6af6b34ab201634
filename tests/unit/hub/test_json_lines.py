# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.hub import json_lines


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A file that cannot be written, for one stands where its folder should be."""
    (tmp_path / "folder").touch()
    return tmp_path / "folder" / "values.jsonl"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "values.jsonl"
    with pytest.raises(FileNotFoundError) as caught:
        json_lines.replace(path, ["1"])
    assert caught.value.filename == str(path)


def test_a_write_that_fails_leaves_the_old_values_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    json_lines.replace(path, ["1"])

    def lines() -> list[str]:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        json_lines.replace(path, (line for line in lines()))
    assert json_lines.read(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_kept_is_kept_as_soon_as_it_can(blocked: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = json_lines.JsonLinesFile(blocked, lambda: ["1", "2"])
    file.save()
    file.retry()
    assert file.error is not None
    # Once, although it was tried twice.
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"cannot write {blocked}: " in caplog.text
    blocked.parent.unlink()
    file.retry()
    assert (file.error, json_lines.read(blocked)) == (None, [1, 2])


def test_what_is_kept_is_not_written_again(tmp_path: Path) -> None:
    file = json_lines.JsonLinesFile(tmp_path / "values.jsonl", lambda: ["1"])
    file.save()
    file.path.unlink()
    file.retry()
    assert not file.path.exists()


def test_a_line_that_cannot_be_read_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "values.jsonl"
    path.write_bytes(b'1\n{"half": \n\xff\n[2]\n')
    assert json_lines.read(path) == [1, [2]]
    assert caplog.text.count(f"skipping a line of {path}") == 2


def test_a_file_that_cannot_be_read_counts_as_empty_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert json_lines.read(tmp_path / "gone") == []
    assert caplog.text == ""
    assert json_lines.read(tmp_path) == []
    assert f"{tmp_path} cannot be read: Is a directory" in caplog.text
