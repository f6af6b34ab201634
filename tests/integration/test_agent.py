# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent with a real broker (Mosquitto), a real tunneling service, and real servers behind it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.agent import AgentProcess, write_agent_configuration
from peers.broker import Mosquitto
from peers.device import HttpServer, Sshd, make_ssh_key
from peers.process import REPOSITORY, free_port, wait_for
from peers.proxies import OpenTunnel, open_tunnel, start_proxy
from peers.service import TunnelingService

PAGE = "the pump is well\n"
ONE_CLIENT_ID = "another client uses the same client ID, and each disconnects the other: stop one of them"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    server = HttpServer(tmp_path_factory.mktemp("http"), PAGE)
    yield server
    server.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto, service: TunnelingService, http: HttpServer) -> Iterator[AgentProcess]:
    with configured("pump", tmp_path, broker, service, {"HTTP1": http.port, "HTTP2": http.port}) as running:
        yield running


def configured(*arguments: Any) -> AgentProcess:
    """A configured agent that is not started yet."""
    return AgentProcess(write_agent_configuration(*arguments))


def notification(token: str, *services: str, **changes: Any) -> dict[str, Any]:
    """A notification as in AWS's guide."""
    return {
        "clientAccessToken": token,
        "clientMode": "destination",
        "region": "us-east-1",
        "services": list(services) or ["HTTP1"],
        **changes,
    }


def opened(service: TunnelingService, *services: str) -> OpenTunnel:
    """Open a tunnel whose tokens are not delivered automatically."""
    return open_tunnel(service, services or ("HTTP1",), thing="thing-without-agent")


def destination_status(service: TunnelingService, tunnel: OpenTunnel) -> str:
    described = service.boto3_client().describe_tunnel(tunnelId=tunnel.tunnel_id)
    return str(described["tunnel"]["destinationConnectionState"]["status"])


def wait_connected(service: TunnelingService, tunnel: OpenTunnel, seconds: float = 30.0) -> None:
    wait_for(lambda: destination_status(service, tunnel) == "CONNECTED", f"the agent is in {tunnel.tunnel_id}", seconds)


@contextmanager
def source_port(service: TunnelingService, token: str, folder: Path, service_id: str = "HTTP1") -> Iterator[int]:
    """A source proxy of the tunnel; the port that leads to a service of the device."""
    with start_proxy(service, token, ["-m", "src"], folder / f"source-{time.monotonic_ns()}.log") as source:
        yield int(source.wait_for_output(rf"{service_id}: listening on 127.0.0.1:(\d+)")[1])


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15) as answer:
        text: str = answer.read().decode()
    return text


def test_a_notification_makes_the_device_reachable(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService, tmp_path: Path
) -> None:
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    with source_port(service, tunnel.source_token, tmp_path) as port:
        assert fetch(port) == PAGE


def test_ssh_through_the_tunnel_reaches_the_sshd_of_the_device(
    broker: Mosquitto, service: TunnelingService, tmp_path: Path
) -> None:
    key = make_ssh_key(tmp_path / "key")
    sshd = Sshd(tmp_path / "sshd", key)
    tunnel = opened(service, "SSH1")
    try:
        with configured("pump", tmp_path, broker, service, {"SSH1": sshd.port}):
            broker.notify("pump", notification(tunnel.destination_token, "SSH1"))
            with source_port(service, tunnel.source_token, tmp_path, "SSH1") as port:
                known = tmp_path / "known_hosts"
                known.write_text(sshd.host_key_line("pump"))
                options = [f"UserKnownHostsFile={known}", "HostKeyAlias=pump", "StrictHostKeyChecking=yes"]
                said = subprocess.run(
                    ["ssh", "-F", "none", "-i", str(key), "-p", str(port)]
                    + [word for option in options for word in ("-o", option)]
                    + ["127.0.0.1", "echo I am $((40 + 2))"],
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=30,
                ).stdout
                assert said == "I am 42\n"
    finally:
        sshd.stop()


def test_a_unix_socket_is_served_when_it_is_allowed(
    broker: Mosquitto, service: TunnelingService, tmp_path: Path
) -> None:
    path = tmp_path / "camera.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        services = {"CAM1": str(path)}
        with configured("pump", tmp_path, broker, service, services, f"allow: [{path}]\n"):
            tunnel = opened(service, "CAM1")
            broker.notify("pump", notification(tunnel.destination_token, "CAM1"))
            listener.settimeout(15)
            with (
                source_port(service, tunnel.source_token, tmp_path, "CAM1") as port,
                socket.create_connection(("127.0.0.1", port), timeout=15) as viewer,
            ):
                viewer.sendall(b"look")
                camera, _ = listener.accept()
                with camera:
                    camera.settimeout(15)
                    assert camera.recv(100) == b"look"


