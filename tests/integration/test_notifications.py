# SPDX-License-Identifier: GPL-3.0-or-later
"""The service notifies devices of their tunnels, with its embedded broker and with an external one."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from peers.agent import AgentProcess, write_agent_configuration
from peers.broker import SERVICE_USER, Mosquitto
from peers.device import HttpServer
from peers.full_disk import SmallDisk, why_impossible
from peers.process import REPOSITORY, Process, free_port, wait_for
from peers.proxies import OpenTunnel, open_tunnel, start_proxy
from peers.service import TunnelingService
from peers.thing import ThingClient, notify_topic
from peers.troubleshooting import assert_documented

PAGE = "the pump is well\n"


@pytest.fixture
def service() -> Iterator[TunnelingService]:
    with TunnelingService("--mqtt-port", "0", "-v", "6") as running:
        yield running


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    server = HttpServer(tmp_path_factory.mktemp("http"), PAGE)
    yield server
    server.stop()


@pytest.fixture
def agent(service: TunnelingService, http: HttpServer, tmp_path: Path) -> Iterator[AgentProcess]:
    service.add_thing("pump", tmp_path / "pump", "--services", f"HTTP1={http.port}")
    with AgentProcess(tmp_path / "pump") as running:
        yield running


def tunnel_for(service: TunnelingService, thing: str) -> OpenTunnel:
    return open_tunnel(service, ["HTTP1"], thing)


def connected(service: TunnelingService, tunnel: OpenTunnel) -> bool:
    described = service.boto3_client().describe_tunnel(tunnelId=tunnel.tunnel_id)["tunnel"]
    return bool(described["destinationConnectionState"]["status"] == "CONNECTED")


def wait_connected(service: TunnelingService, tunnel: OpenTunnel, seconds: float = 30.0) -> None:
    wait_for(lambda: connected(service, tunnel), f"the agent is in {tunnel.tunnel_id}", seconds)


def fetch(service: TunnelingService, tunnel: OpenTunnel, folder: Path) -> str:
    log = folder / f"source-{time.monotonic_ns()}.log"
    with start_proxy(service, tunnel.source_token, ["-m", "src"], log) as source:
        port = source.wait_for_output(r"HTTP1: listening on 127.0.0.1:(\d+)")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15) as answer:
            page: str = answer.read().decode()
    return page


def broker_process(service: TunnelingService) -> psutil.Process:
    [process] = [child for child in psutil.Process(service.pid).children() if child.name() == "mosquitto"]
    return process


def run(service: TunnelingService, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        service.command(*arguments), cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=30
    )


def test_opening_a_tunnel_makes_its_thing_reachable(
    service: TunnelingService, agent: AgentProcess, tmp_path: Path
) -> None:
    assert fetch(service, tunnel_for(service, "pump"), tmp_path) == PAGE


def test_rotating_the_destination_token_reconnects_the_thing(
    service: TunnelingService, agent: AgentProcess, tmp_path: Path
) -> None:
    tunnel = tunnel_for(service, "pump")
    wait_connected(service, tunnel)
    service.boto3_client().rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="DESTINATION")
    wait_for(lambda: re.search(r"ended: .*revoked by a rotation", agent.output()), "the old connection is closed")
    wait_connected(service, tunnel)
    assert fetch(service, tunnel, tmp_path) == PAGE


def test_the_payload_is_as_aws_documents_and_reaches_only_its_thing(service: TunnelingService, tmp_path: Path) -> None:
    port = int(service.mqtt.rpartition(":")[2])
    things = []
    for name in ("pump", "valve"):
        service.add_thing(name, tmp_path / name)
        things.append(ThingClient(name, tmp_path / name, port))
    wait_for(lambda: all(thing.is_let_in() for thing in things), "the broker knows the things")
    with things[0] as pump, things[1] as valve:
        pump.subscribe(notify_topic("pump"))
        valve.subscribe(notify_topic("valve"))
        opened = service.boto3_client().open_tunnel(
            destinationConfig={"thingName": "valve", "services": ["SSH1", "HTTP1"]}
        )
        last = tunnel_for(service, "pump")
        wait_for(lambda: pump.heard and valve.heard, "both are notified")
    assert valve.heard == [
        (
            "$aws/things/valve/tunnels/notify",
            {
                "clientAccessToken": opened["destinationAccessToken"],
                "clientMode": "destination",
                "region": service.environment["AWS_REGION"],
                "services": ["SSH1", "HTTP1"],
            },
        )
    ]
    assert [content["clientAccessToken"] for _, content in pump.heard] == [last.destination_token]


def test_a_tunnel_without_a_thing_causes_no_notification(service: TunnelingService) -> None:
    service.boto3_client().open_tunnel(destinationConfig={"services": ["HTTP1"]})
    assert "the MQTT broker has the notification" not in service.log_text()


def test_a_killed_service_takes_its_broker_down_and_recovers_after_a_restart(
    service: TunnelingService, agent: AgentProcess, tmp_path: Path
) -> None:
    before = tunnel_for(service, "pump")
    wait_connected(service, before)
    broker, where = broker_process(service), service.mqtt
    service.kill()
    wait_for(lambda: not broker.is_running(), "the broker exits too")
    began = time.monotonic()
    service.start()
    assert service.mqtt == where
    wait_connected(service, before, 40)
    print(f"the open tunnel healed {time.monotonic() - began:.1f} s after the service was started")
    after = tunnel_for(service, "pump")
    wait_connected(service, after, 40)
    print(f"a new tunnel healed {time.monotonic() - began:.1f} s after the service was started")
    assert fetch(service, after, tmp_path) == PAGE


def test_a_killed_broker_is_restarted_and_pending_notifications_are_delivered(
    service: TunnelingService, agent: AgentProcess, tmp_path: Path
) -> None:
    broker = broker_process(service)
    service.boto3_client()  # not measured: the first one takes long
    broker.kill()
    began = time.monotonic()
    tunnel = tunnel_for(service, "pump")
    assert time.monotonic() - began < 2
    wait_connected(service, tunnel, 40)
    print(f"healed {time.monotonic() - began:.1f} s after the broker was killed")


# Prints a line when all connections are open; half of them send the first bytes of a handshake.
_IDLE_CLIENT = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
held = []
for number in range(2000):
    held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), source_address=("127.0.0.66", 0)))
    if number % 2:
        held[-1].send(bytes.fromhex("160301"))
print("holding", len(held), flush=True)
time.sleep(600)
"""


