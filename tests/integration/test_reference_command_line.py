# SPDX-License-Identifier: GPL-3.0-or-later
"""Where AWS's reference ignores a mistake, ``tunnelproxy`` does too, with a warning; ``--strict`` refuses it.

The rows are exactly those of the table in docs/localproxy.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from peers.device import proxy_environment
from peers.namespace import why_impossible
from peers.process import REPOSITORY, Process, free_port
from peers.proxies import open_tunnel, start_proxy
from peers.service import TunnelingService
from tunnelproxy.cli.invocation import read_invocation
from tunnelproxy.cli.options import read_options
from tunnelproxy.errors import ConfigurationError

PAGE = REPOSITORY / "docs" / "localproxy.md"
QUICK = {"settings.json": '{"tunneling": {"proxy": {"tcp": {"connection_retry_delay_ms": 100}}}}'}
ENVIRONMENT = {"AWSIOT_TUNNEL_ACCESS_TOKEN": "token", "AWSIOT_TUNNEL_REGION": "us-east-1"}
ABSENT = "192.0.2.1"
"""An address that no machine has (RFC 5737)."""


@dataclass(frozen=True)
class Row:
    """A command line that the reference accepts.

    Attributes:
        row: its name in the page.
        arguments: they may contain ``{folder}`` (of the files), ``{port}`` (a free one) and ``{busy}`` (a busy one).
        warning: the warning in the log; empty if there is none.
        then: a later line of the log.
        strict: the error with ``--strict``; if empty, the same text as the warning; ``None`` if there is no error.
    """

    row: str
    arguments: str
    warning: str = ""
    then: str = "SSH1: listening on 127.0.0.1:"
    files: Mapping[str, str] = field(default_factory=dict)
    strict: str | None = ""


ROWS = [
    Row(
        "Unknown setting",
        "-m src --settings-json {folder}/settings.json",
        r"there is no setting tunneling\.proxy\.speed; .*; it is ignored",
        files={"settings.json": '{"tunneling": {"proxy": {"speed": 5}}}'},
    ),
    Row(
        "Invalid value of a setting",
        "-m src --settings-json {folder}/settings.json",
        r"tcp\.max_active_connections is 'many', but should be a whole number from 1; the default is used",
        files={"settings.json": '{"tunneling": {"proxy": {"tcp": {"max_active_connections": "many"}}}}'},
    ),
    Row(
        "Settings that are not an object",
        "-m src --settings-json {folder}/settings.json",
        "is not a JSON object; the defaults are used",
        files={"settings.json": "[]"},
    ),
    Row(
        "File of any name in `--config-dir`",
        "-m dst --config-dir {folder}/config",
        then="connected to",
        files={"config/services.conf": "SSH1 = 22\n", "config/deep/er/HTTP": "HTTP1 = 80\n"},
        strict=None,
    ),
    Row(
        "Broken file in `--config-dir`",
        "-m dst --config-dir {folder}/config",
        r"config/README is not an ini file of services: .*line 1 is not.*; the file is ignored",
        "connected to",
        files={"config/README": "What is here?\n", "config/a.ini": "SSH1 = 22\nHTTP1 = 80\n"},
    ),
    Row(
        "`[section]` in `--config-dir`",
        "-m dst --config-dir {folder}/config",
        r"a\.ini: sections are not supported here: remove the line \[more\]; everything below it is ignored",
        "connected to",
        files={"config/a.ini": "SSH1 = 22\nHTTP1 = 80\n[more]\nSSH1 = 2222\n"},
    ),
    Row(
        "Service of another tunnel in `--config-dir`",
        "-m src --config-dir {folder}/config",
        "this tunnel does not offer VNC, X: .*; what it does not offer is ignored",
        "SSH1: listening on 127.0.0.1:{port}",
        files={"config/a.ini": "SSH1 = {port}\nVNC = 5900\nX = no address\n"},
        strict="the value after '=' is not an address",
    ),
    Row(
        "Service twice in `--config-dir`",
        "-m src --config-dir {folder}/config",
        r"b\.ini: SSH1 is already configured in .*a\.ini; the first is used",
        "SSH1: listening on 127.0.0.1:{port}",
        files={"config/a.ini": "SSH1 = {port}\n", "config/b.ini": "SSH1 = {busy}\n"},
    ),
    Row(
        "Service twice in `-s` or `-d`",
        "-s SSH1={port},SSH1={busy},HTTP1=0",
        "SSH1 is given twice; the first, localhost:{port}, is used",
        "SSH1: listening on 127.0.0.1:{port}",
    ),
    Row(
        "Trailing comma",
        "-d SSH1=22,HTTP1=80,",
        "'' is not an address: there is a comma too many; it is ignored",
        "connected to",
    ),
    Row(
        "Empty list",
        "-s ,",
        "'' is not an address: there is a comma too many; it is ignored",
    ),
    Row(
        "Bare port, several services",
        "-s {port}",
        "an address without a service ID fits a tunnel with one service only: .*; localhost:{port} is for SSH1; "
        "for HTTP1 free ports are used",
        "SSH1: listening on 127.0.0.1:{port}",
        strict="an address without a service ID fits a tunnel with one service only",
    ),
    Row(
        "Bare port, several services",
        "-d 22",
        "an address without a service ID fits a tunnel with one service only: .*; localhost:22 is for SSH1; for HTTP1 "
        "connections are refused",
        "SSH1: will connect to localhost:22",
        strict="an address without a service ID fits a tunnel with one service only",
    ),
    Row(
        "One port in use, another free",
        "-s SSH1={port},HTTP1={busy}",
        "HTTP1: cannot listen on localhost:{busy}: the port is in use; .*; trying again every 2.5 s",
        "SSH1: listening on 127.0.0.1:{port}",
        strict="HTTP1: cannot listen on localhost:{busy}: the port is in use",
    ),
    Row(
        "Address that does not exist yet",
        f"-m src -b {ABSENT}",
        rf"SSH1: cannot listen on {ABSENT}:0: .*; trying again every 2\.5 s",
        "HTTP1: cannot listen on",
        strict=f"cannot listen on '{ABSENT}'",
    ),
    Row(
        "Missing CA certificates",
        "-m src -c {folder}/missing.pem",
        r"cannot read certificate authorities from '.*missing\.pem' .*; they are read again before each attempt",
        "cannot reach .*: cannot read certificate authorities from .*; trying again in",
    ),
    Row(
        "Unknown value of `-y`",
        "-m src -y v4",
        "'v4' is none of auto, V1, V2, V3; V3 is assumed",
    ),
    Row(
        "`[section]` in `--config`",
        "--config {folder}/proxy.ini",
        r"line 2 is not like 'name = value', .*; a section without options is ignored",
        files={"proxy.ini": "mode = src\n[more]\n"},
    ),
    Row(
        "Abbreviated option",
        "--mo src --loc 127.0.0.1 --verb=5",
        strict="unrecognized arguments: --mo --loc --verb",
    ),
    Row(
        "Stray word",
        "-m src -k true",
        "there is an extra word that does not belong to any option; it is ignored",
    ),
    Row(
        "Empty client token",
        "-m src -i ''",
        "a client token has 32 to 128 letters, .*; the empty one is ignored",
        strict="a client token has 32 to 128 letters",
    ),
]


class Stage:
    """Files, ports and a tunnel for a row."""

    def __init__(self, service: TunnelingService, folder: Path, row: Row, busy: int) -> None:
        self._names = {"folder": str(folder), "port": str(free_port()), "busy": str(busy)}
        self.folder = folder
        for name, text in row.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # JSON also contains braces.
            (folder / name).write_text(text.replace("{port}", self._names["port"]).replace("{busy}", str(busy)))
        self.arguments = shlex.split(row.arguments.format(**self._names))
        self._service = service

    def fill(self, text: str) -> str:
        return text.replace("{port}", self._names["port"]).replace("{busy}", self._names["busy"])

    def start(self, *more: str) -> Process:
        tunnel = open_tunnel(self._service)
        is_destination = "dst" in self.arguments or "-d" in self.arguments
        token = tunnel.destination_token if is_destination else tunnel.source_token
        return start_proxy(self._service, token, [*self.arguments, *more], self.folder / "log")


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


IDS = [f"{row.row}: {row.arguments}" for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_it_continues_as_the_reference_does(service: TunnelingService, tmp_path: Path, row: Row, busy: int) -> None:
    stage = Stage(service, tmp_path, row, busy)
    with stage.start() as proxy:
        proxy.wait_for_output(stage.fill(row.then))
        if row.warning:
            proxy.wait_for_output(f"WARNING .*{stage.fill(row.warning)}")
        else:
            assert "WARNING" not in proxy.output()


def refusal(stage: Stage, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The error of a command line, before it connects or once it knows the services; empty if there is none."""
    try:
        options = read_options([*stage.arguments, *more], {})
        read_invocation(options, ENVIRONMENT).plan(("SSH1", "HTTP1"))
    except ConfigurationError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err
    return ""


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_strict_refuses_what_the_reference_ignores(
    service: TunnelingService, tmp_path: Path, row: Row, busy: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(service, tmp_path, row, busy)
    said = refusal(stage, capsys, "--strict")
    if row.strict is None:
        assert not said
    elif said:
        words = row.strict or row.warning.rpartition("; ")[0]
        assert re.search(stage.fill(words), said)
    else:
        # Only detected by listening.
        with stage.start("--strict") as proxy:
            assert proxy.wait() == 1
            proxy.wait_for_output(f"tunnelproxy: error: .*{stage.fill(row.strict)}")


def test_the_page_lists_exactly_these_cases() -> None:
    table = PAGE.read_text().partition("## Tolerated mistakes")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]
    assert rows == list(dict.fromkeys(row.row for row in ROWS))


