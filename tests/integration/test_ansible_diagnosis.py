# SPDX-License-Identifier: GPL-3.0-or-later
"""Each cause for which a device cannot be reached, as an operator sees it, with the documented message."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from peers.clock import faketime_library
from peers.collection import Controller, Outcome
from peers.fleet import Fleet
from peers.old_libraries import old_library
from peers.process import Process, wait_for
from peers.proxies import OpenTunnel, start_proxy
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from tunnelproxy.hub import client
from tunnelproxy.protocol.framing import FrameReader, Message, frame, parse

DEVICE = "device-1"
NOWHERE = "127.0.0.1:9"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(DEVICE, variables={"iotops_tunnel_answer_timeout": 3}) as running:
        yield running


@pytest.fixture
def controller(fleet: Fleet) -> Iterator[Controller]:
    fleet.controller.disconnect()
    return fleet.controller


def unreachable(outcome: Outcome) -> str:
    assert outcome.word == "UNREACHABLE", outcome.result
    return outcome.message


# Things that are each broken in a different way, and are all pinged in one run of Ansible.


class Ward:
    """Opens tunnels to things, passes them to the controller's hub, and plays the devices at their far end."""

    def __init__(self, fleet: Fleet, folder: Path, stack: ExitStack) -> None:
        self.service: TunnelingService = fleet.service
        self.api = fleet.service.boto3_client()
        self.device = fleet.devices[DEVICE]
        self.folder = folder
        self.stack = stack

    def open(self, thing: str, services: tuple[str, ...] = ("SSH1", "HTTP1")) -> OpenTunnel:
        config = {"thingName": thing, "services": list(services)}
        opened = self.api.open_tunnel(destinationConfig=config)
        return OpenTunnel(
            opened["tunnelId"], opened["tunnelArn"], opened["sourceAccessToken"], opened["destinationAccessToken"]
        )

    def hold(
        self, thing: str, tunnel: OpenTunnel, services: tuple[str, ...] = ("SSH1", "HTTP1"), **changes: str
    ) -> None:
        client.adopt(
            thing,
            tunnel_id=tunnel.tunnel_id,
            tunnel_arn=tunnel.arn,
            source_token=tunnel.source_token,
            services=services,
            caller=client.Caller({**os.environ, **self.service.environment, **changes}, "/"),
        )

    def held(self, thing: str, services: tuple[str, ...] = ("SSH1", "HTTP1")) -> OpenTunnel:
        tunnel = self.open(thing, services)
        self.hold(thing, tunnel, services)
        return tunnel

    def connect(
        self, thing: str, tunnel: OpenTunnel, ssh_port: int, *options: str, http_port: int | None = None
    ) -> None:
        mapping = f"SSH1=127.0.0.1:{ssh_port},HTTP1=127.0.0.1:{http_port or self.device.http.port}"
        log = self.folder / f"{thing}.log"
        proxy = start_proxy(self.service, tunnel.destination_token, ["-d", mapping, *options], log)
        self.stack.enter_context(proxy)
        proxy.wait_for_output("connected to")

    def wait_until(self, thing: str, state: str) -> None:
        def reached() -> bool:
            tunnels = (client.status() or {})["tunnels"]
            return any(row["thing"] == thing and row["state"] == state for row in tunnels)

        wait_for(reached, f"the hub says of {thing}: {state}")


def closed(ward: Ward, thing: str) -> None:
    ward.api.close_tunnel(tunnelId=ward.held(thing).tunnel_id)
    ward.wait_until(thing, "tunnel-closed")


def expired(ward: Ward, thing: str) -> None:
    tunnel = ward.held(thing)
    with contextlib.closing(sqlite3.connect(ward.service.state_dir / "service.db")) as database, database:
        # Twelve hours are long: let them be over.
        query = "UPDATE tunnels SET expires_at = ? WHERE tunnel_id = ?"
        database.execute(query, (time.time(), tunnel.tunnel_id))
    # A new tunnel makes the service look which one expires next.
    ward.api.open_tunnel()
    ward.wait_until(thing, "tunnel-closed")


def token_used(ward: Ward, thing: str) -> None:
    tunnel = ward.open(thing)
    with ward.service.connect("source", tunnel.source_token, client_token=str(uuid.uuid4())):
        pass
    with pytest.raises(client.HubError):
        ward.hold(thing, tunnel)


def token_rotated(ward: Ward, thing: str) -> None:
    tunnel = ward.open(thing)
    ward.api.rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="SOURCE")
    with pytest.raises(client.HubError):
        ward.hold(thing, tunnel)


