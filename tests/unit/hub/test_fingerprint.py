# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path

from tunnelproxy.hub.fingerprint import fingerprint


def test_it_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config"
    assert fingerprint(str(path)) == ""
    path.write_text("a")
    before = fingerprint(str(path))
    assert before == fingerprint(str(path)) != ""
    path.write_text("ab")
    assert fingerprint(str(path)) != before


def test_it_changes_with_a_file_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "token.json"
    path.write_text("a")
    before = fingerprint(str(tmp_path))
    os.utime(path, (1, 1))
    assert fingerprint(str(tmp_path)) != before


def test_a_file_that_was_replaced_is_another(tmp_path: Path) -> None:
    path, other = tmp_path / "config", tmp_path / "other"
    for each in (path, other):
        each.write_text("a")
        os.utime(each, (1, 1))
    before = fingerprint(str(path))
    other.replace(path)
    assert fingerprint(str(path)) != before