# Conditions that change later.


def test_a_port_is_used_once_it_is_free(service: TunnelingService, tmp_path: Path) -> None:
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        row = Row("", "-s SSH1={port},HTTP1={busy} --settings-json {folder}/settings.json", files=QUICK)
        stage = Stage(service, tmp_path, row, taken.getsockname()[1])
        proxy = stack.enter_context(stage.start())
        proxy.wait_for_output("trying again every 0.1 s")
        taken.close()
        proxy.wait_for_output(stage.fill("HTTP1: listening on 127.0.0.1:{busy}"))
        assert proxy.output().count("the port is in use") == 1


def test_without_any_free_port_the_source_gives_up(service: TunnelingService, tmp_path: Path, busy: int) -> None:
    row = Row("", "-s SSH1={busy},HTTP1={busy} --settings-json {folder}/settings.json", files=QUICK)
    stage = Stage(service, tmp_path, row, busy)
    with stage.start() as proxy:
        assert proxy.wait() == 1
        proxy.wait_for_output(
            stage.fill("tunnelproxy: error: SSH1: cannot listen on localhost:{busy}: the port is in use")
        )


@pytest.mark.skipif(bool(why_impossible()) or shutil.which("ip") is None, reason="only root gives a machine addresses")
def test_an_address_is_used_once_it_exists(service: TunnelingService, tmp_path: Path, busy: int) -> None:
    late = "198.51.100.77"
    row = Row("", f"-m src -b {late} --settings-json {{folder}}/settings.json", files=QUICK)
    change = ["ip", "address", "add", f"{late}/32", "dev", "lo"]
    with Stage(service, tmp_path, row, busy).start() as proxy:
        proxy.wait_for_output(f"SSH1: cannot listen on {late}:0: .*; trying again every 0.1 s")
        try:
            subprocess.run(change, check=True)
            proxy.wait_for_output(f"SSH1: listening on {late}:")
        finally:
            subprocess.run([change[0], change[1], "del", *change[3:]], check=False)


