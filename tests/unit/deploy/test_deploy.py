# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``deploy/`` ships is what systemd and the command line accept."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from peers.process import REPOSITORY
from tunnelproxy.cli import service
from tunnelproxy.cli.parser import Parser

DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "tunnelproxy-service.service"
MOST_EXPOSED = 2.0

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


@pytest.fixture(params=[UNIT.name, "tunnelproxy-service@.service"])
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unit, under either of its names, with a program that exists on every machine."""
    copy = tmp_path / str(request.param)
    copy.write_text(UNIT.read_text().replace("/opt/tunnelproxy/bin/tunnelproxy", "/bin/true"))
    return copy


def parsed(command: list[str]) -> dict[str, object]:
    parser = Parser(prog="tunnelproxy")
    service.add_parser(parser.add_subparsers(required=True))
    return vars(parser.parse_args(command))


@needs_systemd
def test_systemd_understands_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) < MOST_EXPOSED


def test_the_unit_s_command_is_one_that_the_command_line_accepts() -> None:
    found = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    program, *command = shlex.split(found[1].replace("\\\n", " "))
    assert program.endswith("/tunnelproxy")
    options = parsed([word for word in command if word != "$TUNNELPROXY_SERVICE_OPTIONS"])
    assert (options["api_port"], options["data_port"], options["metrics_port"]) == (8443, 9443, 9464)


def test_the_container_s_command_is_one_that_the_command_line_accepts() -> None:
    found = re.search(r"^ENTRYPOINT (\[(?:.*\\\n)*.*\])$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert found is not None
    program, *command = json.loads(found[1].replace("\\\n", " "))
    assert program == "tunnelproxy"
    options = parsed(command)
    assert (options["host"], options["api_port"], options["data_port"]) == ("0.0.0.0", 8443, 9443)
