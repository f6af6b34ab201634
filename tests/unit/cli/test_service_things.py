# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service``: devices, and the MQTT broker that they are notified by."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tunnelproxy.agent.config import read_config
from tunnelproxy.cli.main import main
from tunnelproxy.cli.parser import Parser
from tunnelproxy.cli.service_things import add_broker_options, broker_settings
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.mqtt.notifier import BrokerSettings
from tunnelproxy.service.state.certificates import Certificates
from tunnelproxy.service.state.directory import Endpoints, StateDirectory
from tunnelproxy.service.state.store import Store


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    """The state of a service that has run, with a broker of its own; the working directory is another one."""
    made = StateDirectory(tmp_path / "state")
    made.create()
    made.broker_files.mkdir()
    Store(made.database).close()
    Certificates(made.keys, made.ca).ensure("example.com")
    made.write_endpoints(Endpoints("example.com", 1, 2))
    BrokerAddress("example.com", 3, embedded=True).write(made.broker_address)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return made


def thing(state: StateDirectory, command: str, *arguments: str) -> int:
    return main(["service", command, "--state-dir", str(state.path), *arguments])


def test_add_thing_writes_what_its_agent_needs_to_a_folder_of_its_name(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert thing(state, "add-thing", "pump", "--services", "SSH1=22,CAM1=/run/cam.sock", "--type", "pump") == 0
    assert list(read_config(Path("pump") / "agent.yml", {}).services) == ["SSH1", "CAM1"]
    output = capsys.readouterr()
    assert output.out == ""
    assert "tunnelproxy agent run --config pump/agent.yml" in output.err


def test_for_a_broker_that_runs_elsewhere_its_password_line_is_printed(
    state: StateDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    BrokerAddress("broker.example.com", 8883, user="joe").write(state.broker_address)
    assert thing(state, "add-thing", "pump", "--output", "other") == 0
    output = capsys.readouterr()
    assert output.out.startswith("pump:$7$")
    assert "add this line to the password file" in output.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--services", "22"], "--services: give each service its ID, as in SSH1=22"),
        (["--services", "SSH1=x y"], "--services"),
        (["--attribute", "line"], "--attribute: 'line' has no value; give NAME=VALUE"),
    ],
)
def test_what_cannot_be_enrolled_is_an_error(
    state: StateDirectory, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert thing(state, "add-thing", "pump", *arguments) == 1
    assert problem in capsys.readouterr().err
    assert not Path("pump").exists()


def test_describe_thing_changes_type_and_attributes(state: StateDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    thing(state, "add-thing", "pump")
    assert thing(state, "describe-thing", "pump", "--type", "pump", "--attribute", "line=3") == 0
    store = Store(state.database)
    found = store.find_thing("pump")
    store.close()
    assert found is not None
    assert (found.thing_type, dict(found.attributes)) == ("pump", {"line": "3"})
    capsys.readouterr()
    assert thing(state, "describe-thing", "pump") == 1
    assert "nothing to change: give --type, --attribute, or both" in capsys.readouterr().err


def test_a_removed_thing_is_gone(state: StateDirectory) -> None:
    thing(state, "add-thing", "pump")
    assert thing(state, "remove-thing", "pump") == 0
    assert thing(state, "remove-thing", "pump") == 1


def parsed(*arguments: str) -> Namespace:
    parser = Parser(prog="tunnelproxy")
    add_broker_options(parser, int)
    return parser.parse_args(arguments)


def test_without_options_there_is_no_broker() -> None:
    assert broker_settings(parsed()) == BrokerSettings(None)


def test_a_broker_that_runs_elsewhere_has_its_password_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    options = ["--mqtt-broker", "mqtts://joe@b", "--mqtt-password-file", str(tmp_path / "password")]
    found = broker_settings(parsed(*options, "--mqtt-ca", str(tmp_path)))
    assert found.external == BrokerAddress("b", 8883, user="joe", ca=str(tmp_path))
    assert found.password == "secret"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--mqtt-ca", "x"], "--mqtt-ca requires --mqtt-broker"),
        (["--mqtt-password-file", "x"], "--mqtt-password-file requires --mqtt-broker"),
        (["--mqtt-port", "0", "--mqtt-broker", "mqtts://b"], "exclude each other"),
        (["--mqtt-broker", "mqtts://b", "--mqtt-password-file", "x"], "there is a password but no user"),
        (["--mqtt-broker", "mqtts://j@b", "--mqtt-password-file", "/nowhere"], "cannot read /nowhere"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], problem: str) -> None:
    with pytest.raises(ServiceError, match=problem):
        broker_settings(parsed(*arguments))
