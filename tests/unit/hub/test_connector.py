# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh starts: it asks the hub for a stream and passes it on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from peers.hub_stand_in import hub
from tunnelproxy.hub import connector, start, wire
from tunnelproxy.hub.connector import main, peek_greeting
from tunnelproxy.hub.location import SOCKET_NAME

ACCOUNT = "aws:123456789012:eu-central-1"
TARGET = [ACCOUNT, 'Zähler "7"', "SSH1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    monkeypatch.setattr(start, "start", lambda: None)
    monkeypatch.setattr(wire, "_RETRY_PAUSES_SECONDS", (0.0, 0.0))
    return path


@pytest.fixture
def ssh() -> Iterator[Ssh]:
    ours, its = socket.socketpair()
    with ours, its:
        yield Ssh(ours, its.fileno())


class Ssh(NamedTuple):
    """The socket pair that ssh makes: its own end, and the connector's standard output."""

    own: socket.socket
    output: int

    def received(self) -> bytes:
        """What waits on the stream that ssh was given."""
        _, (descriptor,), _, _ = socket.recv_fds(self.own, 1, 1)
        with socket.socket(fileno=descriptor) as stream:
            return stream.recv(100)


class Device(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"disk is full\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def passes(greeting: bytes) -> Callable[[socket.socket], None]:
    def answer(caller: socket.socket) -> None:
        device, stream = socket.socketpair()
        device.sendall(greeting)
        socket.send_fds(caller, [b'{"protocol": 2, "opened": true}\n'], [stream.fileno()])
        stream.close()
        device.close()

    return answer


def says(reply: dict[str, Any]) -> Callable[[socket.socket], None]:
    return lambda caller: caller.sendall(json.dumps({"protocol": 2, **reply}).encode() + b"\n")


def test_a_stream_is_asked_for_and_passed_on(folder: Path, ssh: Ssh, capsys: pytest.CaptureFixture[str]) -> None:
    with hub(folder, passes(b"SSH-2.0-x\r\n")) as asked:
        assert main(TARGET, ssh.output) == 0
    assert ssh.received() == b"SSH-2.0-x\r\n"
    # What wire.open_stream sends.
    assert asked == [
        {
            "protocol": 2,
            "op": "open",
            "speaks_first": True,
            "timeout": 20.0,
            "thing": TARGET[1],
            "service": "SSH1",
            "account": ACCOUNT,
        }
    ]
    assert capsys.readouterr().err == ""


def test_a_greeting_that_is_not_ssh_s_is_told(folder: Path, ssh: Ssh, capsys: pytest.CaptureFixture[str]) -> None:
    with hub(folder, passes(b"Exceeded MaxStartups\r\n")):
        assert main([*TARGET, "3"], ssh.output) == 0
    assert ssh.received() == b"Exceeded MaxStartups\r\n"
    assert capsys.readouterr().err == "iotops.tunnel greeting: Exceeded MaxStartups\n"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"error": "the device refused SSH1", "code": "refused"}, "iotops.tunnel: the device refused SSH1\n"),
        ({"protocol": 1}, "iotops.tunnel: the running hub is of another release of iotops.tunnel"),
        ({"opened": True}, "iotops.tunnel: the stream cannot be received: raise the limit of open files (ulimit -n)"),
    ],
)
def test_why_there_is_no_stream_is_told(
    reply: dict[str, Any], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub(folder, says(reply)):
        assert main(TARGET) == 1
    assert capsys.readouterr().err.startswith(said)


def test_a_hub_that_ends_is_followed_by_the_next(folder: Path, ssh: Ssh) -> None:
    with hub(folder, lambda caller: None, passes(b"SSH-2.0-x\r\n")) as asked:
        assert main(TARGET, ssh.output) == 0
    assert asked[0] == asked[1]
    assert ssh.received() == b"SSH-2.0-x\r\n"


def test_a_hub_that_cannot_be_started_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TARGET) == 1
    assert capsys.readouterr().err.startswith("iotops.tunnel: the hub exited as soon as it was started")


def test_without_an_account_the_environment_says_which(folder: Path, ssh: Ssh) -> None:
    with hub(folder, passes(b"SSH-2.0-x\r\n")) as asked:
        assert main(["", "pump", "SSH1"], ssh.output) == 0
    assert asked[0]["caller"]["environment"]["IOTOPS_TUNNEL_DIR"] == str(folder)


@pytest.mark.parametrize("ends", [False, True])
def test_a_device_that_takes_its_time_is_waited_for_while_the_hub_answers(
    ends: bool, folder: Path, ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "SILENT_SECONDS", 0.05)
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET_NAME))
        listener.listen()

        def serve() -> None:
            waiting, _ = listener.accept()
            asked.append(json.loads(waiting.makefile().readline())["op"])
            other, _ = listener.accept()
            asked.append(json.loads(other.makefile().readline())["op"])
            says({})(other)
            other.close()
            if not ends:
                passes(b"SSH-2.0-x\r\n")(waiting)
            waiting.close()
            if ends:
                again, _ = listener.accept()
                asked.append(json.loads(again.makefile().readline())["op"])
                passes(b"SSH-2.0-x\r\n")(again)
                again.close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        assert main(TARGET, ssh.output) == 0
        serving.join(5)
    assert asked == (["open", "holds", "open"] if ends else ["open", "holds"])
    assert ssh.received() == b"SSH-2.0-x\r\n"


def test_a_device_that_is_not_healthy_is_not_connected_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(caller: socket.socket) -> None:
        device, stream = socket.socketpair()
        socket.send_fds(caller, [b'{"protocol": 2, "opened": true}\n'], [stream.fileno()])
        stream.close()
        with device:
            Device(device, ("", 0), None)  # type: ignore[arg-type]

    with hub(folder, answer) as asked:
        assert main([ACCOUNT, "pump", "SSH1", "20", "HTTP1", "/health", "200,204"]) == 1
    assert (asked[0]["service"], asked[0]["speaks_first"]) == ("HTTP1", False)
    assert "HTTP1 answers /health with status 503: disk is full" in capsys.readouterr().err


def test_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["thing1"]) == 1
    assert capsys.readouterr().err.startswith("iotops.tunnel: usage: connector.py ACCOUNT THING SERVICE")


def test_its_limits_are_those_of_the_client() -> None:
    assert (connector.OPEN_SECONDS, connector.SILENT_SECONDS) == (wire.OPEN_SECONDS, wire.SILENT_SECONDS)


@pytest.mark.parametrize(
    ("data", "greeting"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"", ""),
        (b"Exceeded MaxStartups\r\n", "Exceeded MaxStartups"),
        (b"\r\n220 \x1b[31mftp\xff\nmore", "220  [31mftp\ufffd"),
    ],
)
def test_a_greeting_that_is_no_ssh_server_s_is_told_and_left_where_it_is(data: bytes, greeting: str) -> None:
    device, stream = socket.socketpair()
    with device, stream:
        device.sendall(data)
        assert peek_greeting(stream.fileno()) == greeting
        stream.setblocking(False)
        if data:
            assert stream.recv(1000) == data
