# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines of ``tunnelproxy`` as in the guide, and the errors for mistyped ones."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from peers.device import HttpServer, proxy_environment
from peers.process import REPOSITORY, Process, free_port, wait_for
from peers.proxies import OpenTunnel, ProxyPair, open_tunnel, start_proxy
from peers.service import TunnelingService
from tunnelproxy import __version__


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpServer]:
    server = HttpServer(tmp_path / "http", "the device is well\n")
    yield server
    server.stop()


def run(arguments: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tunnelproxy"), *arguments]
    return subprocess.run(
        command, check=False, env=dict(environment), cwd=folder, capture_output=True, text=True, timeout=30
    )


def complaint(arguments: list[str], environment: Mapping[str, str], folder: Path) -> str:
    """Run a command line that must fail, and return its only line of output."""
    done = run(arguments, environment, folder)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("tunnelproxy: error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15) as response:
        text: str = response.read().decode()
    return text


def listening_port(source: Process, service_id: str) -> int:
    return int(source.wait_for_output(rf"{service_id}: listening on 127.0.0.1:(\d+)")[1])


@pytest.mark.parametrize("destination_start", ["config files", "-d"])
@pytest.mark.parametrize("source_start", ["config files", "-s", "picked ports"])
def test_every_command_line_of_the_guide_starts(
    service: TunnelingService, http: HttpServer, tmp_path: Path, destination_start: str, source_start: str
) -> None:
    tunnel = open_tunnel(service, ["HTTP1", "SSH1"])
    ports = {"HTTP1": free_port(), "SSH1": free_port()}
    starts = {
        "destination config files": ["-m", "dst", "--config-dir", str(tmp_path / "dst")],
        "destination -d": ["-d", f"HTTP1={http.port},SSH1=22"],
        "source config files": ["-m", "src", "--config-dir", str(tmp_path / "src")],
        "source -s": ["-s", f"HTTP1={ports['HTTP1']},SSH1={ports['SSH1']}"],
        "source picked ports": ["-m", "src"],
    }
    for name, text in {
        "dst": f"HTTP1 = {http.port}\nSSH1 = 22\n",
        "src": f"HTTP1 = {ports['HTTP1']}\nSSH1 = {ports['SSH1']}\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "any name.ini").write_text(text)
    region = ["-r", "us-east-1"]
    with ExitStack() as stack:
        destination = stack.enter_context(
            start_proxy(
                service,
                tunnel.destination_token,
                [*region, *starts[f"destination {destination_start}"]],
                tmp_path / "destination.log",
            )
        )
        destination.wait_for_output("connected to")
        source = stack.enter_context(
            start_proxy(
                service, tunnel.source_token, [*region, *starts[f"source {source_start}"]], tmp_path / "source.log"
            )
        )
        port = listening_port(source, "HTTP1")
        assert source_start == "picked ports" or port == ports["HTTP1"]
        assert fetch(port) == "the device is well\n"
        source.wait_for_output("HTTP1 stream 1 connection 1: opened")
        destination.wait_for_output("HTTP1 stream 1 connection 1: connected to")
        assert (source.stop(), destination.stop()) == (0, 0)


def test_the_default_config_dir_is_config(service: TunnelingService, http: HttpServer, tmp_path: Path) -> None:
    tunnel = open_tunnel(service, ["HTTP1"])
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "SSHDestination.ini").write_text(f"HTTP1 = {http.port}\n")
    command = ["env", "-C", str(tmp_path), sys.executable, str(REPOSITORY / "tunnelproxy"), "-m", "dst"]
    with Process(command, tmp_path / "log", proxy_environment(service, tunnel.destination_token)) as destination:
        destination.wait_for_output(rf"HTTP1: will connect to localhost:{http.port}")


@pytest.mark.parametrize(
    "how",
    [["-t", "TOKEN", "-i", "CLIENT"], ["-kiCLIENT", "--access-token=TOKEN"], ["--client-token", "CLIENT", "-tTOKEN"]],
)
def test_tokens_are_removed_from_the_arguments(service: TunnelingService, tmp_path: Path, how: list[str]) -> None:
    tunnel = open_tunnel(service)
    client_token = f"-{uuid.uuid4()}"
    given = [word.replace("TOKEN", tunnel.source_token).replace("CLIENT", client_token) for word in how]
    environment = {**os.environ, **service.environment, "AWSIOT_TUNNEL_ACCESS_TOKEN": "which the arguments outrank"}
    command = [sys.executable, "-m", "tunnelproxy", *given, "-m", "src", "-v", "6"]
    with Process(command, tmp_path / "log", environment) as source:
        source.wait_for_output("listening on")
        seen = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert any("tunnelproxy" in line and "-m src" in line for line in seen)
        for secret in (tunnel.source_token, client_token):
            assert not [line for line in seen if secret in line]
            assert secret not in source.output()
        assert "the shell's history may contain it: pass it in AWSIOT_TUNNEL_ACCESS_TOKEN" in source.output()


@pytest.mark.parametrize("how", ["argument", "file", "variable"])
def test_a_client_token_allows_reusing_the_access_token(service: TunnelingService, tmp_path: Path, how: str) -> None:
    tunnel = open_tunnel(service)
    client_token = str(uuid.uuid4())
    (tmp_path / "proxy.ini").write_text(f"access-token = {tunnel.source_token}\nclient-token = {client_token}\n")
    arguments, variables = {
        "argument": (["-i", client_token], {"AWSIOT_TUNNEL_ACCESS_TOKEN": tunnel.source_token}),
        "file": (["--config", str(tmp_path / "proxy.ini")], {}),
        "variable": (
            [],
            {"AWSIOT_TUNNEL_ACCESS_TOKEN": tunnel.source_token, "AWSIOT_TUNNEL_CLIENT_TOKEN": client_token},
        ),
    }[how]
    command = [sys.executable, "-m", "tunnelproxy", "-m", "src", *arguments]
    for turn in ("first", "second"):
        with Process(command, tmp_path / turn, {**os.environ, **service.environment, **variables}) as source:
            source.wait_for_output("listening on")


def test_the_whole_configuration_can_be_in_a_file(service: TunnelingService, http: HttpServer, tmp_path: Path) -> None:
    tunnel = open_tunnel(service, ["HTTP1"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWSIOT_")}
    common = f"proxy-endpoint = {service.data}\ncapath = {service.ca}\n"
    port = free_port()
    with ExitStack() as stack:
        for name, text, ready in (
            (
                "destination",
                f"access-token = {tunnel.destination_token}\ndestination-app = HTTP1={http.port} # web\n",
                "connected to",
            ),
            ("source", f"access-token = {tunnel.source_token}\nsource-listen-port = HTTP1={port}\n", "listening on"),
        ):
            (tmp_path / f"{name}.ini").write_text(common + text)
            command = [sys.executable, "-m", "tunnelproxy", "--config", tmp_path / f"{name}.ini"]
            stack.enter_context(Process(command, tmp_path / name, environment)).wait_for_output(ready)
        assert fetch(port) == "the device is well\n"


def test_without_host_verification_every_start_logs_a_warning(service: TunnelingService, tmp_path: Path) -> None:
    tunnel = open_tunnel(service)
    client_token = str(uuid.uuid4())
    environment = {**proxy_environment(service, tunnel.source_token), "AWSIOT_TUNNEL_CLIENT_TOKEN": client_token}
    del environment["AWSIOT_TUNNEL_CAPATH"]
    command = [sys.executable, "-m", "tunnelproxy", "-m", "src", "-k"]
    for turn in ("first", "second"):
        with Process(command, tmp_path / turn, environment) as source:
            source.wait_for_output("WARNING -k/--no-ssl-host-verify: the certificate of .* is not verified")
            source.wait_for_output("listening on")


def test_exported_settings_can_be_changed_and_used(service: TunnelingService, http: HttpServer, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    done = run(["--export-default-settings", str(path)], os.environ, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = path.read_text()
    path.write_text(text.replace('"max_active_connections": "128"', '"max_active_connections": "1"'))
    assert path.read_text() != text
    with ExitStack() as stack:
        options = ["--settings-json", str(path)]
        pair = stack.enter_context(ProxyPair(service, tmp_path, {"HTTP1": http.port}, options))
        first, second = (
            stack.enter_context(socket.create_connection(("127.0.0.1", pair.ports["HTTP1"]), 15)) for _ in range(2)
        )
        pair.source.wait_for_output("connection 1: opened")
        assert second.recv(1) == b""
        pair.source.wait_for_output("HTTP1: rejected a connection: there are 1 already")
        first.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert first.recv(4) == b"HTTP"


def test_the_settings_limit_the_retries(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    websocket = {"connect_retry_count": 3, "retry_delay_ms": 20}
    path.write_text(json.dumps({"tunneling": {"proxy": {"websocket": websocket}}}))
    arguments = ["-m", "src", "-e", f"127.0.0.1:{free_port()}", "--settings-json", str(path)]
    done = run(arguments, {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x"}, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("trying again in") == 2
    assert done.stderr.splitlines()[-1].startswith("tunnelproxy: error: cannot reach 127.0.0.1")


def test_without_reconnecting_the_proxy_exits_when_the_link_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"tunneling": {"proxy": {"websocket": {"reconnect_on_data_error": "false"}}}}')
    with TunnelingService() as service:
        tunnel = open_tunnel(service)
        options = ["-m", "src", "--settings-json", str(path)]
        with start_proxy(service, tunnel.source_token, options, tmp_path / "log") as source:
            source.wait_for_output("listening on")
            service.kill()
            assert source.wait() == 1
            assert "tunnelproxy: error: " in source.output()


class Visited:
    """A local service that records who has connected."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.address = listening.getsockname()

    def peer(self, port: int) -> object:
        """Have a client connect to the source's port, and return the address from which the server sees it connect."""
        with socket.create_connection(("127.0.0.1", port)):
            self._listening.settimeout(15)
            accepted, address = self._listening.accept()
            accepted.close()
            return address


def test_a_destination_connects_from_the_bind_address(service: TunnelingService, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        visited = Visited(listening)
        addresses = {"SSH1": f"127.0.0.1:{visited.address[1]}"}
        with ProxyPair(service, tmp_path, addresses, destination_options=["-b", "127.0.0.2"]) as pair:
            assert visited.peer(pair.ports["SSH1"])[0] == "127.0.0.2"  # type: ignore[index]


@pytest.mark.parametrize("how", ["-b", "default_bind_address"])
def test_a_source_listens_on_the_bind_address(service: TunnelingService, tmp_path: Path, how: str) -> None:
    tunnel = open_tunnel(service)
    path = tmp_path / "settings.json"
    path.write_text('{"tunneling": {"proxy": {"default_bind_address": "127.0.0.2"}}}')
    options = ["-b", "127.0.0.2"] if how == "-b" else ["--settings-json", str(path)]
    with start_proxy(service, tunnel.source_token, ["-m", "src", *options], tmp_path / "log") as source:
        port = int(source.wait_for_output(r"SSH1: listening on 127.0.0.2:(\d+)")[1])
        socket.create_connection(("127.0.0.2", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_an_ipv6_destination(service: TunnelingService, tmp_path: Path) -> None:
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listening:
        visited = Visited(listening)
        with ProxyPair(service, tmp_path, {"SSH1": f"[::1]:{visited.address[1]}"}) as pair:
            assert visited.peer(pair.ports["SSH1"])[0] == "::1"  # type: ignore[index]


def test_a_unix_socket_as_destination(service: TunnelingService, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/app.sock")
        listening.listen()
        with ProxyPair(service, tmp_path, {"SSH1": f"{folder}/app.sock"}) as pair:
            assert Visited(listening).peer(pair.ports["SSH1"]) == ""


@pytest.mark.parametrize("end", ["source", "destination"])
def test_the_proxy_exits_with_status_0_when_the_tunnel_is_closed(
    service: TunnelingService, tmp_path: Path, end: str
) -> None:
    tunnel = open_tunnel(service)
    token, options = {
        "source": (tunnel.source_token, ["-m", "src"]),
        "destination": (tunnel.destination_token, ["-d", "SSH1=22,HTTP1=80"]),
    }[end]
    with start_proxy(service, token, options, tmp_path / "log") as proxy:
        proxy.wait_for_output("connected to")
        service.boto3_client().close_tunnel(tunnelId=tunnel.tunnel_id)
        assert proxy.wait() == 0
        assert "the tunnel is closed or has expired" in proxy.output()


def test_version_and_help(tmp_path: Path) -> None:
    for option in ("-V", "--version"):
        done = run([option], os.environ, tmp_path)
        assert (done.returncode, done.stdout) == (0, f"tunnelproxy {__version__}\n")
    for option in ("-h", "--help"):
        done = run([option], os.environ, tmp_path)
        assert done.returncode == 0
        assert "--destination-app" in done.stdout


def test_the_highest_verbosity_logs_no_token(service: TunnelingService, tmp_path: Path) -> None:
    tunnel = open_tunnel(service)
    with start_proxy(service, tunnel.source_token, ["-m", "src", "-v", "6"], tmp_path / "log") as source:
        source.wait_for_output("listening on")
        assert tunnel.source_token not in source.output()
    assert tunnel.source_token not in service.log_text()


def test_a_process_with_a_token_leaves_no_core_file(service: TunnelingService, tmp_path: Path) -> None:
    tunnel = open_tunnel(service)
    with start_proxy(service, tunnel.source_token, ["-m", "src"], tmp_path / "log") as source:
        source.wait_for_output("listening on")
        limits = Path(f"/proc/{source.pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0", limits)


class TestComplaints:
    """Invalid input: one clear line each, and exit status 1."""

    @pytest.fixture
    def tunnel(self, service: TunnelingService) -> OpenTunnel:
        return open_tunnel(service)

    def test_no_token(self, service: TunnelingService, tmp_path: Path) -> None:
        environment = {**os.environ, **service.environment}
        environment.pop("AWSIOT_TUNNEL_ACCESS_TOKEN", None)
        assert "no access token: give one in AWSIOT_TUNNEL_ACCESS_TOKEN, or with -t" in complaint(
            ["-m", "src"], environment, tmp_path
        )

    def test_a_used_token(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        with start_proxy(service, tunnel.source_token, ["-m", "src"], tmp_path / "log") as first:
            first.wait_for_output("listening on")
        line = complaint(["-m", "src"], proxy_environment(service, tunnel.source_token), tmp_path)
        assert "the access token was used before" in line
        assert "rotate it" in line
        assert "channel-id" in line

    def test_an_unknown_token(self, service: TunnelingService, tmp_path: Path) -> None:
        line = complaint(["-m", "src"], proxy_environment(service, "not-a-token"), tmp_path)
        assert "does not know the access token" in line

    def test_the_source_token_at_the_destination(
        self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path
    ) -> None:
        line = complaint(["-d", "SSH1=22,HTTP1=80"], proxy_environment(service, tunnel.source_token), tmp_path)
        assert "the access token is for the other end of the tunnel; use the destination access token here" in line

    def test_a_closed_tunnel(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        service.boto3_client().close_tunnel(tunnelId=tunnel.tunnel_id)
        line = complaint(["-m", "src"], proxy_environment(service, tunnel.source_token), tmp_path)
        assert "the tunnel is closed or has expired; open another" in line

    def test_a_service_that_is_not_offered(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        line = complaint(["-s", "VNC=5900"], proxy_environment(service, tunnel.source_token), tmp_path)
        assert "does not offer VNC: -s/--source-listen-port has VNC, the tunnel carries SSH1, HTTP1" in line

    def test_a_service_that_is_not_mapped(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        line = complaint(["-d", "SSH1=22"], proxy_environment(service, tunnel.destination_token), tmp_path)
        assert "no address for HTTP1: -d/--destination-app has SSH1, the tunnel carries SSH1, HTTP1" in line

    def test_a_port_in_use(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            arguments = ["-s", f"SSH1={port}", "--strict"]
            line = complaint(arguments, proxy_environment(service, tunnel.source_token), tmp_path)
        assert f"SSH1: cannot listen on localhost:{port}: the port is in use" in line

    def test_an_unknown_region_format(self, tmp_path: Path) -> None:
        environment = {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x"}
        assert "'mars' is not an AWS region" in complaint(["-r", "mars", "-m", "src"], environment, tmp_path)

    def test_a_config_file_that_is_not_ini(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "a.ini").write_text("{json: no}\n")
        environment = proxy_environment(service, tunnel.destination_token)
        assert "config/a.ini is not an ini file of services" in complaint(
            ["-m", "dst", "--strict"], environment, tmp_path
        )
        assert "a destination needs addresses" in complaint(["-m", "dst"], environment, tmp_path)

    def test_an_untrusted_certificate(self, service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
        environment = proxy_environment(service, tunnel.source_token)
        del environment["AWSIOT_TUNNEL_CAPATH"]
        line = complaint(["-m", "src"], environment, tmp_path)
        assert "cannot be verified" in line
        assert "--capath" in line

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "one of -s/--source-listen-port, -d/--destination-app and -m/--mode is required"),
            (["-s", "1", "-d", "2"], "exclude each other"),
            (["-s", "1", "-m", "dst"], "-m/--mode dst contradicts -s"),
            (["-d", "1", "-m", "src"], "-m/--mode src contradicts -d"),
            (["-m", "both"], "argument -m/--mode: invalid choice: 'both'"),
            (["-m", "src", "-r", "us-east-1", "-e", "host"], "-e/--proxy-endpoint and -r/--region exclude"),
            (["-m", "src"], "one of -r/--region and -e/--proxy-endpoint is required"),
            (["-m", "src", "-e", "a b"], "'a b' is not an endpoint"),
            (["-m", "src", "-e", "host", "--config-dir", "nowhere"], "there is no directory nowhere"),
            (["-m", "dst", "-e", "host"], "a destination needs addresses: give -d/--destination-app"),
            (["-m", "src", "-e", "host", "-v", "much"], "argument -v/--verbose: 'much' is not a number"),
            (
                ["-m", "src", "-e", "host", "-c", "nowhere", "--strict"],
                "cannot read certificate authorities from 'nowhere'",
            ),
            (["--mode", "src", "--what"], "unrecognized arguments: --what"),
        ],
    )
    def test_invocations(self, arguments: list[str], words: str, tmp_path: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWSIOT_")}
        line = complaint(arguments, {**environment, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x"}, tmp_path)
        assert words in line


def test_each_failed_attempt_to_connect_is_logged(tmp_path: Path) -> None:
    environment = {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": "x"}
    arguments = [sys.executable, "-m", "tunnelproxy", "-m", "src", "-e", f"127.0.0.1:{free_port()}"]
    with Process(arguments, tmp_path / "log", environment) as source:
        source.wait_for_output("connection refused; is the tunneling service running there.*trying again in")
        wait_for(lambda: source.output().count("trying again") >= 2, "a second attempt")
        assert source.stop() == 0
        assert "Traceback" not in source.output()
