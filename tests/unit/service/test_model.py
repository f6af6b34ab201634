# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens, key pairs, ARNs, and what an access key covers."""

from __future__ import annotations

import re

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.model import (
    AccessKey,
    Identity,
    Mode,
    check_key_name,
    digest,
    new_access_token,
    new_key_pair,
)

IDENTITY = Identity("123456789012", "eu-central-1")


def test_an_arn_leads_back_to_its_tunnel() -> None:
    arn = IDENTITY.arn("t-1")
    assert arn == "arn:aws:iot:eu-central-1:123456789012:tunnel/t-1"
    assert IDENTITY.tunnel_id(arn) == "t-1"
    assert IDENTITY.thing_arn("pump") == "arn:aws:iot:eu-central-1:123456789012:thing/pump"


@pytest.mark.parametrize(
    "arn",
    ["", "t-1", "arn:aws:iot:eu-central-1:123456789012:tunnel/", "arn:aws:iot:us-east-1:123456789012:tunnel/t-1"],
)
def test_an_arn_of_something_else_leads_to_no_tunnel(arn: str) -> None:
    assert IDENTITY.tunnel_id(arn) is None


def test_tokens_differ_and_do_not_look_like_options() -> None:
    tokens = {new_access_token() for _ in range(100)}
    assert len({digest(token) for token in tokens}) == 100
    assert all(token[0].isalpha() for token in tokens)


def test_key_pairs_have_the_form_of_those_of_aws_and_hide_their_secret() -> None:
    pair = new_key_pair()
    assert re.fullmatch(r"AKIA[A-Z2-7]{16}", pair.access_key_id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", pair.secret_access_key)
    assert pair.secret_access_key not in repr(pair)


@pytest.mark.parametrize(
    ("things", "thing", "is_covered"),
    [
        ((), None, True),
        ((), "pump", True),
        (("pump",), None, False),
        (("line-3-*", "pump"), "line-3-press", True),
        (("line-3-*",), "LINE-3-press", False),
    ],
)
def test_a_key_covers_the_things_of_its_patterns(things: tuple[str, ...], thing: str | None, is_covered: bool) -> None:
    assert AccessKey("ci", new_key_pair(), things=things).covers(thing) is is_covered


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "ü", "a]\n"])
def test_a_name_that_would_break_an_arn_or_a_profile_is_rejected(name: str) -> None:
    with pytest.raises(ServiceError, match="cannot be the name of an access key"):
        check_key_name(name)


def test_each_end_has_the_other() -> None:
    assert [mode.other for mode in Mode] == [Mode.DESTINATION, Mode.SOURCE]