def test_several_tunnels_are_served_at_once_and_closed_separately(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService, tmp_path: Path
) -> None:
    first, second = opened(service), opened(service)
    for tunnel in (first, second):
        broker.notify("pump", notification(tunnel.destination_token))
        wait_connected(service, tunnel)
    service.boto3_client().close_tunnel(tunnelId=first.tunnel_id)
    wait_for(lambda: agent.count("ended: Tunnel closed") == 1, "the agent leaves the closed tunnel")
    with source_port(service, second.source_token, tmp_path) as port:
        assert fetch(port) == PAGE


def test_a_rotated_token_replaces_the_connection_of_its_tunnel(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService, tmp_path: Path
) -> None:
    tunnel, other = opened(service), opened(service)
    for each in (tunnel, other):
        broker.notify("pump", notification(each.destination_token))
        wait_connected(service, each)
    rotated = service.boto3_client().rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="DESTINATION")
    broker.notify("pump", notification(rotated["destinationAccessToken"]))
    wait_for(lambda: agent.count("joining it at") == 3, "the agent uses the new token")
    wait_for(lambda: re.search(r"ended: .*revoked by a rotation", agent.output()), "the old connection is closed")
    wait_connected(service, tunnel)
    assert destination_status(service, other) == "CONNECTED"
    with source_port(service, tunnel.source_token, tmp_path) as port:
        assert fetch(port) == PAGE


def test_a_repeated_notification_is_ignored(agent: AgentProcess, broker: Mosquitto, service: TunnelingService) -> None:
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    wait_connected(service, tunnel)
    broker.notify("pump", notification(tunnel.destination_token))
    wait_for(lambda: agent.count("nothing to do") == 1, "the agent has seen it twice")
    assert agent.count("joining it at") == 1
    assert destination_status(service, tunnel) == "CONNECTED"


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"\xff{", "it is not JSON"),
        (b"[" * 8000, "it is not JSON"),
        (b'{"a": "' + b"a" * 9000 + b'"}', "more than 8192"),
        (b"[]", "it is not a JSON object"),
        (notification("token"[:0]), "it has no clientAccessToken"),
        (notification("SECRET\n"), "invalid characters"),
        (notification("SECRET", clientMode="source"), "its clientMode is 'source'"),
        (notification("SECRET", clientMode=None), "its clientMode is missing"),
        (notification("SECRET", services="HTTP1"), "not a list of service IDs"),
        (notification("SECRET", "HTTP1", "VNC1"), "no address for VNC1; the agent's services are HTTP1, HTTP2"),
    ],
)
def test_invalid_notifications_are_refused_and_logged(
    agent: AgentProcess, broker: Mosquitto, payload: Any, complaint: str
) -> None:
    broker.notify("pump", payload)
    wait_for(lambda: agent.count("notification refused: ") == 1, "the agent refuses")
    assert complaint in agent.output()
    assert "SECRET" not in agent.output()
    assert agent.count("joining it at") == 0


def test_the_number_of_tunnels_is_limited(
    broker: Mosquitto, service: TunnelingService, http: HttpServer, tmp_path: Path
) -> None:
    with configured("pump", tmp_path, broker, service, {"HTTP1": http.port}, "max_tunnels: 1\n") as agent:
        first, second = opened(service), opened(service)
        broker.notify("pump", notification(first.destination_token))
        wait_connected(service, first)
        broker.notify("pump", notification(second.destination_token))
        wait_for(lambda: agent.count("which is max_tunnels") == 1, "the second is refused")


def test_a_killed_broker_recovers_and_delivers_what_arrived_meanwhile(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService
) -> None:
    before, after = opened(service), opened(service)
    broker.notify("pump", notification(before.destination_token))
    wait_connected(service, before)
    broker.kill()
    wait_for(lambda: agent.count("trying again in") == 1, "the agent notices that its broker is gone")
    # The tunnel does not depend on the broker.
    assert destination_status(service, before) == "CONNECTED"
    began = time.monotonic()
    broker.start()
    # The broker keeps it in the agent's session, whether or not the agent has reconnected.
    broker.notify("pump", notification(after.destination_token))
    wait_connected(service, after, 40)
    print(f"healed {time.monotonic() - began:.1f} s after the broker was back")
    assert destination_status(service, before) == "CONNECTED"


def test_a_notification_for_a_stopped_agent_is_delivered_when_it_starts(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService
) -> None:
    agent.stop(signal.SIGKILL)
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    # The broker may also be restarted before the agent starts.
    wait_for(lambda: tunnel.destination_token.encode() in broker.saved(), "the broker has saved its state")
    broker.kill()
    broker.start()
    agent.start()
    wait_connected(service, tunnel)


def check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``tunnelproxy agent check`` on an agent's configuration."""
    command = [sys.executable, "-m", "tunnelproxy", "agent", "check", "--config", str(folder / "agent.yml"), *options]
    return subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=60)


def test_checking_the_broker_costs_the_agent_no_notification(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService
) -> None:
    while_it_ran = check(agent.folder, "--connect")
    assert (while_it_ran.returncode, while_it_ran.stderr) == (0, "")
    topic = "$aws/things/pump/tunnels/notify"
    assert f"127.0.0.1:{broker.port} allows pump-tunnels to subscribe to {topic}\n" in while_it_ran.stdout
    wait_for(lambda: agent.count("waiting for notifications") == 2, "the agent is back")
    agent.stop()
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    # The check must leave pending notifications for the agent.
    assert check(agent.folder, "--connect").returncode == 0
    agent.start()
    wait_connected(service, tunnel)


