# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a service that others rely on."""

from __future__ import annotations

import argparse
import logging
from contextlib import closing
from pathlib import Path

import pytest

from tunnelproxy.cli.parser import Parser
from tunnelproxy.cli.service_options import add_options, log_file, settings
from tunnelproxy.log_file import DEFAULT_KEPT, DEFAULT_SIZE
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.limits import DEFAULT_LIMITS
from tunnelproxy.service.state.certificates import ProvidedCertificate


def parse(*arguments: str) -> argparse.Namespace:
    parser = Parser(prog="tunnelproxy")
    add_options(parser, int)
    return parser.parse_args(arguments)


def parsed(*arguments: str) -> dict[str, object]:
    return settings(parse(*arguments))


def test_the_defaults_are_those_of_the_service() -> None:
    found = parsed()
    assert found["limits"] == DEFAULT_LIMITS
    assert (found["public_name"], found["certificate"], found["metrics_port"]) == (None, None, None)
    assert found["region"] is None
    assert (found["audit_size"], found["audit_files"]) == (DEFAULT_SIZE, DEFAULT_KEPT)


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "us-gov-west-1", "ap-southeast-12"])
def test_a_region_is_one_of_aws_s_form(region: str) -> None:
    assert parsed("--region", region)["region"] == region


@pytest.mark.parametrize(
    "text", ["", "here", "EU-central-1", "eu-central", "eu-central-1\n", "eu-central-1/x", "eu_central_1"]
)
def test_other_regions_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--region={text}")
    assert "is not the name of an AWS region, as in eu-central-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("16384", 16384), ("800K", 800_000), ("1m", 1_000_000), ("2G", 2_000_000_000)]
)
def test_bandwidths_are_read(text: str, expected: int) -> None:
    limits = parsed("--bandwidth-per-tunnel", text)["limits"]
    assert getattr(limits, "bandwidth") == expected  # noqa: B009  it is an object to the type checker


@pytest.mark.parametrize("text", ["", "x", "16383", "1.5M", "-1", "1KB", "800 K"])
def test_other_bandwidths_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--bandwidth-per-tunnel={text}")
    assert "is not a number of bytes per second, as in 800K, of at least 16384" in capsys.readouterr().err


def test_a_certificate_comes_with_its_key() -> None:
    found = parsed("--certificate", "a.pem", "--key", "b.pem")
    assert found["certificate"] == ProvidedCertificate(Path("a.pem"), Path("b.pem"))
    for option in ("--certificate", "--key"):
        with pytest.raises(ServiceError, match="belong together"):
            parsed(option, "a.pem")


def test_sizes_of_logs_are_read() -> None:
    assert parsed("--log-size", "20M")["audit_size"] == 20_000_000


def test_other_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--log-size=large")
    assert "is not a number of bytes, as in 100M; 0 is no limit" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("2500", 2500)])
def test_limits_are_numbers(text: str, expected: int) -> None:
    limits = parsed("--max-tunnels", text)["limits"]
    assert getattr(limits, "tunnels") == expected  # noqa: B009  it is an object to the type checker


@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
def test_other_limits_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--max-tunnels={text}")
    assert f"{text!r} is not a number; 0 stands for no limit" in capsys.readouterr().err


def test_without_a_log_file_the_log_goes_to_standard_error() -> None:
    assert log_file(parse()) is None


def test_a_log_file_has_the_size_and_number_of_files_that_were_given(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = log_file(parse("--log-file", str(path), "--log-size", "100K", "--log-files", "1"))
    assert handler is not None
    with closing(handler):
        for _ in range(6):
            handler.emit(logging.makeLogRecord({"msg": "x" * 40_000}))
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "log.1"]


def test_a_log_file_that_fails_later_is_reported_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    handler = log_file(parse("--log-file", str(path)))
    assert handler is not None
    with closing(handler):
        path.unlink()
        path.mkdir()
        handler.reopen()
    reported = capsys.readouterr().err
    assert reported.startswith("tunnelproxy: cannot start a new log file: ")
    assert str(path) in reported


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "log"
    with pytest.raises(ServiceError, match=f"cannot write the log {path}: Not a directory; give --log-file another"):
        log_file(parse("--log-file", str(path)))
