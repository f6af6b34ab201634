# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy agent``."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.cli.main import main

GOOD = "thing: pump\nbroker: {host: 127.0.0.1, port: %d, tls: false}\nservices: {SSH1: 22}\n"


def config(folder: Path, text: str) -> str:
    path = folder / "agent.yml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@contextmanager
def broker(granted: int) -> Iterator[int]:
    """A broker in a thread that accepts one login, and grants the subscription or not; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                connection.recv(1024)
                connection.sendall(b"\x20\x02\x00\x00")
                subscribe = connection.recv(1024)
                connection.sendall(b"\x90\x03" + subscribe[2:4] + bytes([granted]))
                while connection.recv(1024):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_run_serves_until_sigterm(tmp_path: Path, manager: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ending = manager.stop_when_ready()
    assert main(["agent", "run", "--config", config(tmp_path, GOOD % 1)]) == 0
    ending.join()
    assert "starting as the agent of pump" in capsys.readouterr().err


def test_run_with_a_faulty_configuration_ends_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "thing: a/b\n")
    assert main(["agent", "run", "--config", path]) == 1
    assert f"tunnelproxy: error: {path}: thing: 'a/b' is not the name of a thing" in capsys.readouterr().err


def test_check_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, GOOD % 1)
    assert main(["agent", "check", "--config", path]) == 0
    output = capsys.readouterr()
    assert output.out == f"{path}: no problems found\n"
    assert "tunnelproxy: warning: " in output.err


def test_check_reports_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "thing: a/b\nbroker: {host: h}\nservices: {SSH1: 22}\nfoo: 1\n")
    assert main(["agent", "check", "--config", path]) == 1
    assert capsys.readouterr().err.count("tunnelproxy: error: ") == 2


def test_check_connect_logs_in_and_subscribes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with broker(granted=1) as port:
        assert main(["agent", "check", "--connect", "--config", config(tmp_path, GOOD % port)]) == 0
    topic = "$aws/things/pump/tunnels/notify"
    assert f"the MQTT broker 127.0.0.1:{port} allows pump-tunnels to subscribe to {topic}" in capsys.readouterr().out


def test_check_connect_reports_a_refused_subscription(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with broker(granted=0x80) as port:
        assert main(["agent", "check", "--connect", "--config", config(tmp_path, GOOD % port)]) == 1
    assert "it does not let pump-tunnels subscribe to" in capsys.readouterr().err


def test_a_module_that_cannot_be_imported_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tunnelproxy.agent.check", None)
    assert main(["agent", "check", "--config", config(tmp_path, GOOD % 1)]) == 1
    assert capsys.readouterr().err.startswith("tunnelproxy: error: the Python package tunnelproxy ")