def not_linked(ward: Ward, thing: str) -> None:
    """Nothing listens any longer at the address of the data plane."""
    with pytest.raises(client.HubError):
        ward.hold(thing, ward.open(thing), AWSIOT_TUNNEL_ENDPOINT=NOWHERE)


def not_connected(ward: Ward, thing: str) -> None:
    ward.held(thing)


def speaks_v1(ward: Ward, thing: str) -> None:
    """A V1 device, message by message: it answers on the only stream that it knows."""
    tunnel = ward.held(thing)
    connection = ward.stack.enter_context(ward.service.connect("destination", tunnel.destination_token, version=1))

    def answer() -> None:
        reader = FrameReader()
        with contextlib.suppress(Exception):
            while True:
                for message in map(parse, reader.feed(connection.recv())):
                    if message.type == Message.STREAM_START:
                        data = Message(type=Message.DATA, streamId=message.streamId, payload=b"SSH-2.0-old\r\n")
                        connection.send(frame(data))

    threading.Thread(target=answer, daemon=True).start()


def speaks_v2(ward: Ward, thing: str) -> None:
    """A V2 device whose only connection is in use."""
    ward.connect(thing, ward.held(thing), ward.device.sshd.port, "--protocol-version", "V2")
    caller = client.Caller({**os.environ, **ward.service.environment}, "/")
    ward.stack.enter_context(socket.socket(fileno=client.open_stream(thing, "SSH1", caller=caller)))


def silent(ward: Ward, thing: str) -> None:
    listener = ward.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    ward.connect(thing, ward.held(thing), listener.getsockname()[1])


class Ill(BaseHTTPRequestHandler):
    """Reports why it is unhealthy, with escape sequences for the operator's terminal."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(f"disk full \x1b[31m☃\nsecond line {'x' * 1000}".encode())

    def log_message(self, *_: object) -> None:
        pass


def ill(ward: Ward, thing: str) -> None:
    server = ward.stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Ill))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ward.stack.callback(server.shutdown)
    ward.connect(thing, ward.held(thing), ward.device.sshd.port, http_port=server.server_address[1])


def only_ssh(ward: Ward, thing: str) -> None:
    ward.held(thing, ("SSH1",))


def nothing(ward: Ward, thing: str) -> None:
    """There is no tunnel."""


@dataclass(frozen=True)
class Broken:
    cause: str
    thing: str
    make: Callable[[Ward, str], None]
    variables: dict[str, Any]


BROKEN = [
    Broken("No tunnel", "t-none", nothing, {}),
    Broken("Tunnel closed", "t-closed", closed, {}),
    Broken("Tunnel expired", "t-expired", expired, {}),
    Broken("Token used", "t-used", token_used, {}),
    Broken("Token replaced", "t-rotated", token_rotated, {}),
    Broken("Tunnel not linked", "t-unlinked", not_linked, {"iotops_tunnel_tunnel_endpoint": NOWHERE}),
    Broken("Device not connected", "t-away", not_connected, {}),
    Broken("Old protocol, several services", "t-v1", speaks_v1, {}),
    Broken("Old protocol, second connection", "t-v2", speaks_v2, {}),
    Broken("SSH server silent", "t-silent", silent, {}),
    Broken("Not healthy", "t-ill", ill, {"iotops_tunnel_health_check": True, "iotops_tunnel_health_path": "/health"}),
    Broken("Health check without an answer", "t-only-ssh", only_ssh, {"iotops_tunnel_health_check": True}),
    Broken(
        "Health path", "t-path", not_connected, {"iotops_tunnel_health_check": True, "iotops_tunnel_health_path": "ü"}
    ),
    Broken("Service not offered", "t-vnc", not_connected, {"iotops_tunnel_service": "VNC1"}),
    Broken("Name not possible", "t-name", nothing, {"iotops_tunnel_service": "a;b"}),
    Broken("Port taken by a program", "t-port", not_connected, {"iotops_tunnel_ports": "HTTP1={taken}"}),
    Broken("Port of another thing", "t-same-port", not_connected, {"iotops_tunnel_ports": "HTTP1={theirs}"}),
    Broken("Port for SSH", "t-ssh-port", not_connected, {"iotops_tunnel_ports": "SSH1=2222"}),
    Broken("Invalid port", "t-no-port", not_connected, {"iotops_tunnel_ports": "HTTP1"}),
    Broken("Invalid `any-host`", "t-any-host", not_connected, {"iotops_tunnel_ports": "VNC1=any,any-host"}),
]


def test_each_broken_thing_has_its_own_message(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    """All in one run, because each run of Ansible takes a second or two."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOTOPS_TUNNEL_DIR", controller.environment["IOTOPS_TUNNEL_DIR"])
        ward = Ward(fleet, tmp_path, stack)
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        places = {"taken": taken, "theirs": fleet.tunnel(DEVICE)["services"]["HTTP1"]["port"]}
        hosts: dict[str, dict[str, Any]] = {}
        for broken in BROKEN:
            broken.make(ward, broken.thing)
            hosts[broken.thing] = {
                name: value.format(**places) if isinstance(value, str) else value
                for name, value in broken.variables.items()
            }
        devices = json.loads(controller.inventory.read_text())["devices"]["vars"]
        inventory = tmp_path / "broken.json"
        inventory.write_text(
            json.dumps({"broken": {"hosts": hosts, "vars": {**devices, "iotops_tunnel_open": "never"}}})
        )
        options = ("-i", str(inventory), "-f", str(len(BROKEN)))
        outcomes = controller.module("ansible.builtin.ping", "broken", *options)

    for broken in BROKEN:
        assert_documented(broken.cause, unreachable(outcomes[broken.thing]))
    # The device's text is truncated, and contains no escape sequences for the operator's terminal.
    assert "HTTP1 answers /health with status 503: disk full  [31m☃ (to connect anyway" in outcomes["t-ill"].message


