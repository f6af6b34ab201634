# SPDX-License-Identifier: GPL-3.0-or-later
"""Long options by their beginnings."""

from __future__ import annotations

import pytest

from tunnelproxy.cli.abbreviations import TOKENS, expand

NAMES = ["access-token", "client-token", "capath", "log-format", "local-bind-address", "verbose", "version"]
REFERENCE = [name for name in NAMES if name != "log-format"]


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("--vers", "--version"),
        ("--acc=T", "--access-token=T"),
        # The reference does not have --log-format, so that this means one option there and here.
        ("--lo", "--local-bind-address"),
        ("--log", "--log-format"),
    ],
)
def test_a_beginning_stands_for_the_only_option_of_the_reference(given: str, full: str) -> None:
    name = given.partition("=")[0]
    assert expand([given, "value"], NAMES, REFERENCE) == ([full, "value"], [name])


@pytest.mark.parametrize("given", ["--ver", "--c", "--nothing", "--version", "--", "-v", "value"])
def test_everything_else_is_left_for_the_parser(given: str) -> None:
    assert expand([given], NAMES, REFERENCE) == ([given], [])


@pytest.mark.parametrize(("name", "option"), [("a", "access-token"), ("cl", "client-token"), ("c", None)])
def test_the_beginnings_of_secret_options_are_known_without_a_parser(name: str, option: str | None) -> None:
    assert TOKENS.get(name) == option
