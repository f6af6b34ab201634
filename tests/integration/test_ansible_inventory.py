# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of things, from AWS IoT's API as moto implements it, and from the tunneling service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.collection import Controller
from peers.iot_registry import IotRegistry, Throttle
from peers.service import TunnelingService
from tunnelproxy.service.store import Store

THINGS = 2500
PAGES = 10


def attributes(number: int) -> dict[str, str]:
    """The site, which changes seldom, and the line, which changes often."""
    return {"site": "north" if number < 1000 else "south", "line": str(number % 4)}


def name(number: int) -> str:
    return f"device-{number:04}"


@pytest.fixture(scope="module")
def registry() -> Iterator[IotRegistry]:
    things: list[dict[str, Any]] = [
        {
            "thing_name": name(number),
            "thing_type_name": "pump" if number % 2 else None,
            "attribute_payload": {"attributes": attributes(number)},
        }
        for number in range(THINGS)
    ]
    things[7]["attribute_payload"]["attributes"]["note"] = "{{ 6 * 7 }}"
    with IotRegistry(things, {"field": [name(1), name(2), name(2001)], "yard": [name(2)]}) as running:
        yield running


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService() as running:
        store = Store(running.state_dir / "service.db")
        for number in range(THINGS):
            store.put_thing(name(number), "pump" if number % 2 else None, attributes(number))
        store.close()
        yield running


@pytest.fixture(scope="module")
def controller(registry: IotRegistry) -> Iterator[Controller]:
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", **registry.environment}
    with Controller(environment, {}) as machine:
        yield machine


