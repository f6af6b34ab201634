# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a proxy, from the command line and from a file. What they mean, test_invocation.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.cli.options import read_options
from tunnelproxy.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "proxy.ini"


def test_only_what_is_given_is_there() -> None:
    options = read_options(["-r", "us-east-1", "-k"], {})
    assert dict(options.given) == {"region": "us-east-1", "no-ssl-host-verify": True}
    assert (options.get("mode"), options.get("mode", "src"), options.strict) == (None, "src", False)


def test_secret_options_that_were_taken_off_the_command_line_are_put_back() -> None:
    assert read_options([], {"access-token": "T"}).get("access-token") == "T"


def test_a_file_gives_what_the_command_line_does_not(file: Path) -> None:
    file.write_text("region = us-east-1  # a comment\nno-ssl-host-verify = no\nverbose = 5\n\n")
    options = read_options(["-v", "6", "--config", str(file)], {})
    assert (options.get("verbose"), options.get("region")) == (6, "us-east-1")
    assert "no-ssl-host-verify" not in options.given
    assert options.label("region") == f"region in {file}"
    assert options.label("verbose") == "-v/--verbose"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("region", "line 1 is not like 'name = value'"),
        ("region = a\nregion = b", "region appears twice"),
        ("nothing = 1", "'nothing' is not an option that a file may contain"),
        ("help = yes", "'help' is not an option that a file may contain"),
        ("[a]\nregion = x", "'a.region' is not an option that a file may contain"),
        ("strict = perhaps", "strict must be true or false, not 'perhaps'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        read_options(["--config", str(file)], {})


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--config: cannot read .*: No such file or directory"):
        read_options(["--config", str(file)], {})
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is not a text file"):
        read_options(["--config", str(file)], {})


def test_what_the_reference_passes_over_is_refused_with_strict(file: Path) -> None:
    file.write_text("[section]\n")
    assert len(read_options(["word", "--config", str(file)], {}).amiss) == 2
    with pytest.raises(ConfigurationError, match="there is an extra word"):
        read_options(["word", "--strict"], {})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--acces-token=secret"], "unrecognized arguments: --acces-token"),
        (["-v", "x"], "'x' is not a number from 0 to 6"),
        (["--strict", "--regi", "x"], "unrecognized arguments: --regi"),
    ],
)
def test_a_bad_option_ends_the_process_without_its_value(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(arguments, {})
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert problem in said
    assert "secret" not in said
