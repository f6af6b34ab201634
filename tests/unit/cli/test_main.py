# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a command line leads."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator

import pytest

from tunnelproxy import __version__
from tunnelproxy.cli import main as module
from tunnelproxy.cli.main import main, run


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """run() is for a process: it changes what the others inherit."""
    mask, limits = os.umask(0o022), resource.getrlimit(resource.RLIMIT_CORE)
    yield
    os.umask(mask)
    assert resource.getrlimit(resource.RLIMIT_CORE)[1] <= limits[1] or limits[1] == resource.RLIM_INFINITY


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_printed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    assert capsys.readouterr().out == f"tunnelproxy {__version__}\n"


@pytest.mark.parametrize("command", module.COMMANDS)
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tunnelproxy {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "command"), [("agnt", "agent"), ("services", "service"), ("hubb", "hub")])
def test_a_misspelt_command_is_named_with_the_one_that_was_meant(
    word: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word, "run"])
    assert ended.value.code == 1
    expected = f"tunnelproxy: error: there is no command {word}; did you mean {command}? (see tunnelproxy --help)\n"
    assert capsys.readouterr().err == expected


def test_a_first_word_that_resembles_no_command_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["AQGAAXjQy3secret"]) == 1
    assert "secret" not in capsys.readouterr().err


def test_everything_else_is_for_the_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "Source or destination proxy of an AWS IoT secure tunnel." in capsys.readouterr().out


def test_a_library_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_without_h11(arguments: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'protobuf'", name="google.protobuf")

    monkeypatch.setattr(module, "_run", run_without_h11)
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("tunnelproxy: error: the Python package protobuf ")


def test_a_module_of_its_own_that_is_missing_is_a_fault_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_broken(arguments: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'tunnelproxy.x'", name="tunnelproxy.x")

    monkeypatch.setattr(module, "_run", run_broken)
    with pytest.raises(ModuleNotFoundError):
        main([])


def test_the_console_script_ends_the_process_with_the_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tunnelproxy", "--version"])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0
    assert capfd.readouterr().out == f"tunnelproxy {__version__}\n"
