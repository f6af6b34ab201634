# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a service that others rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.cli.parser import Parser
from tunnelproxy.cli.service_options import add_options, settings
from tunnelproxy.log_file import DEFAULT_KEPT, DEFAULT_SIZE
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.limits import DEFAULT_LIMITS
from tunnelproxy.service.state.certificates import ProvidedCertificate


def parsed(*arguments: str) -> dict[str, object]:
    parser = Parser(prog="tunnelproxy")
    add_options(parser, int)
    return settings(parser.parse_args(arguments))


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
