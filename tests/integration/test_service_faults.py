# SPDX-License-Identifier: GPL-3.0-or-later
"""Events in the life of a long-running service: a full disk, a flood, clock changes, and errors of accept(2)."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from websockets.exceptions import InvalidStatus

from peers.full_disk import SmallDisk, why_impossible
from peers.process import REPOSITORY, free_port, wait_for
from peers.service import TunnelingService

CLIENT_TOKEN = "0123456789abcdef" * 2
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

needs_mount = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())


def read_metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def impatient(service: TunnelingService) -> Any:
    """A client that does not retry."""
    return service.boto3_client("iotsecuretunneling", config=Config(retries={"max_attempts": 0}))


def api_connection(service: TunnelingService) -> http.client.HTTPSConnection:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(service.api.removeprefix("https://"), timeout=20, context=context)


def unsigned(connection: http.client.HTTPSConnection) -> int:
    connection.request("POST", "/", b"{}")
    response = connection.getresponse()
    response.read()
    return response.status


def refused_start(state_dir: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "tunnelproxy", "service", "run", "--state-dir", str(state_dir)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    return done.stderr


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", kib=1024) as small:
        yield small


@needs_mount
def test_a_full_disk_prevents_changes_until_it_has_space_and_breaks_nothing(disk: SmallDisk) -> None:
    port = free_port()
    service = TunnelingService("--metrics-port", str(port))
    service.state_dir = disk.path / "state"
    with service:
        client = impatient(service)
        opened = client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
        tunnel = opened["tunnelId"]
        with service.connect("source", opened["sourceAccessToken"], client_token=CLIENT_TOKEN):
            pass
        disk.fill()
        with pytest.raises(ClientError) as refused:
            open_for_ever(client)
        assert refused.value.response["Error"]["Code"] == "ServiceUnavailableException"
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
        for call in (client.rotate_tunnel_access_token, client.close_tunnel):
            settings = {"clientMode": "ALL"} if call == client.rotate_tunnel_access_token else {"delete": True}
            with pytest.raises(ClientError, match="has changed nothing"):
                call(tunnelId=tunnel, **settings)

        # Reading still works; this is more than fits into the last page of the audit log.
        for _ in range(20):
            client.list_tunnels()
        # A client that was connected reconnects with the token that was not rotated, and is known to be connected.
        with service.connect("source", opened["sourceAccessToken"], client_token=CLIENT_TOKEN) as source:
            source.recv(timeout=10)
            described = client.describe_tunnel(tunnelId=tunnel)["tunnel"]
            assert described["sourceConnectionState"]["status"] == "CONNECTED"
        # A token cannot be used for the first time now, because it could then be used twice.
        with (
            pytest.raises(InvalidStatus) as unavailable,
            service.connect("destination", opened["destinationAccessToken"]),
        ):
            pass
        assert unavailable.value.response.status_code == 503

        disk.empty()
        client.open_tunnel()
        with service.connect("destination", opened["destinationAccessToken"]) as destination:
            destination.recv(timeout=10)
        log = service.log_text()
        assert log.count("cannot write to the service's database") == 1
        assert "database or disk is full; free space on its disk" in log
        assert "service.db can be written again; writing failed " in log
        assert log.count("cannot write to the audit log") == log.count("audit.log can be written again") == 1
        assert "Traceback" not in log
        failed = read_metrics(port)
        assert failed['tunnelproxy_writes_failed_total{file="database"}'] >= 4
        assert failed['tunnelproxy_writes_failed_total{file="audit"}'] >= 1
        assert failed['tunnelproxy_failures_total{kind="any"}'] == 0
        for line in (service.state_dir / "audit.log").read_text().splitlines():
            assert line.startswith("{")
            assert line.endswith("}")


def open_for_ever(client: Any) -> None:
    while True:
        client.open_tunnel(description="x" * 1000)


@needs_mount
def test_on_a_full_disk_the_service_does_not_start_and_says_why(disk: SmallDisk) -> None:
    disk.fill()
    said = refused_start(disk.path / "state")
    assert re.search("^tunnelproxy: error: .*(No space left on device|disk is full); free space on its disk", said)


@needs_mount
def test_with_a_read_only_state_directory_the_service_does_not_start(disk: SmallDisk) -> None:
    (disk.path / "state").mkdir(mode=0o700)
    disk.remount("ro")
    said = refused_start(disk.path / "state")
    assert said.startswith("tunnelproxy: error: cannot ")
    assert "Read-only file system; " in said


def test_files_that_cannot_be_changed_are_like_a_full_disk() -> None:
    with TunnelingService() as service:
        client = impatient(service)
        tunnel = client.open_tunnel()["tunnelId"]
        with unchangeable(service.state_dir), pytest.raises(ClientError, match="ServiceUnavailableException"):
            client.close_tunnel(tunnelId=tunnel)
        client.close_tunnel(tunnelId=tunnel)
        assert client.describe_tunnel(tunnelId=tunnel)["tunnel"]["status"] == "CLOSED"


@contextlib.contextmanager
def unchangeable(folder: Path) -> Iterator[None]:
    paths = [folder, *folder.iterdir()]
    made = subprocess.run(["chattr", "+i", *paths], check=False, capture_output=True)
    try:
        if made.returncode:
            pytest.skip(f"this file system knows no chattr +i: {made.stderr.decode()}")
        yield
    finally:
        subprocess.run(["chattr", "-i", *paths], check=False, capture_output=True)


# A flood

FLOOD = 300
MOST_BYTES = 30 * 500


def test_a_flood_of_unsigned_requests_writes_little_and_is_counted() -> None:
    port = free_port()
    with TunnelingService("--metrics-port", str(port)) as service:
        connection = api_connection(service)
        assert {unsigned(connection) for _ in range(FLOOD)} == {403}
        outcome = (
            'tunnelproxy_control_call_seconds_count{operation="unknown",outcome="MissingAuthenticationTokenException"}'
        )
        assert read_metrics(port)[outcome] == FLOOD
        connection.close()
        service.stop()
        audit = (service.state_dir / "audit.log").read_text()
        assert len(audit) + len(service.log_text()) < MOST_BYTES
        (suppressed,) = re.findall(r'"event": "suppressed".*"count": (\d+), "addresses": 1', audit)
        assert audit.count('"event": "control"') + int(suppressed) == FLOOD
        assert f"{suppressed} more requests from 1 address were refused within " in service.log_text()


# A clock


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
def test_a_running_service_renews_its_certificate_but_does_not_start_with_an_expired_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0d")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # Timers are not affected.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    port = free_port()
    service = TunnelingService("--metrics-port", str(port), "--mqtt-port", "0")
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        service.start()
    with contextlib.ExitStack() as stack:
        stack.callback(service.remove)
        connection = api_connection(service)
        assert unsigned(connection) == 403
        ports = service.api.removeprefix("https://"), service.data, service.mqtt.removeprefix("mqtts://")
        (before,) = {certificate(address) for address in ports}
        clock.write_text("+370d")
        wait_for(lambda: certificate(ports[0]) != before, "a new certificate")
        assert {certificate(address) for address in ports} == {certificate(ports[0])}
        # No connection was interrupted.
        assert unsigned(connection) == 403
        assert read_metrics(port)[expiry("server")] > time.time() + 750 * 86_400

        clock.write_text("+3651d")
        wait_for(lambda: "authority" in service.log_text(), "a warning about the authority's expiry")
        assert "ca.pem has expired on " in service.log_text()
        assert read_metrics(port)[expiry("authority")] < time.time() + 3651 * 86_400
        service.stop()
        said = refused_start(service.state_dir, **environment)
        assert re.search("^tunnelproxy: error: the service's certificate authority .* has expired on ", said)


def expiry(which: str) -> str:
    return f'tunnelproxy_certificate_not_after_timestamp_seconds{{certificate="{which}"}}'


def certificate(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=20) as sock,
        context.wrap_socket(sock) as connection,
    ):
        found: bytes | None = connection.getpeercert(binary_form=True)
        assert found is not None
        return found


# Errors of accept(2)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_port_survives_errors_of_accept(tmp_path: Path) -> None:
    port = free_port()
    with TunnelingService("--metrics-port", str(port)) as service:
        trace = tmp_path / "trace"
        tracer = subprocess.Popen(
            [
                "strace",
                *("-f", "-p", str(service.pid), "-o", trace, "-e", "trace=accept,accept4"),
                *("-e", "inject=accept,accept4:error=EPROTO:when=1..3"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert tracer.stderr is not None
            attached = tracer.stderr.readline()
            if "attached" not in attached:
                pytest.skip(f"processes may not be traced here: {attached}")
            for _ in range(2):
                impatient(service).list_tunnels()
                assert read_metrics(port)
                with pytest.raises(InvalidStatus), service.connect("source", "unknown"):
                    pass
        finally:
            tracer.terminate()
            tracer.communicate(timeout=10)
        assert trace.read_text().count("EPROTO") >= 3
