# SPDX-License-Identifier: GPL-3.0-or-later
"""The rights of things at the MQTT broker, tested from outside: embedded, and with docs/mosquitto.conf."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from peers.broker import SERVICE_USER, Mosquitto
from peers.process import REPOSITORY, wait_for
from peers.proxies import open_tunnel
from peers.service import TunnelingService
from peers.thing import ThingClient, notify_topic
from tunnelproxy.files import replace_file
from tunnelproxy.service.mqtt.password_file import password_line

THINGS = ("pump", "valve")
GRANTED = 1
REFUSED = {4: 0x80, 5: 0x87}
"""By MQTT version: 'failure', and 'not authorized'."""

FOREIGN = (
    notify_topic("valve"),
    notify_topic("+"),
    "$aws/things/#",
    "$aws/#",
    "#",
    "+/things/valve/tunnels/notify",
    f"$share/all/{notify_topic('valve')}",
    "$SYS/#",
    "$CONTROL/#",
)


@dataclass(frozen=True)
class Scene:
    """A service with two things enrolled.

    Attributes:
        refuses: whether its broker refuses subscriptions; otherwise it grants them and delivers nothing.
    """

    service: TunnelingService
    folder: Path
    port: int
    refuses: bool

    def client(self, thing: str, version: int = 4, client_id: str = "", *, clean: bool = False) -> ThingClient:
        return ThingClient(thing, self.folder / thing, self.port, version=version, client_id=client_id, clean=clean)

    def notify(self, thing: str) -> tuple[str, str]:
        """Open a tunnel, and return the notification that the thing should receive."""
        return notify_topic(thing), open_tunnel(self.service, ["SSH1"], thing).destination_token

    def lets_in(self, thing: str) -> bool:
        return self.client(thing).is_let_in()


@pytest.fixture(scope="module", params=["embedded", "documented"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(folder / "broker")) if request.param == "documented" else None
        service = stack.enter_context(TunnelingService(*_options(broker, folder)))
        for thing in THINGS:
            line = service.add_thing(thing, folder / thing)
            if broker is not None:
                broker.add_line(line)
        made = Scene(service, folder, int(service.mqtt.rpartition(":")[2]), refuses=broker is None)
        wait_for(lambda: all(map(made.lets_in, THINGS)), "the things are let in")
        yield made


def _options(broker: Mosquitto | None, folder: Path) -> list[str]:
    if broker is None:
        return ["--mqtt-port", "0"]
    password = folder / "service-password"
    password.write_text(broker.passwords[SERVICE_USER])
    where = f"mqtts://{SERVICE_USER}@127.0.0.1:{broker.port}"
    return ["--mqtt-broker", where, "--mqtt-ca", str(broker.ca), "--mqtt-password-file", str(password)]


@pytest.mark.parametrize("version", [4, 5])
def test_a_thing_is_notified_only_of_its_own_tunnels(scene: Scene, version: int) -> None:
    with scene.client("pump", version) as pump, scene.client("valve", version) as valve:
        answers = {topic: pump.subscribe(topic) for topic in FOREIGN}
        if scene.refuses:
            assert set(answers.values()) == {REFUSED[version]}, answers
        assert pump.subscribe(notify_topic("pump")) == GRANTED
        assert valve.subscribe(notify_topic("valve")) == GRANTED
        of_valve = scene.notify("valve")
        # This comes last, so that everything before it would have been received.
        of_pump = scene.notify("pump")
        wait_for(lambda: pump.heard and valve.heard, "both are notified of their own tunnels")
        assert (pump.tokens(), valve.tokens()) == ([of_pump], [of_valve])


@pytest.mark.parametrize("version", [4, 5])
def test_a_thing_cannot_forge_notifications(scene: Scene, version: int) -> None:
    with scene.client("pump", version) as pump, scene.client("valve", version) as valve:
        assert pump.subscribe(notify_topic("pump")) == GRANTED
        assert valve.subscribe(notify_topic("valve")) == GRANTED
        topics = (notify_topic("pump"), notify_topic("valve"), "$CONTROL/dynamic-security/v1", "anything")
        answers = {topic: pump.publish(topic, "forged") for topic in topics}
        # Version 3.1.1 has no code for a refusal: the message is confirmed and discarded.
        assert set(answers.values()) == {0x87 if version == 5 else 0}, answers
        told = scene.notify("pump"), scene.notify("valve")
        wait_for(lambda: pump.heard and valve.heard, "both are notified of their own tunnels")
        assert (pump.tokens(), valve.tokens()) == ([told[0]], [told[1]])


def test_things_and_strangers_cannot_impersonate_a_thing(scene: Scene, tmp_path: Path) -> None:
    for user, password in (("valve", "pump"), ("tunnel.notifier", "pump"), ("stranger", "valve")):
        folder = tmp_path / user
        folder.mkdir()
        for file in (scene.folder / password).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        with pytest.raises(PermissionError), ThingClient(user, folder, scene.port):
            pass


@pytest.mark.parametrize("version", [4, 5])
def test_a_thing_with_anothers_client_id_does_not_disconnect_it(scene: Scene, version: int) -> None:
    # The client ID that a broker would know it by, depending on whether it uses client IDs or user names.
    for client_id in ("the-valve", "valve"):
        with scene.client("valve", version, client_id="the-valve") as valve:
            assert valve.subscribe(notify_topic("valve")) == GRANTED
            with scene.client("pump", version, client_id=client_id) as pump:
                assert pump.subscribe(notify_topic("pump")) == GRANTED
                of_valve = scene.notify("valve")
                wait_for(lambda: valve.heard, "the other is still connected")
                assert (pump.tokens(), valve.tokens()) == ([], [of_valve])


def test_pending_notifications_survive_a_client_with_the_same_client_id(scene: Scene) -> None:
    with scene.client("valve", client_id="the-valve") as valve:
        assert valve.subscribe(notify_topic("valve")) == GRANTED
    of_valve = scene.notify("valve")
    # Once with the existing session, and once with a new one, which would delete it.
    for clean in (False, True):
        with scene.client("pump", client_id="the-valve", clean=clean) as pump:
            assert pump.subscribe(notify_topic("pump")) == GRANTED
            assert pump.tokens() == []
    with scene.client("valve", client_id="the-valve") as valve:
        wait_for(lambda: valve.heard, "the pending notification is delivered")
        assert valve.tokens() == [of_valve]


def test_an_agent_that_subscribes_to_anothers_topic_reports_the_refusal(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "pump"
    shutil.copytree(scene.folder / "pump", folder)
    configuration = folder / "agent.yml"
    configuration.write_text(configuration.read_text().replace('thing: "pump"', 'thing: "valve"'))
    command = [sys.executable, "-m", "tunnelproxy", "agent", "check", "--config", str(configuration), "--connect"]
    checked = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=60)
    if scene.refuses:
        assert checked.returncode == 1
        assert f"it does not let valve-tunnels subscribe to {notify_topic('valve')}; see its access" in checked.stderr
    else:
        # It grants the subscription, and delivers nothing.
        assert checked.returncode == 0


def test_a_hundred_things_enrolled_at_once_can_connect(scene: Scene) -> None:
    if not scene.refuses:
        pytest.skip("who runs the broker enrols there")
    # Like add-thing, which would take a minute for a hundred; each name has the maximum length.
    file = scene.service.state_dir / "mqtt" / "passwords"
    folder = scene.folder / "many"
    shutil.copytree(scene.folder / "pump", folder)
    names = [f"{number:0128}" for number in range(100)]
    password = (folder / "password").read_text().strip()
    replace_file(file, (file.read_text() + "".join(password_line(name, password) + "\n" for name in names)).encode())
    for name in (names[0], names[-1]):
        wait_for(ThingClient(name, folder, scene.port).is_let_in, f"{name} is let in")
