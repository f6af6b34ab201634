# SPDX-License-Identifier: GPL-3.0-or-later
"""A source and a destination by the command line of the reference, with a service in this process."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peers.process import free_port
from tunnelproxy.cli.main import main
from tunnelproxy.service.state.certificates import Certificates


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name in [name for name in os.environ if name.startswith("AWSIOT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def arguments(service: Any, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A command line for one end of a new tunnel, and the end's token in the environment."""

    def arguments(end: str, *more: str) -> list[str]:
        opened = service.call("OpenTunnel", destinationConfig={"thingName": "pump", "services": ["SSH1"]})
        monkeypatch.setenv("AWSIOT_TUNNEL_ACCESS_TOKEN", opened[f"{end}AccessToken"])
        return ["-e", str(service.endpoint), "-c", str(certificates.ca), *more]

    return arguments


def close_tunnels(service: Any) -> None:
    for tunnel in service.call("ListTunnels")["tunnelSummaries"]:
        service.call("CloseTunnel", tunnelId=tunnel["tunnelId"])


def test_a_destination_ends_with_status_0_when_its_tunnel_is_closed(
    service: Any, arguments: Callable[..., list[str]], manager: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    closing = manager.when_ready(lambda: close_tunnels(service))
    assert main(arguments("destination", "-d", "SSH1=22")) == 0
    closing.join()
    assert f"STATUS=connected to {service.endpoint}, with SSH1" in manager.told
    assert "the tunnel is closed or has expired" in capsys.readouterr().err


@pytest.mark.parametrize("how", [[], ["--strict"]], ids=["as the reference", "strict"])
def test_a_source_listens_until_sigterm(arguments: Callable[..., list[str]], manager: Any, how: list[str]) -> None:
    port = free_port()
    reached: list[bool] = []

    def check() -> None:
        with socket.create_connection(("127.0.0.1", port), 5):
            reached.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    checking = manager.when_ready(check)
    assert main(arguments("source", "-s", f"SSH1={port}", "-b", "127.0.0.1", *how)) == 0
    checking.join()
    assert reached == [True]


def test_a_port_that_stays_in_use_ends_a_source_after_its_retries(
    tmp_path: Path, arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.json"
    tcp = {"connection_retry_count": 1, "connection_retry_delay_ms": 1}
    settings.write_text(json.dumps({"tunneling": {"proxy": {"tcp": tcp}}}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = arguments("source", "-s", f"SSH1={port}", "-b", "127.0.0.1", "--settings-json", str(settings))
        assert main(line) == 1
    said = capsys.readouterr().err
    assert "trying again every 0.001 s" in said
    # The service, in its thread, may log after it.
    assert "\ntunnelproxy: error: " in said


def test_a_refused_token_is_an_error_in_the_format_of_the_log(
    service: Any,
    arguments: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = arguments("source", "-s", "SSH1=0", "--log-format", "json")
    monkeypatch.setenv("AWSIOT_TUNNEL_ACCESS_TOKEN", "unknown")
    assert main(line) == 1
    records = map(json.loads, capsys.readouterr().err.splitlines())
    assert "fatal" in [record["level"] for record in records]


def test_options_that_weaken_security_are_warned_of(
    service: Any, arguments: Callable[..., list[str]], manager: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ending: threading.Thread = manager.stop_when_ready()
    line = arguments("destination", "-d", "SSH1=22", "-k")
    assert main([*line, "-t", os.environ["AWSIOT_TUNNEL_ACCESS_TOKEN"]]) == 0
    ending.join()
    said = capsys.readouterr().err
    assert "the access token was passed as an argument" in said
    assert "-k/--no-ssl-host-verify: the certificate of" in said


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-r", "us-east-1", "-s", "SSH1=0"]) == 1
    assert "tunnelproxy: error: no access token: give one in AWSIOT_TUNNEL_ACCESS_TOKEN" in capsys.readouterr().err


def test_the_default_settings_are_exported_and_nothing_is_run(tmp_path: Path) -> None:
    assert main(["--export-default-settings", str(tmp_path / "settings.json")]) == 0
    assert "tunneling" in json.loads((tmp_path / "settings.json").read_text())