# Faults of the controller, or of its connection to the services.


def opening(controller: Controller, *options: str, **environment: str) -> str:
    """Ping a thing that the hub does not know, in another environment."""
    clean = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", **environment}
    clean.setdefault("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    command = ("-e", f"iotops_tunnel_thing=t-{uuid.uuid4()}", "-e", "iotops_tunnel_wait=0", *options)
    return unreachable(controller.module("ansible.builtin.ping", DEVICE, *command, env=clean)[DEVICE])


AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Wrong:
    cause: str
    environment: dict[str, str]
    options: tuple[str, ...] = ()


NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
ROLE = "arn:aws:iam::123456789012:role/ops"
CONFIG = f"""
[profile sso]
sso_session = company
sso_account_id = 123456789012
sso_role_name = ops
[sso-session company]
sso_start_url = https://company.example.com/start
sso_region = us-east-1
[profile process]
credential_process = sh -c "echo the vault is sealed >&2; exit 1"
[profile mfa]
role_arn = {ROLE}
source_profile = plain
mfa_serial = arn:aws:iam::123456789012:mfa/alice
[profile plain]
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_secret_access_key = example
"""

NTLM = b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: NTLM\r\n\r\n"

WRONG = [
    Wrong("Wrong AWS keys", {"AWS_SECRET_ACCESS_KEY": "wrong"}),
    Wrong("No AWS keys", NO_KEYS),
    Wrong("No such profile", {**NO_KEYS, "AWS_PROFILE": "nobody"}),
    Wrong("Single sign-on", {**NO_KEYS, "AWS_PROFILE": "sso", "AWS_CONFIG_FILE": "{config}"}),
    Wrong("Credential process", {**NO_KEYS, "AWS_PROFILE": "process", "AWS_CONFIG_FILE": "{config}"}),
    Wrong("MFA code", {**NO_KEYS, "AWS_PROFILE": "mfa", "AWS_CONFIG_FILE": "{config}"}),
    Wrong("Web identity", {**NO_KEYS, "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token", "AWS_ROLE_ARN": ROLE}),
    Wrong("No region", {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}),
    Wrong("Thing not registered", {}, ("-e", "iotops_tunnel_unregistered=false")),
    Wrong("Wrong region", {"AWS_REGION": "eu-west-1"}),
    Wrong("Control API not reachable", {"AWS_ENDPOINT_URL_IOTSECURETUNNELING": "https://127.0.0.1:9"}),
    Wrong("Control API not trusted", {"AWS_CA_BUNDLE": AUTHORITIES}),
    Wrong("Data plane not reachable", {"AWSIOT_TUNNEL_ENDPOINT": "127.0.0.1:9"}),
    Wrong("Data plane not trusted", {"AWSIOT_TUNNEL_CAPATH": AUTHORITIES}),
    Wrong("Data plane without TLS", {"AWSIOT_TUNNEL_ENDPOINT": "127.0.0.1:{hangs_up}"}),
    Wrong(
        "HTTP proxy's authentication",
        {"HTTPS_PROXY": "http://127.0.0.1:{ntlm}", "NO_PROXY": "{api}"},
    ),
    Wrong("Certificate or clock", {"LD_PRELOAD": "{faketime}", "FAKETIME": "@2099-01-01 00:00:00"}),
    Wrong("Device did not come", {}),
]


def test_each_wrong_environment_has_its_own_message(fleet: Fleet, controller: Controller, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    places: dict[str, object] = {
        "config": config,
        "api": urlsplit(fleet.service.api).netloc,
        "faketime": faketime_library(),
    }

    def say(wrong: Wrong) -> str:
        environment = {name: value.format(**places) for name, value in wrong.environment.items()}
        return opening(controller, *wrong.options, **environment)

    before = len(fleet.service.boto3_client().list_tunnels()["tunnelSummaries"])
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        places["hangs_up"] = stack.enter_context(answering(b""))
        places["ntlm"] = stack.enter_context(answering(NTLM))
        said = [*pool.map(say, WRONG)]
        # None was paid for, except for the device that did not connect.
        assert len(fleet.service.boto3_client().list_tunnels()["tunnelSummaries"]) == before + 1
        for wrong, message in zip(WRONG, said):
            assert_documented(wrong.cause, message)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server on the loopback that sends this answer to each request, and hangs up; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_an_old_library(controller: Controller, tmp_path: Path) -> None:
    old = {"IOTOPS_TUNNEL_DIR": str(tmp_path / "hub"), "PYTHONPATH": str(old_library("websockets==10.4"))}
    assert_documented("Old library", opening(controller, **old))


def test_no_boto3(controller: Controller, tmp_path: Path) -> None:
    """In a separate hub, whose Python finds a botocore that cannot be imported."""
    (tmp_path / "botocore").mkdir()
    (tmp_path / "botocore" / "__init__.py").write_text("raise ImportError('not here')\n")
    other = {"IOTOPS_TUNNEL_DIR": str(tmp_path / "hub"), "PYTHONPATH": str(tmp_path)}
    said = opening(controller, **other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOTOPS_TUNNEL_DIR", other["IOTOPS_TUNNEL_DIR"])
        client.stop()
    assert_documented("No boto3", said)


def test_a_folder_for_the_hub_that_others_may_enter(controller: Controller, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert_documented("Hub's folder", opening(controller, IOTOPS_TUNNEL_DIR=str(tmp_path)))


# Faults in the middle of a command.


def interrupted(controller: Controller, folder: Path, interrupt: Callable[[], None], command: str = "sleep 60") -> str:
    """Start a command on the device, interfere with it, and return Ansible's message."""
    begun = folder / "begun"
    arguments = f"touch {begun}; {command}"
    with subprocess.Popen(
        ["ansible", DEVICE, "-m", "ansible.builtin.raw", "-a", arguments],
        cwd=controller.home,
        env=controller.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_for(begun.exists, "the command has begun", 30)
            interrupt()
            assert running.stdout is not None
            output = running.stdout.read()
        finally:
            running.kill()
    _, brace, result = output.partition("UNREACHABLE! => ")
    assert brace, output
    return str(json.JSONDecoder().raw_decode(result)[0]["msg"])


def test_the_hub_is_killed_in_the_middle_of_a_command(controller: Controller, tmp_path: Path) -> None:
    pid = controller.hub_status()["pid"]
    said = interrupted(controller, tmp_path, lambda: os.kill(pid, signal.SIGKILL))
    assert_documented("Hub ended", said)
    assert f"process {pid}" in said
    assert controller.module("ansible.builtin.ping", DEVICE)[DEVICE].word == "SUCCESS"


def test_the_devices_proxy_is_killed_in_the_middle_of_a_command(
    fleet: Fleet, controller: Controller, tmp_path: Path
) -> None:
    device = fleet.devices[DEVICE]
    proxy = device.proxy
    assert isinstance(proxy, Process)
    try:
        said = interrupted(controller, tmp_path, lambda: os.kill(proxy.pid, signal.SIGKILL))
    finally:
        fleet.connect_anew(DEVICE)
    assert_documented("Device went away", said)


def test_the_devices_sshd_is_killed_in_the_middle_of_a_command(
    fleet: Fleet, controller: Controller, tmp_path: Path
) -> None:
    sshd = psutil.Process(fleet.devices[DEVICE].sshd.process.pid)

    def kill_session() -> None:
        for session in sshd.children():
            session.kill()

    assert_documented("SSH session ended", interrupted(controller, tmp_path, kill_session))


def test_a_command_with_sshs_own_exit_status(controller: Controller, tmp_path: Path) -> None:
    assert_documented("Status 255", interrupted(controller, tmp_path, lambda: None, command="exit 255"))