class Inventory:
    """Inventory files, and what Ansible makes of them."""

    def __init__(self, controller: Controller, folder: Path) -> None:
        self.controller = controller
        self.folder = folder

    def file(self, label: str = "fleet", **options: Any) -> Path:
        """Write one; JSON is YAML."""
        path = self.folder / f"{label}.things.yml"
        path.write_text(json.dumps({"plugin": "iotops.tunnel.things", **options}))
        return path

    def read(self, *files: Path, options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        sources = [part for path in files for part in ("-i", path)]
        return self.controller.run("ansible-inventory", "--list", *options, *sources, **environment)

    def hosts(self, *files: Path, **settings: Any) -> dict[str, dict[str, Any]]:
        """Variables by host."""
        found: dict[str, dict[str, Any]] = self.groups(*files, **settings)["_meta"]["hostvars"]
        return found

    def groups(self, *files: Path, **settings: Any) -> dict[str, Any]:
        """All that Ansible knows after reading files, which may not fail."""
        done = self.read(*files, ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1", **settings)
        assert done.returncode == 0, done.stderr
        groups: dict[str, Any] = json.loads(done.stdout, object_hook=plain)
        return groups


def plain(value: dict[str, Any]) -> Any:
    """ansible-inventory marks what is no template."""
    return value.get("__ansible_unsafe", value)


@pytest.fixture
def inventory(controller: Controller, tmp_path: Path) -> Inventory:
    return Inventory(controller, tmp_path)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_connection_is_loaded_once_before_workers_are_forked(inventory: Inventory, wanted: bool) -> None:
    path = inventory.file(query="thingName:device-0007", set_connection=wanted)
    said = inventory.read(path, ANSIBLE_DEBUG="1")
    assert said.returncode == 0, said.stderr
    assert ("tunnel/plugins/connection/ssh.py" in said.stdout) is wanted


def test_all_things_of_aws_iot_in_pages(inventory: Inventory, registry: IotRegistry) -> None:
    before = len(registry.requests())
    hosts = inventory.hosts(inventory.file())

    assert list(hosts) == [name(number) for number in range(THINGS)]
    thing = dict(hosts["device-0001"])
    assert thing.pop("thing_arn").endswith(":thing/device-0001")
    assert thing == {
        "ansible_connection": "iotops.tunnel.ssh",
        "iotops_tunnel_thing": "device-0001",
        "thing_attributes": {"line": "1", "site": "north"},
        "thing_name": "device-0001",
        "thing_type": "pump",
        "thing_version": 1,
    }
    assert hosts["device-0002"]["thing_type"] is None
    assert len(registry.requests()) - before == PAGES


def test_all_things_of_the_service_in_pages(inventory: Inventory, service: TunnelingService) -> None:
    hosts = inventory.hosts(inventory.file(), **service.environment)

    assert list(hosts) == [name(number) for number in range(THINGS)]
    assert hosts["device-0001"]["thing_attributes"] == {"line": "1", "site": "north"}
    assert hosts["device-0001"]["thing_type"] == "pump"
    lines = map(json.loads, (service.state_dir / "audit.log").read_text().splitlines())
    assert [(line["operation"], line["outcome"]) for line in lines] == [("ListThings", "ok")] * PAGES


SELECTION: dict[str, Any] = {
    "thing_types": ["pump", "valve"],
    "attributes": {"site": "north", "line": 3},
    "hostvars_prefix": "iot_",
    "filters": ["iot_name is match('device-00')"],
    "exclude": ["iot_name == 'device-0003'", "iot_attributes.nothing_like_it == 'x'"],
    "set_connection": False,
    "compose": {"ansible_user": "'user-' ~ iot_attributes.line"},
}


@pytest.fixture(scope="module")
def combined(
    controller: Controller, service: TunnelingService, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What comes of four files, read in one run; each puts its hosts into a group of its own."""
    inventory = Inventory(controller, tmp_path_factory.mktemp("combined"))
    files = [
        inventory.file(
            "aws",
            **SELECTION,
            hostname="iot_name | replace('device-', 'aws')",
            groups={"from_aws": "true", "early": "iot_name < 'device-0012'"},
            keyed_groups=[{"key": "iot_attributes.site", "prefix": "site"}],
        ),
        inventory.file(
            "service",
            **SELECTION,
            **options_for(service),
            hostname="iot_name | replace('device-', 'own')",
            groups={"from_service": "true"},
        ),
        inventory.file(
            "groups",
            thing_groups=["field", "yard"],
            attributes={"site": "north"},
            hostname="'group-' ~ thing_name",
            groups={"from_groups": "true"},
        ),
        inventory.file(
            "index",
            query="attributes.site:north AND thingGroupNames:field",
            thing_types=["pump"],
            hostname="'index-' ~ thing_name",
            groups={"from_index": "thing_connectivity.connected"},
        ),
    ]
    return inventory.groups(*files)


def options_for(service: TunnelingService) -> dict[str, Any]:
    """How the inventory reaches a service, as options."""
    return {
        "access_key": service.environment["AWS_ACCESS_KEY_ID"],
        "secret_key": service.environment["AWS_SECRET_ACCESS_KEY"],
        "region": service.environment["AWS_REGION"],
        "endpoint_url": service.environment["AWS_ENDPOINT_URL_IOT"],
        "aws_ca_bundle": service.environment["AWS_CA_BUNDLE"],
    }


@pytest.mark.parametrize(("group", "prefix"), [("from_aws", "aws"), ("from_service", "own")])
def test_things_are_chosen_and_named(combined: dict[str, Any], group: str, prefix: str) -> None:
    assert combined[group]["hosts"] == [f"{prefix}{number:04}" for number in range(7, 100, 4)]
    variables = combined["_meta"]["hostvars"][f"{prefix}0007"]
    assert variables["ansible_user"] == "user-3"
    assert variables["iot_name"] == variables["iotops_tunnel_thing"] == "device-0007"
    assert "ansible_connection" not in variables


def test_things_are_grouped(combined: dict[str, Any]) -> None:
    assert combined["early"]["hosts"] == ["aws0007", "aws0011"]
    assert combined["site_north"]["hosts"] == combined["from_aws"]["hosts"]


def test_things_of_groups(combined: dict[str, Any]) -> None:
    assert combined["from_groups"]["hosts"] == ["group-device-0001", "group-device-0002"]
    variables = combined["_meta"]["hostvars"]
    assert variables["group-device-0001"]["thing_groups"] == ["field"]
    assert variables["group-device-0002"]["thing_groups"] == ["field", "yard"]
    assert variables["group-device-0001"]["thing_type"] == "pump"


def test_the_index_knows_who_is_connected(combined: dict[str, Any]) -> None:
    assert combined["from_index"]["hosts"] == ["index-device-0001"]
    variables = combined["_meta"]["hostvars"]["index-device-0001"]
    assert variables["thing_connectivity"]["connected"] is True
    assert variables["thing_groups"] == ["field"]


def test_calls_that_are_throttled_are_made_again(inventory: Inventory, registry: IotRegistry) -> None:
    with Throttle(registry.url) as throttle:
        path = inventory.file(endpoint_url=throttle.url, attributes={"site": "north", "line": 3})
        with throttle.refusing(2):
            assert len(inventory.hosts(path)) == 250
            assert throttle.refused == 2
        with throttle.refusing(1):
            said = words_of(
                inventory.read(path, inventory.file("group", thing_groups=["nowhere"]), AWS_MAX_ATTEMPTS="1")
            )
    throttled = f"Could not list things: {throttle.url} (region eu-central-1) throttles the calls (ThrottlingException)"
    assert f"{throttled}, even after waiting. Try again later, raise AWS_MAX_ATTEMPTS, or set cache" in said
    assert "Could not list the things of group nowhere" in said
    assert "has no such thing group or index" in said


def test_the_cache_answers_until_it_is_flushed_or_asked_for_something_else(
    inventory: Inventory, registry: IotRegistry
) -> None:
    cache = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(inventory.folder / "cache"),
        "query": "thingGroupNames:field",
        "keyed_groups": [{"key": "thing_attributes.site", "prefix": "site"}],
    }
    path = inventory.file(**cache)

    def calls(*options: str) -> int:
        before = len(registry.requests())
        groups = inventory.groups(path, options=options)
        assert groups["site_north"]["hosts"] == ["device-0001", "device-0002"]
        assert groups["_meta"]["hostvars"]["device-0001"]["thing_groups"] == ["field"]
        return len(registry.requests()) - before

    assert calls() == 1
    assert calls() == 0
    assert calls("--flush-cache") == 1
    inventory.file(**cache, thing_types=["pump"])
    assert list(inventory.hosts(path)) == ["device-0001", "device-2001"]
    stored = "".join(file.read_text() for file in (inventory.folder / "cache").iterdir())
    assert registry.environment["AWS_ACCESS_KEY_ID"] not in stored


def test_values_of_things_are_no_templates(inventory: Inventory) -> None:
    path = inventory.file(query="thingName:device-0007", set_connection=False)
    arguments = ("-c", "local", "-m", "ansible.builtin.debug", "-a", "msg={{ thing_attributes.note }}")
    done = inventory.controller.run("ansible", "-i", path, "all", *arguments)
    assert '"msg": "{{ 6 * 7 }}"' in done.stdout, done.stdout + done.stderr


def words_of(done: subprocess.CompletedProcess[str]) -> str:
    """What was said, without the line breaks of Ansible's warnings."""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "keys": (
        {"access_key": "AKIAWRONG"},
        "does not accept the AWS keys (UnrecognizedClientException). Check access_key",
    ),
    "secret": ({"secret_key": "{{ 'wr' ~ 'ong' }}"}, "does not accept the AWS keys (InvalidSignatureException). Check"),
    "region": ({"region": "eu-west-1"}, "is not of that region (Credential should be scoped to a valid region: 'us-"),
    "ca": ({"aws_ca_bundle": "/etc/ssl/certs/ca-certificates.crt"}, "is not trusted here. Set aws_ca_bundle to"),
    "reach": (
        {"endpoint_url": "https://127.0.0.1:9"},
        "https://127.0.0.1:9 (region us-east-1) cannot be reached. Check",
    ),
    "profile": (
        {"access_key": None, "secret_key": None, "profile": "nobody"},
        "no such profile. Set profile to one of",
    ),
    "half": ({"secret_key": None}, "access_key and secret_key belong together: set both"),
    "none": ({"access_key": None, "secret_key": None}, "there are no complete AWS credentials. Set access_key and"),
    "groups": ({"thing_groups": ["field"]}, "It has no thing groups, and no fleet index"),
    "twice": ({"hostname": "'one'"}, "would both be the host one. Make hostname an expression that tells them apart"),
    "strict": ({"strict": True, "filters": ["nothing"]}, "filters has 'nothing', which cannot be told of the thing"),
    "option": ({"thing_type": "pump"}, "sets thing_type, which iotops.tunnel.things does not have. See: ansible-doc"),
}


def test_each_failure_is_one_sentence_with_a_remedy(
    inventory: Inventory, service: TunnelingService, registry: IotRegistry
) -> None:
    options = options_for(service)
    files = [inventory.file(label, **{**options, **changes}) for label, (changes, _words) in FAILURES.items()]
    files.append(inventory.file("unknown-to-aws", **{**options, "endpoint_url": registry.url}))
    other = inventory.folder / "hosts.yml"
    other.write_text("plugin: iotops.tunnel.things\n")
    with registry.checking_keys():
        done = inventory.read(*files, other, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_MAX_ATTEMPTS="1")
    said = words_of(done)

    missing = [label for label, (_changes, words) in FAILURES.items() if words not in said]
    assert missing == [], said
    assert f"{registry.url} (region us-east-1) refuses the AWS keys (HTTP status 403)" in said
    assert "hosts.yml' could not be verified by inventory plugin 'iotops.tunnel.things'" in said
    assert json.loads(done.stdout)["_meta"]["hostvars"] == {}
    assert service.environment["AWS_SECRET_ACCESS_KEY"] not in said


def test_without_boto3_it_says_how_to_install_it(inventory: Inventory) -> None:
    (inventory.folder / "boto3.py").write_text("raise ImportError('hidden')")
    said = words_of(inventory.read(inventory.file(), PYTHONPATH=str(inventory.folder)))
    assert "The inventory of things needs boto3" in said
    assert "-m pip install boto3" in said
