# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.hub.known_accounts import KnownAccounts


def test_what_was_learned_is_known_to_the_next_hub(tmp_path: Path) -> None:
    path = tmp_path / "accounts.jsonl"
    KnownAccounts(path).learn("digest", "account")
    known = KnownAccounts(path)
    assert (dict(known), len(known), known["digest"]) == ({"digest": "account"}, 1, "account")


def test_what_is_known_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "accounts.jsonl"
    known = KnownAccounts(path)
    known.learn("digest", "account")
    path.unlink()
    known.learn("digest", "account")
    assert not path.exists()
    known.learn("digest", "another")
    assert path.read_text() == '["digest", "another"]\n'


@pytest.mark.parametrize("text", ["{}\n", '["one"]\n', "not json\n"])
def test_lines_of_another_kind_are_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accounts.jsonl"
    path.write_text(text + '["digest", "account"]\n')
    assert dict(KnownAccounts(path)) == {"digest": "account"}