def test_two_thousand_idle_connections_do_not_block_things(service: TunnelingService, tmp_path: Path) -> None:
    service.add_thing("pump", tmp_path / "pump")
    port = service.mqtt.rpartition(":")[2]
    pump = ThingClient("pump", tmp_path / "pump", int(port))
    wait_for(pump.is_let_in, "the broker knows the thing")
    with Process([sys.executable, "-c", _IDLE_CLIENT, port], tmp_path / "idle_client.log") as idle_client:
        idle_client.wait_for_output("holding 2000")
        began = time.monotonic()
        assert pump.is_let_in()
        took = time.monotonic() - began
        assert idle_client.popen.poll() is None
    print(f"accepted after {took:.1f} s, with 2000 idle connections")
    assert took < 8


def test_a_token_on_disk_is_private_and_removed_after_delivery(service: TunnelingService, agent: AgentProcess) -> None:
    store = service.state_dir / "mqtt" / "mosquitto.db"
    agent.stop()
    token = tunnel_for(service, "pump").destination_token.encode()
    wait_for(lambda: store.exists() and token in store.read_bytes(), "the broker has saved what waits")
    holders = [path.name for path in service.state_dir.rglob("*") if path.is_file() and token in path.read_bytes()]
    assert holders == [store.name]
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    agent.start()
    wait_for(lambda: token not in store.read_bytes(), "the broker has forgotten what it delivered")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", kib=2048) as small:
        yield small


