# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service``: starting, stopping and restarting it, and what other users can see of it."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import InvalidStatus

from peers.service import ROOT, TunnelingService, closing


@pytest.fixture
def service() -> Iterator[TunnelingService]:
    with TunnelingService("-v", "6") as running:
        yield running


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunnelproxy", "service", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restarted_service_keeps_its_tunnels_and_ports(service: TunnelingService, end: str) -> None:
    client = service.boto3_client()
    opened = client.open_tunnel(destinationConfig={"services": ["SSH1"]}, tags=[{"key": "a", "value": "b"}])
    client_token = "c" * 32
    where, environment = (service.api, service.data), service.environment
    with service.connect("source", opened["sourceAccessToken"], client_token=client_token) as connected:
        before = client.describe_tunnel(tunnelId=opened["tunnelId"])["tunnel"]
        assert before["sourceConnectionState"]["status"] == "CONNECTED"
        assert getattr(service, end)() == (0 if end == "stop" else -9)
        assert closing(connected) == ((1001, "Service is stopping") if end == "stop" else (1006, ""))
    service.start()

    assert (service.api, service.data) == where
    assert service.read_environment() == environment
    after = client.describe_tunnel(tunnelId=opened["tunnelId"])["tunnel"]
    assert after["sourceConnectionState"]["status"] == "DISCONNECTED"
    unchanged = ("status", "createdAt", "tags", "destinationConfig", "timeoutConfig")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    # The state of tokens is kept too: which ones can be reused, and which ones have been used.
    with service.connect("source", opened["sourceAccessToken"], client_token=client_token) as again:
        again.recv(timeout=10)
    with service.connect("destination", opened["destinationAccessToken"]) as first:
        first.recv(timeout=10)
    with pytest.raises(InvalidStatus), service.connect("destination", opened["destinationAccessToken"]):
        pass


def test_a_tunnel_expires_at_the_end_of_its_lifetime(service: TunnelingService) -> None:
    client = service.boto3_client()
    opened = client.open_tunnel(destinationConfig={"services": ["SSH1"]})
    with service.connect("source", opened["sourceAccessToken"]) as connection:
        with sqlite3.connect(service.state_dir / "service.db") as database:
            # Do not wait for twelve hours: let the tunnel expire now.
            database.execute("UPDATE tunnels SET expires_at = ?", (time.time(),))
        database.close()
        # A new tunnel makes the service recalculate which one expires next.
        client.open_tunnel()
        assert closing(connection) == (1000, "Tunnel expired")
    assert client.describe_tunnel(tunnelId=opened["tunnelId"])["tunnel"]["status"] == "CLOSED"


def test_no_secret_is_in_the_database_the_log_or_the_process_list(service: TunnelingService) -> None:
    client = service.boto3_client()
    opened = client.open_tunnel(destinationConfig={"services": ["SSH1"]})
    rotated = client.rotate_tunnel_access_token(tunnelId=opened["tunnelId"], clientMode="SOURCE")
    client_token = "0123456789abcdef" * 2
    with service.connect("source", rotated["sourceAccessToken"], client_token=client_token) as connection:
        connection.recv(timeout=10)
    with pytest.raises(InvalidStatus), service.connect("source", opened["sourceAccessToken"]):
        pass
    tokens = [
        opened["sourceAccessToken"],
        opened["destinationAccessToken"],
        rotated["sourceAccessToken"],
        client_token,
    ]
    state = b"".join(file.read_bytes() for file in service.state_dir.rglob("*") if file.is_file())
    process = psutil.Process(service.pid)
    visible = service.log_text() + " ".join(process.cmdline()) + " ".join(process.environ().values())
    assert opened["tunnelId"] in visible
    for token in tokens:
        assert token.encode() not in state
        assert token not in visible
    assert service.environment["AWS_SECRET_ACCESS_KEY"] not in visible


def test_only_the_owner_can_read_the_state(service: TunnelingService) -> None:
    for path in [service.state_dir, *service.state_dir.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_service_leaves_no_core_dump(service: TunnelingService) -> None:
    assert psutil.Process(service.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_a_second_service_on_the_same_state_is_refused(service: TunnelingService) -> None:
    done = run("run", "--state-dir", service.state_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"tunnelproxy: error: .*process {service.pid}\) already runs.*\n", done.stderr)


@pytest.mark.parametrize("option", ["--api-port", "--data-port"])
def test_the_error_for_a_port_in_use_names_the_option(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("run", "--state-dir", tmp_path / "state", option, str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"tunnelproxy: error: port {port} .* in use; give {option} .*\n", done.stderr)


def test_another_port_is_used_if_that_of_the_last_run_is_taken(service: TunnelingService) -> None:
    old = service.data
    service.stop()
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2]))):
        service.start()
    assert service.data != old
    assert service.environment["AWSIOT_TUNNEL_ENDPOINT"] == service.data


def test_the_error_for_a_foreign_address_names_it(tmp_path: Path) -> None:
    done = run("run", "--state-dir", tmp_path / "state", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "no address 192.0.2.1" in done.stderr


def test_service_env_without_a_service_fails_with_the_remedy(tmp_path: Path) -> None:
    done = run("env", "--state-dir", tmp_path / "state")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"tunnelproxy: error: there is no tunneling service .*service run --state-dir .*\n", done.stderr
    )


def test_service_env_works_after_the_service_has_stopped(service: TunnelingService) -> None:
    service.stop()
    done = run("env", "--state-dir", service.state_dir)
    assert done.returncode == 0
    assert all(line.startswith("export ") for line in done.stdout.splitlines())
    assert "export AWS_ENDPOINT_URL_IOTSECURETUNNELING=" in done.stdout
    assert "export AWS_ACCESS_KEY_ID=" in done.stdout


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        ((), "protobuf is missing, which tunnelproxy needs; install it with: pip install 'iot-tunnelproxy'"),
        (("aiohappyeyeballs", "google", "websockets"), "pip install 'iot-tunnelproxy[service]'"),
    ],
    ids=["nothing", "no extra"],
)
def test_the_error_names_the_missing_library_or_extra(tmp_path: Path, installed: tuple[str, ...], remedy: str) -> None:
    site_packages = Path(sysconfig.get_path("purelib"))
    for name in installed:
        (tmp_path / name).symlink_to(site_packages / name)
    # -S: without the packages that pip has installed.
    command = [sys.executable, "-S", "-m", "tunnelproxy", "service", "run", "--state-dir", "/nonexistent/state"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