def test_a_check_quotes_the_brokers_refusal(tmp_path: Path, broker: Mosquitto, service: TunnelingService) -> None:
    folder = write_agent_configuration("pump", tmp_path, broker, service, {"HTTP1": 80})
    (folder / "password").write_text("not it")
    assert check(folder).returncode == 0
    refused = check(folder, "--connect")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"tunnelproxy: error: the MQTT broker 127.0.0.1:{broker.port}: it refuses pump: Not authorized\n"
    )
    broker.kill()
    refused = check(folder, "--connect")
    assert (refused.returncode, refused.stderr.endswith(": connection refused\n")) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_agent_reconnects_to_its_tunnels(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService, tmp_path: Path, number: int
) -> None:
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    wait_connected(service, tunnel)
    agent.stop(number)
    wait_for(lambda: destination_status(service, tunnel) == "DISCONNECTED", "the agent is gone")
    saved = agent.folder / "state" / "tunnels.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    agent.start()
    with source_port(service, tunnel.source_token, tmp_path) as port:
        assert fetch(port) == PAGE
    service.boto3_client().close_tunnel(tunnelId=tunnel.tunnel_id)
    wait_for(lambda: saved.read_text() == "[]", "the tunnel is forgotten")


def test_the_agent_reconnects_after_the_service_was_killed(broker: Mosquitto, http: HttpServer, tmp_path: Path) -> None:
    with TunnelingService() as service, configured("pump", tmp_path, broker, service, {"HTTP1": http.port}):
        tunnel = opened(service)
        broker.notify("pump", notification(tunnel.destination_token))
        wait_connected(service, tunnel)
        service.kill()
        began = time.monotonic()
        service.start()
        wait_connected(service, tunnel)
        print(f"healed within {time.monotonic() - began:.1f} s")


def test_an_agent_without_a_network_is_ready_and_waits(
    tmp_path: Path, broker: Mosquitto, service: TunnelingService, http: HttpServer
) -> None:
    agent = configured("pump", tmp_path, broker, service, {"HTTP1": http.port})
    broker.kill()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(15)
        command = [sys.executable, "-m", "tunnelproxy", "agent", "run", "--config", agent.folder / "agent.yml"]
        environment = {"PATH": "/usr/bin", "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as process:
            told = [systemd.recv(200).decode() for _ in range(4)]
            broker.start()
            wait_for(lambda: "STATUS=waiting" in systemd.recv(200).decode(), "it reports the connection", 40)
            process.terminate()
            wait_for(lambda: "STOPPING=1" in systemd.recv(200).decode(), "it reports that it is stopping")
            assert process.wait(10) == 0
    assert told[0].startswith("READY=1\nSTATUS=connecting to the MQTT broker")
    assert "WATCHDOG=1" in told[1:3]


def test_a_wrong_password_is_reported_and_retried(
    tmp_path: Path, broker: Mosquitto, service: TunnelingService, http: HttpServer
) -> None:
    agent = configured("pump", tmp_path, broker, service, {"HTTP1": http.port})
    (agent.folder / "password").write_text("not it")
    try:
        agent.start(until="it refuses pump: Not authorized; trying again")
        assert "not it" not in agent.output()
    finally:
        agent.stop()


def test_neither_log_nor_arguments_contain_secrets(
    agent: AgentProcess, broker: Mosquitto, service: TunnelingService
) -> None:
    tunnel = opened(service)
    broker.notify("pump", notification(tunnel.destination_token))
    wait_connected(service, tunnel)
    agent.stop()
    agent.start()
    arguments = Path(f"/proc/{agent.pid}/cmdline").read_text()
    for secret in (tunnel.destination_token, broker.passwords["pump"]):
        assert secret not in agent.output()
        assert secret not in arguments


def test_the_agent_keeps_running_without_a_broker(tmp_path: Path) -> None:
    (tmp_path / "agent.yml").write_text(
        f"thing: pump\nbroker: {{host: 127.0.0.1, port: {free_port()}}}\nservices: {{SSH1: 22}}\n"
    )
    command = [sys.executable, "-m", "tunnelproxy", "agent", "run", "--config", tmp_path / "agent.yml"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        process.terminate()
        assert process.wait(10) == 0
    assert "connection refused; trying again in" in lines[1]


def test_two_agents_with_the_same_client_id_report_that_they_disconnect_each_other(
    agent: AgentProcess, tmp_path: Path
) -> None:
    shutil.copytree(agent.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("agent.log"))
    with AgentProcess(tmp_path / "copy") as copy:
        wait_for(
            lambda: agent.count(ONE_CLIENT_ID) or copy.count(ONE_CLIENT_ID), "one of them reports what is wrong", 60
        )
