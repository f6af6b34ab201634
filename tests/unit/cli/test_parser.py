# SPDX-License-Identifier: GPL-3.0-or-later
"""How a bad invocation ends, and numbers of seconds."""

from __future__ import annotations

import argparse

import pytest

from tunnelproxy.cli.parser import Parser, seconds


def test_an_error_is_one_line_with_its_place_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="tunnelproxy", place="config.ini: ")
    parser.add_argument("--verbose", type=int)
    for arguments, words in ((["--verbose", "x"], "argument --verbose: invalid int value"), (["--other"], "--other")):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(arguments)
        said = capsys.readouterr().err
        assert caught.value.code == 1
        assert said.startswith("tunnelproxy: error: config.ini: ")
        assert words in said
        assert said.count("\n") == 1


def test_options_are_not_abbreviated() -> None:
    parser = Parser(prog="tunnelproxy")
    parser.add_argument("--verbose")
    with pytest.raises(SystemExit):
        parser.parse_args(["--verb", "1"])


@pytest.mark.parametrize(("text", "expected"), [("0.5", 0.5), ("10", 10.0), ("1e1", 10.0)])
def test_seconds_are_read(text: str, expected: float) -> None:
    assert seconds(0.5, 10)(text) == expected


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "0.4", "10.1", "-1"])
def test_other_seconds_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number of seconds from 0\.5 to 10"):
        seconds(0.5, 10)(text)
