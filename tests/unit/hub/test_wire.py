# SPDX-License-Identifier: GPL-3.0-or-later
"""How callers talk to the hub, against a socket that answers what a test wants."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peers.hub_stand_in import hub
from tunnelproxy.hub import start, wire
from tunnelproxy.hub.location import LOCK_NAME, SOCKET_NAME, HubError
from tunnelproxy.hub.wire import Caller, HubEndedError

ACCOUNT = "aws:123456789012:eu-central-1"
REPLY = {"protocol": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(path))
    # No test here starts a hub.
    monkeypatch.setattr(start, "start", lambda: None)
    return path


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_RETRY_PAUSES_SECONDS", (0.0, 0.0))


def says(reply: object) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(json.dumps(reply).encode() + b"\n")


def ends(connection: socket.socket) -> None:
    """The hub is killed."""


class TestRequests:
    def test_a_request_carries_its_fields_and_the_protocol(self, folder: Path) -> None:
        with hub(folder, says({**REPLY, "answer": 7})) as asked:
            assert wire.ask("locate", 3.0, thing="Zähler") == {**REPLY, "answer": 7}
        assert asked == [{"protocol": 2, "op": "locate", "timeout": 3.0, "thing": "Zähler"}]

    def test_an_error_is_raised_with_its_code(self, folder: Path) -> None:
        with (
            hub(folder, says({**REPLY, "error": "there is none", "code": "no-tunnel"})),
            pytest.raises(HubError) as caught,
        ):
            wire.ask("locate", 3.0)
        assert (caught.value.message, caught.value.code) == ("there is none", "no-tunnel")

    def test_a_hub_of_another_release_is_named_as_that(self, folder: Path) -> None:
        with hub(folder, says({"protocol": 1, "error": "?"})), pytest.raises(HubError, match="of another release"):
            wire.ask("locate", 3.0)

    def test_a_long_reply_is_read_to_its_end(self, folder: Path) -> None:
        with hub(folder, says({**REPLY, "rows": "x" * 300_000})):
            assert len(wire.ask("status", 3.0)["rows"]) == 300_000

    @pytest.mark.usefixtures("no_pauses")
    def test_what_may_be_repeated_is_asked_of_the_next_hub(self, folder: Path) -> None:
        with hub(folder, ends, ends, says(REPLY)) as asked:
            wire.ask("ensure", 3.0, repeatable=True)
        assert [request["op"] for request in asked] == ["ensure"] * 3

    def test_what_may_have_been_done_is_not_repeated(self, folder: Path) -> None:
        with hub(folder, ends), pytest.raises(HubEndedError, match=r"the hub exited before it answered 'adopt'; see "):
            wire.ask("adopt", 3.0)

    def test_a_reply_without_an_end_is_none(self, folder: Path) -> None:
        with hub(folder, lambda connection: connection.sendall(b'{"proto')), pytest.raises(HubEndedError):
            wire.ask("adopt", 3.0)


class TestSilence:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "SILENT_SECONDS", 0.05)
        monkeypatch.setattr(wire, "_MARGIN_SECONDS", 0.0)

    def test_a_hub_that_answers_others_is_waited_for(self, folder: Path) -> None:
        """Its reply comes when it has answered somebody else meanwhile."""
        with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
            listener.bind(str(folder / SOCKET_NAME))
            listener.listen()
            asking = pool.submit(wire.ask, "ensure", 20.0)
            first, _ = listener.accept()
            second, _ = listener.accept()
            assert json.loads(second.makefile().readline())["op"] == "holds"
            second.sendall(b"{}\n")
            first.sendall(json.dumps(REPLY).encode() + b"\n")
            assert asking.result(5) == REPLY
            first.close()
            second.close()

    def test_a_hub_that_answers_nobody_is_named_with_its_process(self, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as stopped:
            stopped.bind(str(folder / SOCKET_NAME))
            stopped.listen()
            with pytest.raises(HubError, match=rf"the hub \(process {os.getpid()}\) runs but does not answer"):
                wire.ask("ensure", 20.0)

    def test_a_reply_that_does_not_come_in_time_is_told(self, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.bind(str(folder / SOCKET_NAME))
            slow.listen()
            with pytest.raises(HubError, match=r"the hub did not answer 'ensure': timed out; see .*hub.log"):
                wire.ask("ensure", 0.02)

    def test_without_a_process_id_the_remedy_stands(self) -> None:
        assert "kill -CONT PID" in str(wire.unresponsive(0))


class TestStreams:
    def test_a_stream_is_received(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()

        def pass_stream(connection: socket.socket) -> None:
            socket.send_fds(connection, [json.dumps({**REPLY, "opened": True}).encode() + b"\n"], [theirs.fileno()])

        with ours, theirs, hub(folder, pass_stream) as asked:
            stream = wire.open_stream("pump", "SSH1", account=ACCOUNT, timeout=3.0)
            with socket.socket(fileno=stream) as received:
                ours.sendall(b"SSH-")
                assert received.recv(4) == b"SSH-"
        assert asked == [
            {
                "protocol": 2,
                "op": "open",
                "speaks_first": True,
                "timeout": 3.0,
                "thing": "pump",
                "service": "SSH1",
                "account": ACCOUNT,
            }
        ]

    def test_without_an_account_the_caller_is_sent(self, folder: Path) -> None:
        caller = Caller({"AWS_PROFILE": "ops"}, "/home")
        with hub(folder, says({**REPLY, "error": "no"})) as asked, pytest.raises(HubError):
            wire.open_stream("pump", "SSH1", caller=caller)
        assert Caller.from_json(asked[0]["caller"]) == caller
        assert "account" not in asked[0]

    @pytest.mark.usefixtures("no_pauses")
    def test_a_stream_that_a_killed_hub_had_not_opened_is_asked_for_again(self, folder: Path) -> None:
        refusal = says({**REPLY, "error": "the device refused"})
        with hub(folder, ends, refusal) as asked, pytest.raises(HubError, match="the device refused"):
            wire.open_stream("pump", "SSH1", account=ACCOUNT)
        assert len(asked) == 2

    def test_a_stream_of_another_release_is_closed(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()

        def pass_stream(connection: socket.socket) -> None:
            socket.send_fds(connection, [b'{"protocol": 1}\n'], [theirs.fileno()])

        with ours:
            with hub(folder, pass_stream), pytest.raises(HubError, match="of another release"):
                wire.open_stream("pump", "SSH1", account=ACCOUNT)
            theirs.close()
            assert ours.recv(1) == b""

    def test_a_stream_that_did_not_fit_in_is_told(self, folder: Path) -> None:
        with hub(folder, says({**REPLY, "opened": True})), pytest.raises(HubError, match="limit of open files"):
            wire.open_stream("pump", "SSH1", account=ACCOUNT)

    def test_why_a_stream_gave_nothing_is_what_the_hub_says(self, folder: Path) -> None:
        with hub(folder, says({**REPLY, "sentence": "it refused", "code": "refused"})) as asked:
            why = wire.explain("pump", "SSH1", refused=True, account=ACCOUNT)
        assert (why.message, why.code, asked[0]["refused"]) == ("it refused", "refused", True)

    def test_or_why_it_cannot_say(self, folder: Path) -> None:
        with hub(folder, says({**REPLY, "error": "there is no tunnel", "code": "no-tunnel"})):
            assert wire.explain("pump", "SSH1", refused=True, account=ACCOUNT).code == "no-tunnel"


class TestConnecting:
    def test_where_no_hub_runs_there_is_nothing_to_ask(self) -> None:
        assert wire.ask_running("status") == {}

    def test_a_hub_that_was_killed_is_none(self, folder: Path) -> None:
        """For a moment it may still take connections, and then end them."""
        path = folder / SOCKET_NAME
        with socket.socket(socket.AF_UNIX) as dying, ThreadPoolExecutor(1) as pool:
            dying.bind(str(path))
            dying.listen()
            found = pool.submit(wire.ask_running, "status")
            connection, _ = dying.accept()
            path.unlink()
            connection.close()
            assert found.result(10) == {}

    def test_a_hub_that_does_not_listen_is_told(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "LISTEN_SECONDS", 0.0)
        with (folder / LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4711\n")
            lock.flush()
            with pytest.raises(HubError, match=r"does not listen: see .*hub.log, or stop it: kill 4711"):
                wire.ask_running("status")

    def test_a_hub_that_ends_at_once_is_told(self) -> None:
        with pytest.raises(HubError, match=r"the hub exited as soon as it was started; see .*hub\.log"):
            wire.ask("status", 1.0)

    def test_a_hub_that_somebody_else_started_meanwhile_is_used(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stack: list[Any] = []

        def start_hub() -> None:
            stack.append(hub(folder, says(REPLY)))
            stack[0].__enter__()

        monkeypatch.setattr(start, "start", start_hub)
        assert wire.ask("status", 1.0) == REPLY
        stack[0].__exit__(None, None, None)

    def test_a_full_queue_is_waited_for_and_then_told(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "START_SECONDS", 0.2)
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(str(folder / SOCKET_NAME))
            busy.listen(0)
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(str(folder / SOCKET_NAME))
                with pytest.raises(HubError, match="the hub does not accept the request"):
                    wire.ask("status", 1.0)

    def test_what_is_no_socket_is_told(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(folder / SOCKET_NAME))
            with pytest.raises(HubError, match=r"cannot connect to the hub at .*: Protocol wrong type for socket"):
                wire.ask("status", 1.0)


def test_a_caller_is_what_it_was_after_the_wire() -> None:
    caller = Caller.here()
    assert Caller.from_json(json.loads(json.dumps(caller.to_json()))) == caller


def test_a_caller_s_keys_are_not_in_its_print() -> None:
    assert "secret" not in repr(Caller({"AWS_SECRET_ACCESS_KEY": "secret"}, "/"))


def test_a_working_directory_that_is_gone_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert wire.current_directory() == "/"