def read_metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())
def test_a_broker_that_dies_on_a_full_disk_restarts_once_there_is_space(disk: SmallDisk, tmp_path: Path) -> None:
    metrics = free_port()
    options = ("--mqtt-port", "0", "--metrics-port", str(metrics), "--audit-log", str(tmp_path / "audit.log"))
    service = TunnelingService(*options)
    service.state_dir = disk.path / "state"
    with service:
        service.add_thing("pump", tmp_path / "pump")
        pump = ThingClient("pump", tmp_path / "pump", int(service.mqtt.rpartition(":")[2]))
        wait_for(pump.is_let_in, "the broker knows the thing")
        assert read_metric(metrics, "tunnelproxy_mqtt_broker_connected") == 1
        disk.fill()
        broker_process(service).kill()
        said = wait_for(
            lambda: re.search(r"mosquitto cannot be started: .*No space left.*", service.log_text()),
            "the reason",
        )
        assert_documented("Service: broker cannot be started", said[0])
        assert read_metric(metrics, "tunnelproxy_mqtt_broker_connected") == 0
        disk.empty()
        began = time.monotonic()
        wait_for(lambda: read_metric(metrics, "tunnelproxy_mqtt_broker_connected") == 1, "the broker is back")
        print(f"back {time.monotonic() - began:.1f} s after there was space")
        assert pump.is_let_in()
        assert service.log_text().count("mosquitto cannot be started") == 1


def test_a_stopped_service_leaves_no_broker_behind(service: TunnelingService) -> None:
    broker = broker_process(service)
    assert service.stop() == 0
    assert not broker.is_running()


def test_only_the_owner_can_read_the_files_written_for_a_device(service: TunnelingService, tmp_path: Path) -> None:
    said = service.add_thing("pump", tmp_path / "pump")
    assert said == ""
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pump").iterdir()}
    assert set(files) == {"agent.yml", "password", "ca.pem"}
    assert set(files.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "pump").stat().st_mode) == 0o700


def test_a_thing_is_enrolled_again_only_with_replace(service: TunnelingService, tmp_path: Path) -> None:
    folder = str(tmp_path / "pump")
    service.add_thing("pump", Path(folder), "--type", "pumps", "--attribute", "site=north")
    first = (tmp_path / "pump" / "password").read_text()
    refused = run(service, "add-thing", "pump", "--output", folder)
    assert refused.returncode == 1
    assert_documented("Service: thing enrolled already", refused.stderr.removeprefix("tunnelproxy: error: ").rstrip())
    service.add_thing("pump", Path(folder), "--replace")
    assert (tmp_path / "pump" / "password").read_text() != first
    assert run(service, "describe-thing", "pump", "--attribute", "site=south", "--attribute", "a=").returncode == 0
    (thing,) = service.boto3_client("iot").list_things()["things"]
    assert (thing["thingTypeName"], thing["attributes"]) == ("pumps", {"site": "south", "a": ""})


