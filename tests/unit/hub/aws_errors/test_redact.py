# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from peers.aws_failures import ACCESS_KEY, SECRET_KEY, TOKEN
from tunnelproxy.hub.aws_errors.redact import redact


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"key {ACCESS_KEY} is bad", "key *** is bad"),
        (f"secret {SECRET_KEY}", "secret ***"),
        (f"token {TOKEN}", "token ***"),
        ("proxy http://user:password@proxy:3128", "proxy http://***proxy:3128"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.payload.signature", "jwt ***"),
        ("arn:aws:iam::123456789012:role/AReservedSSO_Administrator0Access1For2Everybody3In4All", None),
        ("\x1b[31mred\x1b[0m\n and\tspread. ", "red and spread"),
    ],
)
def test_what_may_be_a_secret_goes_and_the_rest_is_one_line(text: str, safe: str | None) -> None:
    assert redact(text, {}) == (text if safe is None else safe)


def test_what_the_environment_holds_is_a_secret_whatever_it_looks_like() -> None:
    assert redact("the token is plain-text", {"AWS_SESSION_TOKEN": "plain-text"}) == "the token is ***"
    assert redact("a", {"AWS_SESSION_TOKEN": "a"}) == "a"


def test_the_end_is_kept_for_programs_give_the_reason_last() -> None:
    assert (
        redact("x" * 500 + " the reason", {}, 12) == "…the reason" or redact("ab the reason", {}, 11) == "…the reason"
    )