def test_certificate_authorities_are_trusted_once_they_exist(
    service: TunnelingService, tmp_path: Path, busy: int
) -> None:
    row = Row("", "-m src -c {folder}/late.pem")
    with Stage(service, tmp_path, row, busy).start() as proxy:
        proxy.wait_for_output("trying again in")
        shutil.copy(service.ca_pem, tmp_path / "late.new")
        (tmp_path / "late.new").rename(tmp_path / "late.pem")
        proxy.wait_for_output("SSH1: listening on")


def test_nothing_is_trusted_while_the_certificate_authorities_are_missing(
    service: TunnelingService, tmp_path: Path, busy: int
) -> None:
    row = Row("", "-m src -c {folder}/late.pem")
    with Stage(service, tmp_path, row, busy).start() as proxy:
        proxy.wait_for_output("trying again in")
        (tmp_path / "late.pem").write_text("not a certificate\n")
        proxy.wait_for_output("no certificate in it")
        assert "connected" not in proxy.output()


# Mistakes that the reference also refuses.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-s 1,2", "an address without a service ID is given twice"),
        ("-s 1,SSH1=2", "each needs its service ID"),
        ("-s SSH1=", "'' is not an address"),
        ("-s SSH1=70000", "'70000' is not an address"),
        ("-d SSH1=22", "no address for HTTP1"),
        ("-s VNC=5900", "this tunnel does not offer VNC"),
        ("-m dst --config-dir {folder}/config", "no address for SSH1"),
        ("-m src --config-dir {folder}/nowhere", "there is no directory"),
        ("-m src --settings-json {folder}/nowhere", "cannot read .*nowhere"),
        ("-m src --settings-json {folder}/config/broken", "is not JSON"),
        ("--config {folder}/proxy.ini", "'more.mode' is not an option"),
        ("-m src --ver", "unrecognized arguments: --ver"),
        ("-m src --co x", "unrecognized arguments: --co"),
    ],
)
def test_invalid_command_lines_are_refused_as_by_the_reference(
    service: TunnelingService,
    tmp_path: Path,
    busy: int,
    arguments: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"config/a.ini": "HTTP1 = 80\n", "config/broken": "{", "proxy.ini": "[more]\nmode = src\n"}
    assert re.search(words, refusal(Stage(service, tmp_path, Row("", arguments, files=files), busy), capsys))


def test_the_token_of_an_abbreviated_option_is_hidden(service: TunnelingService, tmp_path: Path) -> None:
    tunnel = open_tunnel(service)
    environment = proxy_environment(service, "")
    command = [sys.executable, "-m", "tunnelproxy", "--acc", tunnel.source_token, "-m", "src"]
    with Process(command, tmp_path / "log", environment) as source:
        source.wait_for_output("SSH1: listening on")
        assert tunnel.source_token not in Path(f"/proc/{source.pid}/cmdline").read_text()


def test_an_abbreviation_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunnelproxy", "--vers"],
        check=False,
        cwd=REPOSITORY,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("tunnelproxy ")