def test_a_removed_thing_is_disconnected_until_it_is_enrolled_again(
    service: TunnelingService, agent: AgentProcess, http: HttpServer
) -> None:
    assert run(service, "remove-thing", "pump").returncode == 0
    wait_for(lambda: "it refuses pump: Not authorized" in agent.output(), "the agent is refused")
    assert "no thing pump is enrolled" in run(service, "remove-thing", "pump").stderr
    agent.stop()
    service.add_thing("pump", agent.folder, "--services", f"HTTP1={http.port}", "--replace")
    agent.start()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add-thing", "a/b"], "'a/b' is not the name of a thing"),
        (["add-thing", SERVICE_USER], "is not the name of a thing"),
        (["add-thing", "pump", "--services", "22"], "--services: give each service its ID"),
        (["add-thing", "pump", "--services", "SSH1=x"], "--services: 'x' is not an address"),
        (["add-thing", "pump", "--output", "/proc/none"], "cannot write to /proc/none"),
        (["add-thing", "pump", "--attribute", "site"], "--attribute: 'site' has no value"),
        (["describe-thing", "pump"], "nothing to change"),
        (["describe-thing", "nobody", "--type", "x"], "no thing nobody is enrolled"),
    ],
)
def test_invalid_enrolments_are_explained(service: TunnelingService, arguments: list[str], complaint: str) -> None:
    done = run(service, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_enrolment_without_a_broker_is_refused(tmp_path: Path) -> None:
    with TunnelingService() as service:
        assert service.mqtt == ""
        done = run(service, "add-thing", "pump", "--output", str(tmp_path / "pump"))
        assert "has no MQTT broker: run it with --mqtt-port" in done.stderr


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def with_external_broker(broker: Mosquitto, tmp_path: Path) -> Iterator[TunnelingService]:
    """A service with an external broker."""
    password = tmp_path / "service-password"
    password.write_text(broker.passwords[SERVICE_USER])
    options = ["--mqtt-broker", f"mqtts://{SERVICE_USER}@127.0.0.1:{broker.port}"]
    options += ["--mqtt-ca", str(broker.ca), "--mqtt-password-file", str(password)]
    with TunnelingService(*options) as running:
        yield running


def test_an_external_broker_delivers_notifications(
    with_external_broker: TunnelingService, broker: Mosquitto, http: HttpServer, tmp_path: Path
) -> None:
    line = with_external_broker.add_thing("pump", tmp_path / "pump", "--services", f"HTTP1={http.port}")
    broker.add_line(line)
    with AgentProcess(tmp_path / "pump"):
        assert fetch(with_external_broker, tunnel_for(with_external_broker, "pump"), tmp_path) == PAGE


def test_opening_does_not_wait_for_a_dead_broker_and_the_thing_is_notified_later(
    with_external_broker: TunnelingService, broker: Mosquitto, http: HttpServer, tmp_path: Path
) -> None:
    folder = write_agent_configuration("pump", tmp_path, broker, with_external_broker, {"HTTP1": http.port})
    with AgentProcess(folder):
        # Stopped, not killed: it accepts connections, but sends nothing.
        assert broker.process is not None
        broker.process.popen.send_signal(signal.SIGSTOP)
        client = with_external_broker.boto3_client()
        client.list_tunnels()
        began = time.monotonic()
        tunnels = [tunnel_for(with_external_broker, "pump") for _ in range(3)]
        took = time.monotonic() - began
        broker.process.popen.send_signal(signal.SIGCONT)
        print(f"three tunnels opened in {took:.2f} s")
        assert took < 5
        for tunnel in tunnels:
            wait_connected(with_external_broker, tunnel, 40)
        broker.kill()
        late = tunnel_for(with_external_broker, "pump")
        broker.start()
        wait_connected(with_external_broker, late, 40)


def test_the_log_of_the_service_contains_no_token(with_external_broker: TunnelingService, broker: Mosquitto) -> None:
    tunnel = tunnel_for(with_external_broker, "pump")
    wait_for(
        lambda: "the MQTT broker has accepted the notification for pump" in with_external_broker.log_text(),
        "the broker has the notification",
    )
    assert tunnel.destination_token not in with_external_broker.log_text()
    assert broker.passwords[SERVICE_USER] not in with_external_broker.log_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--mqtt-port", "0", "--mqtt-broker", "mqtts://a@b"], "exclude each other"),
        (["--mqtt-ca", "x"], "--mqtt-ca requires --mqtt-broker"),
        (["--mqtt-broker", "https://a"], "'https://a' is not like mqtts://USER@HOST:8883"),
        (["--mqtt-broker", "mqtts://a:HIDDEN@b"], "--mqtt-password-file"),
        (["--mqtt-broker", "xmqtts://a:HIDDEN@b"], "is not like mqtts://"),
        (["--mqtt-broker", "mqtt://b", "--mqtt-ca", "x"], "--mqtt-ca has no effect with mqtt://"),
        (["--mqtt-broker", "mqtts://b", "--mqtt-ca", "/nowhere"], "--mqtt-ca: cannot read a certificate"),
        (["--mqtt-broker", "mqtts://a@b", "--mqtt-password-file", "/nowhere"], "cannot read /nowhere"),
        (["--mqtt-port", "1", "--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_invalid_options_are_explained(options: list[str], complaint: str, tmp_path: Path) -> None:
    service = TunnelingService()
    try:
        done = run(service, "run", *options)
    finally:
        service.remove()
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "HIDDEN" not in done.stderr
    assert "Traceback" not in done.stderr
