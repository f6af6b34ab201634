# SPDX-License-Identifier: GPL-3.0-or-later
"""What is a name, and how a host and a port are written and read."""

from __future__ import annotations

import re

import pytest

from tunnelproxy.names import (
    CLIENT_TOKEN,
    REGION,
    SAFE_NAME,
    SERVICE_ID,
    THING_NAME,
    format_host_port,
    split_host_port,
)


@pytest.mark.parametrize("pattern", [THING_NAME, SERVICE_ID, SAFE_NAME])
@pytest.mark.parametrize("name", ["a", "SSH1", "line-3:press_7", "x" * 128])
def test_what_aws_allows_is_a_name(pattern: re.Pattern[str], name: str) -> None:
    assert pattern.match(name)


@pytest.mark.parametrize("pattern", [THING_NAME, SERVICE_ID, SAFE_NAME])
@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "a/b", "ä", "name\n", "#"])
def test_what_aws_does_not_allow_is_no_name(pattern: re.Pattern[str], name: str) -> None:
    assert not pattern.match(name)


def test_a_name_with_a_leading_hyphen_is_not_safe_as_an_argument() -> None:
    assert THING_NAME.match("-oProxyCommand:x")
    assert not SAFE_NAME.match("-oProxyCommand:x")


@pytest.mark.parametrize(
    ("token", "good"), [("a" * 32, True), ("a" * 31, False), ("a" * 129, False), ("_" * 32, False)]
)
def test_a_client_token_has_32_to_128_letters_digits_and_hyphens(token: str, good: bool) -> None:
    assert bool(CLIENT_TOKEN.match(token)) == good


@pytest.mark.parametrize(
    ("region", "good"), [("us-gov-west-1", True), ("eu-central-1", True), ("mars", False), ("us-east-1\n", False)]
)
def test_a_region_is_one_of_aws(region: str, good: bool) -> None:
    assert bool(REGION.match(region)) == good


@pytest.mark.parametrize(
    ("host", "text"), [("example.com", "example.com:22"), ("127.0.0.1", "127.0.0.1:22"), ("::1", "[::1]:22")]
)
def test_only_an_ipv6_address_is_put_in_brackets(host: str, text: str) -> None:
    assert format_host_port(host, 22) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("example.com", ("example.com", None)),
        ("example.com:22", ("example.com", "22")),
        ("example.com:", ("example.com", "")),
        ("example.com:ssh", ("example.com:ssh", None)),
        ("[::1]", ("[::1]", None)),
        ("[::1]:22", ("[::1]", "22")),
        ("fd00::22", ("fd00::22", None)),
        (":22", ("", "22")),
        ("", ("", None)),
    ],
)
def test_a_port_follows_the_last_colon_that_is_not_part_of_an_address(text: str, parts: tuple[str, str | None]) -> None:
    assert split_host_port(text) == parts
