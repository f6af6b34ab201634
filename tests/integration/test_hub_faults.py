# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub when it runs out of descriptors or disk space, or when its folder is removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.device import Device
from peers.full_disk import SmallDisk, why_impossible
from peers.process import REPOSITORY, Process, wait_for
from peers.proxies import OpenTunnel, open_tunnel
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from tunnelproxy.hub import client, location, wire

FLOOD = 300


@pytest.fixture
def folder(service: TunnelingService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of this test's own hub, which uses the service and is stopped after the test."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(folder))
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    yield folder
    client.stop()


def adopt(tunnel: OpenTunnel, thing: str = "thing1") -> dict[str, Any]:
    return client.adopt(
        thing,
        tunnel_id=tunnel.tunnel_id,
        tunnel_arn=tunnel.arn,
        source_token=tunnel.source_token,
        services=["SSH1", "HTTP1"],
    )


def greeting(thing: str = "thing1") -> bytes:
    with socket.socket(fileno=client.open_stream(thing, "SSH1")) as stream:
        return stream.recv(4)


def pid() -> int:
    """The process ID of the hub that runs."""
    return int((client.status() or {"pid": 0})["pid"])


def things() -> list[str]:
    """The things whose tunnels the running hub holds."""
    return [row["thing"] for row in (client.status() or {"tunnels": []})["tunnels"]]


def complaint(thing: str = "thing1") -> str:
    """The operator's message if the hub itself is at fault."""
    with pytest.raises(client.HubError) as caught:
        client.ensure(thing)
    assert caught.value.code == "hub-failed"
    return f"{thing} cannot be reached: {caught.value}"


class TestDescriptors:
    @contextmanager
    def hub(self, folder: Path, descriptors: int) -> Iterator[Process]:
        """A hub with this limit of descriptors."""
        limit = ["prlimit", f"--nofile=64:{descriptors}"]
        with Process([*limit, sys.executable, "-m", "tunnelproxy", "hub", "run"], folder.parent / "log") as hub:
            hub.wait_for_output("the hub is ready")
            yield hub

    def test_a_hub_that_had_run_out_of_descriptors_recovers(self, folder: Path) -> None:
        with self.hub(folder, 64) as hub, ExitStack() as idle:
            for _ in range(FLOOD):
                connection = idle.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(folder / location.SOCKET_NAME))
            hub.wait_for_output("cannot accept connections for now: Too many open files")
            idle.close()
            assert pid() == hub.pid
            assert client.stop()
            assert hub.wait() == 0

    def test_a_connection_refused_for_lack_of_descriptors_is_reported(self, folder: Path, tunnel: OpenTunnel) -> None:
        with self.hub(folder, 64) as hub, ExitStack() as streams:
            adopt(tunnel)

            def open_more() -> None:
                for _ in range(64):
                    streams.enter_context(socket.socket(fileno=client.open_stream("thing1", "SSH1")))

            with pytest.raises(client.HubError) as caught:
                open_more()
            assert_documented("Hub out of descriptors", f"thing1 cannot be reached: {caught.value}")
            streams.close()
            assert greeting() == b"SSH-"
            assert pid() == hub.pid

    def test_web_pages_leave_enough_descriptors_for_everything_else(
        self, service: TunnelingService, device: Device, folder: Path, tmp_path: Path, tunnel: OpenTunnel
    ) -> None:
        other = open_tunnel(service, thing="thing2")
        with (
            Device("thing2", service, tmp_path, device.ssh_key) as second,
            self.hub(folder, 256) as hub,
            ExitStack() as flood,
        ):
            second.start_proxy(other.destination_token)
            ports = [
                adopt(held, thing)["services"]["HTTP1"]["port"]
                for held, thing in ((tunnel, "thing1"), (other, "thing2"))
            ]
            for port in ports * (FLOOD // 2):
                flood.enter_context(socket.create_connection(("127.0.0.1", port)))
            wait_for(lambda: len(os.listdir(f"/proc/{hub.pid}/fd")) >= 128, "the pages use all their descriptors")
            streams = [
                flood.enter_context(socket.socket(fileno=client.open_stream("thing2", "SSH1"))) for _ in range(20)
            ]
            assert {stream.recv(4) for stream in streams} == {b"SSH-"}
            assert pid() == hub.pid
            assert client.stop()


@pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())
class TestDisk:
    def test_a_tunnel_that_cannot_be_saved_is_held_reported_and_saved_later(
        self, folder: Path, tmp_path: Path, tunnel: OpenTunnel
    ) -> None:
        with SmallDisk(folder, kib=128) as disk:
            disk.fill()
            assert "No space left on device" in adopt(tunnel)["not_saved"]
            row = client.ensure("thing1")
            assert (row["tunnel_id"], greeting()) == (tunnel.tunnel_id, b"SSH-")
            assert row["not_saved"] == (
                f"cannot write {folder}/tunnels.jsonl: No space left on device: free some space there, or set "
                "IOTOPS_TUNNEL_DIR to another folder; until then only this hub knows its tunnels: do not stop it"
            )
            shown = subprocess.run(
                [sys.executable, "-m", "tunnelproxy", "hub", "status"],
                capture_output=True,
                text=True,
                cwd=REPOSITORY,
                check=True,
            ).stdout
            assert f"cannot write {folder}/tunnels.jsonl: No space left on device" in shown
            refused = subprocess.run(
                [sys.executable, "-m", "tunnelproxy", "hub", "stop"],
                capture_output=True,
                text=True,
                cwd=REPOSITORY,
                check=False,
            )
            assert refused.returncode == 1
            assert "the hub was not stopped: it cannot write" in refused.stderr
            assert client.ensure("thing1")["state"] == "connected"
            disk.empty()
            saved = folder / "tunnels.jsonl"
            wait_for(lambda: saved.exists() and tunnel.tunnel_id in saved.read_text(), "the tunnel is saved")
            assert client.ensure("thing1")["not_saved"] == ""
            # The next hub continues with it.
            client.stop()
            assert client.ensure("thing1")["state"] == "connected"
            client.stop()

    def test_a_full_folder_is_reported(self, folder: Path) -> None:
        with SmallDisk(folder, 128, "nr_inodes=1"):
            assert_documented("Hub's folder cannot be written", complaint())

    def test_a_read_only_folder_is_reported(self, folder: Path) -> None:
        with SmallDisk(folder, 128, "ro"):
            said = f"cannot write {folder}/start.lock: Read-only file system: make it writable for you, or set"
            assert said in complaint()

    def test_a_folder_that_cannot_be_created_is_reported(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with SmallDisk(tmp_path / "mnt", 128, "ro") as disk, monkeypatch.context() as patch:
            patch.setenv("IOTOPS_TUNNEL_DIR", str(disk.path / "hub"))
            assert_documented("Hub's folder cannot be created", complaint())


class TestFolder:
    def test_a_removed_socket_is_recreated(self, folder: Path, tunnel: OpenTunnel) -> None:
        adopt(tunnel)
        hub = pid()
        with socket.socket(fileno=client.open_stream("thing1", "SSH1")) as stream:
            (folder / location.SOCKET_NAME).unlink()
            assert pid() == hub
            # Existing connections continue: the server answers with its algorithms.
            stream.sendall(b"SSH-2.0-client\r\n")
            said = b""
            while b"curve25519" not in said:
                data = stream.recv(4096)
                assert data, said
                said += data
        (folder / location.SOCKET_NAME).unlink()
        assert greeting() == b"SSH-"
        (folder / location.SOCKET_NAME).unlink()
        assert client.stop()

    def test_a_removed_folder_is_recreated_with_its_content(self, folder: Path, tunnel: OpenTunnel) -> None:
        adopt(tunnel)
        hub = pid()
        shutil.rmtree(folder)
        wait_for((folder / location.SOCKET_NAME).exists, "the hub listens again")
        assert (pid(), greeting()) == (hub, b"SSH-")
        assert tunnel.tunnel_id in (folder / "tunnels.jsonl").read_text()
        assert "hub.sock was removed; this hub listens at" in (folder / "hub.log").read_text()
        assert client.stop()

    def test_a_replaced_hub_hands_its_tunnels_over_when_their_connections_are_closed(
        self, service: TunnelingService, folder: Path, tunnel: OpenTunnel
    ) -> None:
        """A user removed the folder, and asked for a tunnel before the hub had noticed."""
        run = [sys.executable, "-m", "tunnelproxy", "hub", "run"]
        with Process(run, folder.parent / "log") as replaced:
            replaced.wait_for_output("the hub is ready")
            adopt(tunnel)
            adopt(open_tunnel(service, thing="idle"), "idle")
            with socket.socket(fileno=client.open_stream("thing1", "SSH1")) as stream:
                replaced.popen.send_signal(signal.SIGSTOP)
                folder.rename(folder.with_name("elsewhere"))
                with pytest.raises(client.HubError, match="there is no tunnel to idle"):
                    client.ensure("idle")
                replaced.popen.send_signal(signal.SIGCONT)
                wait_for(lambda: things() == ["idle"], "the new hub holds the unused tunnel")
                assert pid() != replaced.pid
                # The connection through the other tunnel continues.
                assert stream.recv(4) == b"SSH-"
            assert replaced.wait() == 0
        assert things() == ["idle", "thing1"]
        assert greeting() == b"SSH-"

    def test_a_hub_that_does_not_listen_is_reported(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire, "LISTEN_SECONDS", 0.1)
        folder.mkdir(mode=0o700)
        with (folder / location.LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4711\n")
            lock.flush()
            with pytest.raises(client.HubError) as caught:
                client.status()
        assert_documented("Hub does not listen", f"thing1 cannot be reached: {caught.value}")

    def test_all_processes_resolve_a_relative_folder_alike(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            patch.setenv("IOTOPS_TUNNEL_DIR", "relhub")
            with pytest.raises(client.HubError, match="there is no tunnel to nothing"):
                client.ensure("nothing")
            assert (tmp_path / "relhub" / location.SOCKET_NAME).exists()
            assert client.stop()

    def test_an_impossible_folder_is_reported(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("IOTOPS_TUNNEL_DIR", "/tmp/" + 100 * "x")
            assert_documented("Hub's folder too long", complaint())
            patch.setenv("IOTOPS_TUNNEL_DIR", "~nobody-here/hub")
            assert_documented("No such folder", complaint())


def test_a_closed_pipe_makes_the_status_exit_silently(folder: Path) -> None:
    status = f"{sys.executable} -m tunnelproxy hub status"
    done = subprocess.run(
        ["bash", "-c", f"{status} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("141\n", "")
