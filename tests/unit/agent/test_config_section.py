# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a mapping key by key; each error names its key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.agent.config_section import Section
from tunnelproxy.errors import ConfigurationError


def section(content: object, folder: Path = Path("/etc/agent")) -> Section:
    return Section(content, "", "agent.yml", folder)


def test_what_stands_there_is_read() -> None:
    found = section({"a": "text", "b": 7, "c": [1, "x"], "d": True, "e": {"f": "g"}, "none": None})
    assert (found.text("a"), found.text("b"), found.text("none"), found.text("z")) == ("text", "7", "", "")
    assert (found.texts("c"), found.texts("none"), found.texts("z")) == (["1", "x"], None, None)
    assert (found.number("b", 1, 0, 9), found.number("z", 1, 0, 9)) == (7, 1)
    assert (found.flag("d", False), found.flag("z", False)) == (True, False)
    assert list(found) == ["a", "b", "c", "d", "e", "none"]
    assert found.section("e").text("f") == "g"
    assert list(found.section("z")) == []


def test_paths_start_from_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joe")
    found = section({"a": "x.pem", "b": "/x.pem", "c": "~/x.pem"})
    paths = [found.path(key) for key in ("a", "b", "c", "z")]
    assert paths == ["/etc/agent/x.pem", "/x.pem", "/home/joe/x.pem", ""]


@pytest.mark.parametrize(
    ("content", "read", "error"),
    [
        ([], list, "agent.yml: must be a mapping: lines like 'key: value'"),
        ({7: 1}, list, "agent.yml: must be a mapping: lines like 'key: value'"),
        ({}, lambda found: found.text("a", required=True), "agent.yml: a: missing"),
        ({"a": True}, lambda found: found.text("a"), "agent.yml: a: must be a single string or number"),
        ({"a": "x"}, lambda found: found.texts("a"), "agent.yml: a: must be a list of strings"),
        ({"a": [True]}, lambda found: found.texts("a"), "agent.yml: a: must be a list of strings"),
        ({"a": 10}, lambda found: found.number("a", 1, 0, 9), "agent.yml: a: must be a number from 0 to 9"),
        ({"a": True}, lambda found: found.number("a", 1, 0, 9), "agent.yml: a: must be a number from 0 to 9"),
        ({"a": 1}, lambda found: found.flag("a", True), "agent.yml: a: must be true or false"),
        ({"a": "none"}, lambda found: found.read("a"), "agent.yml: a: cannot read /etc/agent/none: No such file"),
        ({"a": 1}, lambda found: found.section("a"), "agent.yml: a: must be a mapping: lines"),
        ({"a": {"b": []}}, lambda found: found.section("a").text("b"), "agent.yml: a.b: must be a single string"),
    ],
)
def test_an_error_names_the_key(content: object, read: Callable[[Section], Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(error)):
        read(section(content))


def test_files_are_read_and_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("word\n")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    found = section({"a": "a", "b": "b"}, tmp_path)
    assert found.read("a") == "word\n"
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        found.read("b")


def test_a_key_that_nobody_asked_for_is_refused() -> None:
    found = section({"a": 1, "b": 2})
    found.text("a")
    found.text("c")
    with pytest.raises(ConfigurationError, match=r"agent\.yml: b: unknown key; valid keys: a, c"):
        found.refuse_others()
    found.text("b")
    found.refuse_others()
