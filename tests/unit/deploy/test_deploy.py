# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line accepts the commands in ``deploy/``."""

from __future__ import annotations

import json
import re
import shlex

from peers.process import REPOSITORY
from tunnelproxy.cli import service
from tunnelproxy.cli.parser import Parser

DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "tunnelproxy-service.service"


def parsed(command: list[str]) -> dict[str, object]:
    parser = Parser(prog="tunnelproxy")
    service.add_parser(parser.add_subparsers(required=True))
    return vars(parser.parse_args(command))


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
