# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub with a real service, real devices, and the real ssh behind its connector."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from peers.device import Device
from peers.process import REPOSITORY, free_port, wait_for
from peers.proxies import OpenTunnel, open_tunnel
from peers.service import TunnelingService
from tunnelproxy.hub import client


@pytest.fixture
def hub_folder(service: TunnelingService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This test's own hub, which uses the service and is stopped after the test."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(folder))
    use(service, monkeypatch)
    yield folder
    client.stop()


def use(service: TunnelingService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)


def adopt(tunnel: OpenTunnel, thing: str = "thing1", **changes: Any) -> dict[str, Any]:
    settings = {
        "tunnel_id": tunnel.tunnel_id,
        "tunnel_arn": tunnel.arn,
        "source_token": tunnel.source_token,
        "services": ["SSH1", "HTTP1"],
        **changes,
    }
    return client.adopt(thing, **settings)


def account(thing: str = "thing1") -> str:
    return str(client.locate(thing)["account"])


def banner(descriptor: int) -> bytes:
    with socket.socket(fileno=descriptor) as stream:
        return stream.recv(4)


def ssh(device: Device, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    known_hosts = device.folder / "known_hosts"
    known_hosts.write_text(device.sshd.host_key_line(device.thing))
    connector = shlex.join(client.connector_command(device.thing, "SSH1", account=account(device.thing)))
    arguments = ["-F", "none", "-i", str(device.ssh_key), "-o", "BatchMode=yes", "-o", f"ProxyCommand={connector}"]
    arguments += ["-o", "ProxyUseFdpass=yes", "-o", f"UserKnownHostsFile={known_hosts}", *options]
    return subprocess.run(
        ["ssh", *arguments, device.thing, *command], capture_output=True, text=True, timeout=60, check=False
    )


def test_ssh_uses_a_descriptor_from_the_hub(
    service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    adopt(tunnel)
    done = ssh(device, "echo", "over the tunnel")
    assert (done.returncode, done.stdout) == (0, "over the tunnel\n"), done.stderr


def test_http_has_a_loopback_port_and_ssh_has_none(
    service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    row = adopt(tunnel)
    with urllib.request.urlopen(f"http://127.0.0.1:{row['services']['HTTP1']['port']}/", timeout=15) as response:
        assert response.read() == b"thing1 is well\n"
    assert row["services"]["SSH1"]["port"] is None
    status = client.status()
    assert status is not None
    listening = [c for c in psutil.Process(status["pid"]).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", row["services"]["HTTP1"]["port"])]


def page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15) as response:
        content: bytes = response.read()
    return content


def listening(service: str = "HTTP1", thing: str = "thing1") -> int | None:
    """A service's port according to the hub, without changing any."""
    port: int | None = client.ensure(thing)["services"][service]["port"]
    return port


def test_the_user_chooses_the_port(service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
    first = adopt(tunnel)["services"]["HTTP1"]["port"]
    with socket.create_connection(("127.0.0.1", first)) as before:
        wanted = free_port()
        client.ensure("thing1", ports={"HTTP1": wanted})
        assert page(wanted) == b"thing1 is well\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first))
        before.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert before.recv(8) == b"HTTP/1.0"

    client.ensure("thing1", ports={"HTTP1": 0})
    assert listening() == wanted
    client.ensure("thing1", ports={"HTTP1": None})
    assert listening() is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", wanted))
    client.ensure("thing1", ports={"HTTP1": 0})
    port = listening()
    assert port
    assert page(port) == b"thing1 is well\n"


def test_the_next_hub_keeps_the_chosen_ports(service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
    wanted = free_port()
    adopt(tunnel, ports={"HTTP1": wanted})
    client.stop()
    assert listening() == wanted
    client.stop()
    with socket.create_server(("127.0.0.1", wanted)):
        assert listening() is None
        with pytest.raises(client.HubError, match=f"cannot have port {wanted} on 127.0.0.1: another program listens"):
            client.ensure("thing1", ports={"HTTP1": wanted})
    assert client.ensure("thing1", ports={"HTTP1": wanted})["services"]["HTTP1"]["port"] == wanted
    client.ensure("thing1", ports={"HTTP1": None})
    client.stop()
    assert listening() is None


def test_an_unavailable_port_changes_nothing(service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
    port = adopt(tunnel)["services"]["HTTP1"]["port"]
    other = open_tunnel(service, thing="thing2")
    adopt(other, "thing2")
    with pytest.raises(client.HubError, match=f"port {port} on 127.0.0.1: HTTP1 of thing1 uses it") as caught:
        client.ensure("thing2", ports={"HTTP1": port})
    assert caught.value.code == "port-in-use"
    with pytest.raises(client.HubError, match="SSH1 of thing1 cannot have a port"):
        client.ensure("thing1", ports={"SSH1": free_port()})
    with pytest.raises(client.HubError, match="does not offer HTTP9"):
        client.ensure("thing1", ports={"HTTP9": free_port()})
    assert listening() == port
    assert page(port) == b"thing1 is well\n"


def test_a_stream_to_a_server_that_waits_for_a_request(
    service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    adopt(tunnel)
    with socket.socket(fileno=client.open_stream("thing1", "HTTP1", speaks_first=False)) as stream:
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert stream.recv(8) == b"HTTP/1.0"


def test_status_shows_counters_and_the_round_trip(
    service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    adopt(tunnel)
    stream = client.open_stream("thing1", "SSH1")
    command = [sys.executable, "-m", "tunnelproxy", "hub", "status"]

    def row() -> dict[str, Any]:
        shown = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True, cwd=REPOSITORY).stdout)
        found: dict[str, Any] = shown["tunnels"][0]
        return found

    wait_for(lambda: row()["round_trip_ms"], "a round trip was measured")
    assert row()["services"]["SSH1"]["connections"] == 1
    assert banner(stream) == b"SSH-"
    wait_for(lambda: row()["services"]["SSH1"]["connections"] == 0, "the connection is closed")
    assert row()["services"]["SSH1"]["bytes_out"] > len("SSH-2.0-")
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert f"thing1 in {client.locate('thing1')['account_name']}: connected, round trip" in table
    assert tunnel.tunnel_id in table


def test_concurrent_callers_start_one_hub(service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
    def ask(_: int) -> int:
        command = [
            sys.executable,
            "-c",
            "from tunnelproxy.hub import client\ntry:\n client.ensure('nothing')\n"
            "except client.HubError as e: assert e.code == 'no-tunnel', e\nprint(client.status()['pid'])",
        ]
        return int(subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY, text=True).stdout)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


def test_the_connector_restarts_a_killed_hub(
    service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    port = adopt(tunnel)["services"]["HTTP1"]["port"]
    status = client.status()
    assert status is not None
    os.kill(status["pid"], signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(status["pid"]), "the hub is gone")
    done = ssh(device, "echo", "back")
    assert (done.returncode, done.stdout) == (0, "back\n"), done.stderr
    after = client.status()
    assert after is not None
    assert after["pid"] != status["pid"]
    assert after["tunnels"][0]["tunnel_id"] == tunnel.tunnel_id
    assert after["tunnels"][0]["services"]["HTTP1"]["port"] == port


def test_the_next_hub_takes_over_the_tunnels_of_a_stopped_one(
    service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    adopt(tunnel)
    assert client.stop()
    assert client.status() is None
    assert client.ensure("thing1")["state"] == "connected"


def test_a_tunnel_uses_the_latest_callers_http_proxy_if_its_own_is_gone(
    tunnel: OpenTunnel, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(tunnel)
    client.stop()
    (record,) = map(json.loads, (hub_folder / "tunnels.jsonl").read_text().splitlines())
    record["way"]["web_proxy"] = {"https_proxy": f"http://127.0.0.1:{free_port()}"}
    (hub_folder / "tunnels.jsonl").write_text(json.dumps(record) + "\n")
    assert client.ensure("thing1")["state"] == "connected"


def test_a_tunnel_that_a_hub_cannot_use_is_kept_for_the_next(tunnel: OpenTunnel, hub_folder: Path) -> None:
    adopt(tunnel)
    client.stop()
    good = (hub_folder / "tunnels.jsonl").read_text()
    record = json.loads(good)
    record["way"]["web_proxy"] = {"https_proxy": "gopher://nowhere"}
    (hub_folder / "tunnels.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(client.HubError, match="there is no tunnel to thing1"):
        client.ensure("thing1")
    client.stop()
    assert "gopher://nowhere" in (hub_folder / "tunnels.jsonl").read_text()
    (hub_folder / "tunnels.jsonl").write_text(good)
    assert client.ensure("thing1")["state"] == "connected"


def test_a_tunnel_of_an_earlier_release_is_found_by_callers_that_may_describe_it(
    tunnel: OpenTunnel, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(tunnel)
    client.stop()
    state = hub_folder / "tunnels.jsonl"
    record = json.loads(state.read_text())
    way = record.pop("way")
    del record["account"], record["owner"]
    old = {**record, "endpoint": way["endpoint"], "capath": way["capath"], "aws": {"AWS_REGION": "us-east-1"}}
    state.write_text(json.dumps(old) + "\n")
    row = client.ensure("thing1")
    assert (row["tunnel_id"], row["account"]) == (tunnel.tunnel_id, account())
    client.stop()
    assert json.loads(state.read_text())["account"] == row["account"]
    with TunnelingService() as other:
        state.write_text(json.dumps(old) + "\n")
        use(other, monkeypatch)
        with pytest.raises(client.HubError, match="there is no tunnel to thing1"):
            client.ensure("thing1")


def test_no_secret_is_shown(service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path) -> None:
    adopt(tunnel)
    ssh(device, "true", options=("-vvv",))
    secrets = [tunnel.source_token, tunnel.destination_token, service.environment["AWS_SECRET_ACCESS_KEY"]]
    shown = json.dumps(client.status()) + (hub_folder / "hub.log").read_text() + ssh(device, "true").stderr
    shown += "\n".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    assert not [secret for secret in secrets if secret in shown]
    for path in hub_folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_released_tunnel_is_forgotten(service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
    adopt(tunnel)
    assert client.holds(tunnel.tunnel_id, account())
    assert not client.holds(tunnel.tunnel_id, "aws:000000000000:us-east-1")
    assert not client.release(tunnel.tunnel_id, "aws:000000000000:us-east-1")
    assert client.release(tunnel.tunnel_id, account())
    assert not client.holds(tunnel.tunnel_id, account())
    assert tunnel.source_token not in (hub_folder / "tunnels.jsonl").read_text()


def test_both_ends_are_described(
    service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
) -> None:
    adopt(tunnel)
    found = client.describe("thing1")
    assert (found["source"], found["destination"]) == ("connected", "connected")
    device.stop_proxy()
    wait_for(lambda: client.describe("thing1")["destination"] == "disconnected", "the device is gone")


class TestComplaints:
    """Errors name the end that is at fault."""

    def fails(self, thing: str = "thing1", service: str = "SSH1") -> tuple[str, str]:
        with pytest.raises(client.HubError) as caught:
            client.open_stream(thing, service)
        return caught.value.code, str(caught.value)

    def test_no_tunnel(self, hub_folder: Path) -> None:
        code, words = self.fails()
        assert code == "no-tunnel"
        where = client.locate("thing1")["account_name"]
        assert words.startswith(f"there is no tunnel to thing1 in {where}: open one with the module iotops.tunnel")

    def test_a_service_that_is_not_offered(
        self, service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path
    ) -> None:
        adopt(tunnel)
        code, words = self.fails(service="VNC1")
        assert code == "service-not-offered"
        assert "does not offer VNC1; it carries SSH1, HTTP1" in words

    def test_no_destination_connected(
        self, service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
    ) -> None:
        device.stop_proxy()
        adopt(tunnel)
        code, words = self.fails()
        assert code == "device-not-connected"
        assert "the device thing1 is not connected to its tunnel" in words

    def test_device_without_a_running_sshd(
        self, service: TunnelingService, device: Device, tunnel: OpenTunnel, hub_folder: Path
    ) -> None:
        device.start_proxy_at(tunnel_token(service, tunnel), "SSH1=127.0.0.1:1,HTTP1=127.0.0.1:1")
        adopt(tunnel)
        done = ssh(device, "true")
        assert done.returncode == 255
        assert (
            "iotops.tunnel: the device thing1 refused SSH1: check that the server behind SSH1 runs there" in done.stderr
        )

    def test_a_used_token(self, service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
        adopt(tunnel)
        client.release(tunnel.tunnel_id, account())
        with pytest.raises(client.HubError, match="the access token was used before") as caught:
            adopt(tunnel)
        assert caught.value.code == "token-used"
        assert not client.holds(tunnel.tunnel_id, account())

    def test_a_closed_tunnel(self, service: TunnelingService, tunnel: OpenTunnel, hub_folder: Path) -> None:
        adopt(tunnel)
        service.boto3_client().close_tunnel(tunnelId=tunnel.tunnel_id)
        wait_for(lambda: state_of_first() == "tunnel-closed", "the hub knows that the tunnel is closed")
        code, words = self.fails()
        assert code == "tunnel-closed"
        assert "was closed: open another" in words

    def test_service_not_running(self, device: Device, hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with TunnelingService() as own:
            use(own, monkeypatch)
            tunnel = open_tunnel(own)
            adopt(tunnel)
            own.stop()
            wait_for(lambda: (client.status() or {})["tunnels"][0]["cause"], "the hub has noticed")
            code, words = self.fails()
        assert code == "not-linked"
        assert "is not linked: cannot reach" in words

    def test_a_hub_that_cannot_start(self, hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(client.HubError, match="cannot start the hub: it said nothing"):
            client.ensure("thing1")


def state_of_first() -> str:
    status = client.status()
    assert status is not None
    return str(status["tunnels"][0]["state"])


def tunnel_token(service: TunnelingService, tunnel: OpenTunnel) -> str:
    """A fresh destination token."""
    rotated = service.boto3_client().rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="DESTINATION")
    return str(rotated["destinationAccessToken"])


def test_a_hub_without_tunnels_exits(hub_folder: Path) -> None:
    command = [sys.executable, "-m", "tunnelproxy", "hub", "run", "--idle-seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=REPOSITORY)
    assert done.returncode == 0
    assert "the hub exits" in done.stderr


def test_a_second_hub_is_refused(hub_folder: Path) -> None:
    with pytest.raises(client.HubError):
        client.ensure("nothing")
    command = [sys.executable, "-m", "tunnelproxy", "hub", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=REPOSITORY)
    assert done.returncode == 1
    assert "a hub is already running" in done.stderr


def test_a_hub_started_while_another_exits_takes_its_place(hub_folder: Path) -> None:
    hub_folder.mkdir(mode=0o700, exist_ok=True)
    with (hub_folder / "hub.lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = pool.submit(client.ensure, "nothing")
        log = hub_folder / "hub.log"
        wait_for(lambda: log.exists() and "waiting for another hub" in log.read_text(), "the next hub waits")
        fcntl.flock(lock, fcntl.LOCK_UN)
        with pytest.raises(client.HubError, match="there is no tunnel to nothing in"):
            asked.result()


def test_the_client_needs_only_the_standard_library() -> None:
    """-S leaves out site-packages: only the standard library can be imported."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tunnelproxy.hub.client; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # Modules that are imported on demand.
    assert {"http.client", "subprocess", "asyncio"}.isdisjoint(done.stdout.split())
