# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of things, from AWS IoT's API as moto implements it, and from the tunneling service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from peers.collection import Controller
from peers.iot_registry import FixedRegistry, IotRegistry
from peers.service import TunnelingService
from peers.throttle import Throttle
from tunnelproxy.service.state.store import Store

THINGS = 2500
PAGES = 10


def attributes(number: int) -> dict[str, str]:
    """The site, which has few values, and the line, which has many."""
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
    """Inventory files, and Ansible's result of parsing them."""

    def __init__(self, controller: Controller, folder: Path) -> None:
        self.controller = controller
        self.folder = folder

    def file(self, label: str = "fleet", **options: Any) -> Path:
        """Write an inventory file; JSON is YAML."""
        path = self.folder / f"{label}.things.yml"
        path.write_text(json.dumps({"plugin": "iotops.tunnel.things", **options}))
        return path

    def read(self, *files: Path, options: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        sources = [part for path in files for part in ("-i", path)]
        return self.controller.run("ansible-inventory", "--list", *options, *sources, **environment)

    def hosts(self, *files: Path, **settings: Any) -> dict[str, dict[str, Any]]:
        """The variables of each host."""
        found: dict[str, dict[str, Any]] = self.groups(*files, **settings)["_meta"]["hostvars"]
        return found

    def groups(self, *files: Path, **settings: Any) -> dict[str, Any]:
        """Ansible's inventory from these files, which must be valid."""
        done = self.read(*files, ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="1", **settings)
        assert done.returncode == 0, done.stderr
        groups: dict[str, Any] = json.loads(done.stdout, object_hook=plain)
        return groups


def plain(value: dict[str, Any]) -> Any:
    """Remove the marks of ansible-inventory for values that are not templates."""
    return value.get("__ansible_unsafe", value)


@pytest.fixture
def inventory(controller: Controller, tmp_path: Path) -> Inventory:
    return Inventory(controller, tmp_path)


def test_the_connection_plugin_is_loaded_once_before_workers_are_forked(inventory: Inventory) -> None:
    path = inventory.file(query="thingName:device-0007")
    said = inventory.read(path, ANSIBLE_DEBUG="1")
    assert said.returncode == 0, said.stderr
    assert "tunnel/plugins/connection/ssh.py" in said.stdout


def test_all_things_of_aws_iot_from_all_pages(inventory: Inventory, registry: IotRegistry) -> None:
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


def test_all_things_of_the_service_from_all_pages(inventory: Inventory, service: TunnelingService) -> None:
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
    """The inventory of four files, read in one run; each puts its hosts into a separate group."""
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
    """The options with which the inventory reaches a service."""
    return {
        "access_key": service.environment["AWS_ACCESS_KEY_ID"],
        "secret_key": service.environment["AWS_SECRET_ACCESS_KEY"],
        "region": service.environment["AWS_REGION"],
        "endpoint_url": service.environment["AWS_ENDPOINT_URL_IOT"],
        "aws_ca_bundle": service.environment["AWS_CA_BUNDLE"],
    }


@pytest.mark.parametrize(("group", "prefix"), [("from_aws", "aws"), ("from_service", "own")])
def test_things_are_filtered_and_named(combined: dict[str, Any], group: str, prefix: str) -> None:
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


def test_the_fleet_index_shows_which_things_are_connected(combined: dict[str, Any]) -> None:
    assert combined["from_index"]["hosts"] == ["index-device-0001"]
    variables = combined["_meta"]["hostvars"]["index-device-0001"]
    assert variables["thing_connectivity"]["connected"] is True
    assert variables["thing_groups"] == ["field"]


def test_throttled_calls_are_retried(inventory: Inventory, registry: IotRegistry) -> None:
    with Throttle(registry.url) as throttle:
        path = inventory.file(endpoint_url=throttle.url, attributes={"site": "north", "line": 3})
        with throttle.refusing(2):
            assert len(inventory.hosts(path)) == 250
            assert throttle.refused == 2
        with throttle.refusing(1):
            said = words_of(
                inventory.read(path, inventory.file("group", thing_groups=["nowhere"]), AWS_MAX_ATTEMPTS="1")
            )
    assert (
        f"Could not list things: {throttle.url} (region eu-central-1) throttles the calls (ThrottlingException)" in said
    )
    assert "even after waiting: try again later, raise AWS_MAX_ATTEMPTS, or set cache." in said
    assert "Could not list the things of group nowhere: " in said
    assert "has no such thing, thing group or index" in said


def test_the_cache_is_used_until_it_is_flushed_or_the_options_change(
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


def test_values_of_things_are_not_templated(inventory: Inventory) -> None:
    path = inventory.file(query="thingName:device-0007", set_connection=False)
    arguments = ("-c", "local", "-m", "ansible.builtin.debug", "-a", "msg={{ thing_attributes.note }}")
    done = inventory.controller.run("ansible", "-i", path, "all", *arguments)
    assert '"msg": "{{ 6 * 7 }}"' in done.stdout, done.stdout + done.stderr


def words_of(done: subprocess.CompletedProcess[str]) -> str:
    """Ansible's output, without the line breaks of its warnings."""
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "keys": ({"access_key": "AKIAWRONG"}, "are not accepted (UnrecognizedClientException): check them"),
    "secret": ({"secret_key": "{{ 'wr' ~ 'ong' }}"}, "are not accepted (InvalidSignatureException): check them"),
    "region": ({"region": "eu-west-1"}, "wrong region (Credential should be scoped to a valid region: 'us-east-1')"),
    "ca": ({"aws_ca_bundle": "/etc/ssl/certs/ca-certificates.crt"}, "is not trusted here: set AWS_CA_BUNDLE to"),
    "reach": ({"endpoint_url": "https://127.0.0.1:9"}, "https://127.0.0.1:9 cannot be reached (Connection refused): "),
    "profile": ({"access_key": None, "secret_key": None, "profile": "nobody"}, "there is no profile nobody in"),
    "half": ({"secret_key": None}, "access_key and secret_key belong together: set both"),
    "none": ({"access_key": None, "secret_key": None}, "there are no AWS credentials: set AWS_PROFILE, or"),
    "groups": ({"thing_groups": ["field"]}, "It has no thing groups and no fleet index"),
    "name": ({"strict": True, "hostname": "thing_name ~ '/..'"}, "hostname is 'device-0000/..' for the thing device-0"),
    "no-name": ({"strict": True, "hostname": "nothing"}, "hostname cannot be evaluated for the thing device-0000"),
    "strict": ({"strict": True, "filters": ["nothing"]}, "filters: 'nothing' cannot be evaluated for the thing"),
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
    assert f"{registry.url} refuses the AWS keys in AWS_ACCESS_KEY_ID (HTTP status 403)" in said
    assert "hosts.yml' could not be verified by inventory plugin 'iotops.tunnel.things'" in said
    assert json.loads(done.stdout)["_meta"]["hostvars"] == {}
    assert service.environment["AWS_SECRET_ACCESS_KEY"] not in said


def test_without_boto3_the_error_says_how_to_install_it(inventory: Inventory) -> None:
    (inventory.folder / "botocore.py").write_text("raise ImportError('hidden')")
    said = words_of(inventory.read(inventory.file(), PYTHONPATH=str(inventory.folder)))
    assert "the Python that runs Ansible cannot use boto3" in said
    assert "-m pip install boto3" in said


ARN_NAME = "123456789012.eu-central-1"


def test_a_thing_does_not_take_the_name_of_another_host(inventory: Inventory) -> None:
    things = ["all", "ungrouped", "localhost", "servers", "own", "a-web", "pump"]
    (inventory.folder / "hosts.ini").write_text("[servers]\na-web ansible_user=me\n")
    with FixedRegistry([*things]) as registry:
        path = inventory.file(endpoint_url=registry.url, groups={"own": "thing_name == 'pump'"})
        sources = (inventory.folder / "hosts.ini", path)
        groups = inventory.groups(*sources)
        said = words_of(inventory.read(*sources))
    variables = groups["_meta"]["hostvars"]
    assert set(variables) == {"a-web", "pump", *(f"{name}.{ARN_NAME}" for name in things[:-1])}
    assert variables["a-web"] == {"ansible_user": "me"}
    assert variables[f"a-web.{ARN_NAME}"]["iotops_tunnel_thing"] == "a-web"
    assert groups["servers"]["hosts"] == ["a-web"]
    assert groups["own"]["hosts"] == ["pump"]
    assert (
        "The thing a-web cannot be the host a-web: a host from another source of the inventory has that name." in said
    )
    assert "It becomes the host a-web.123456789012." in said
    assert "Similar warnings not shown: 1." in said


def test_equal_names_in_two_accounts_are_two_hosts_but_one_thing_in_two_files_is_one(
    inventory: Inventory,
) -> None:
    index = [{"thingName": name, "connectivity": {"connected": True}} for name in ("gw", "new")]
    with (
        FixedRegistry(["gw", "pump"]) as first,
        FixedRegistry(["gw"], account="210987654321", index=index) as second,
    ):
        files = [
            inventory.file("a", endpoint_url=first.url),
            inventory.file("b", endpoint_url=second.url, profile="{{ 'b' ~ 'b' }}"),
            inventory.file("c", endpoint_url=first.url, groups={"pumps": "thing_name == 'pump'"}),
            inventory.file("d", endpoint_url=second.url, profile="bb", query="*", groups={"seen": "true"}),
            inventory.file("e", endpoint_url=first.url, query="*"),
        ]
        profiles = inventory.folder / "credentials"
        profiles.write_text("[bb]\naws_access_key_id = AKIABB\naws_secret_access_key = any\n")
        groups = inventory.groups(*files, AWS_SHARED_CREDENTIALS_FILE=str(profiles))
    variables = groups["_meta"]["hostvars"]
    assert set(variables) == {"gw", "pump", "gw.210987654321.eu-central-1", "new"}
    assert variables["gw"]["iotops_tunnel_endpoint_url"] == first.url
    assert "iotops_tunnel_profile" not in variables["gw"]
    assert variables["gw.210987654321.eu-central-1"]["iotops_tunnel_endpoint_url"] == second.url
    assert variables["gw.210987654321.eu-central-1"]["iotops_tunnel_profile"] == "bb"
    assert groups["pumps"]["hosts"] == ["pump"]
    assert groups["seen"]["hosts"] == ["gw.210987654321.eu-central-1", "new"]


def test_things_with_invalid_names_are_skipped_and_attributes_make_no_invalid_host(inventory: Inventory) -> None:
    labels = ["../../etc", "web,all", "@file", "localhost", "same", "same", "Pump 9"]
    hostile = ["../etc", "-oProxyCommand=x", "a b", "x" * 129, "{{ 1 }}", "web\nall"]
    things = [{"thingName": f"t{number}", "attributes": {"label": label}} for number, label in enumerate(labels)]
    with FixedRegistry([*hostile, *things]) as registry:
        path = inventory.file(endpoint_url=registry.url, hostname="thing_attributes.label")
        hosts = inventory.hosts(path)
        said = words_of(inventory.read(path))
    expected = {"t0", "t1", "t2", f"t3.{ARN_NAME}", "same", f"t5.{ARN_NAME}", "Pump 9"}
    assert set(hosts) == expected
    assert "A thing in the registry is skipped: '-oProxyCommand=x' cannot be the name of a thing" in said


def test_a_keyed_group_does_not_hide_a_host(inventory: Inventory) -> None:
    things = [{"thingName": name, "attributes": {"site": site}} for name, site in (("gw", "yard"), ("pump", "gw"))]
    with FixedRegistry([*things]) as registry:
        keyed = [{"key": "thing_attributes.site", "prefix": "", "separator": ""}]
        path = inventory.file(endpoint_url=registry.url, keyed_groups=keyed)
        groups = inventory.groups(path)
        said = words_of(inventory.read(path))
    assert groups["yard"]["hosts"] == ["gw"]
    assert groups["gw_group"]["hosts"] == ["pump"]
    assert "gw" not in groups
    assert "keyed_groups would create a group gw, but a host has that name. The group is called gw_group." in said


def test_hosts_have_the_options_of_their_file_without_keys(inventory: Inventory) -> None:
    account = {
        "endpoint_url": "",
        "region": "us-east-1",
        "aws_ca_bundle": "~/ca.pem",
        "validate_certs": False,
        "tunnel_endpoint": "127.0.0.1:8443",
        "tunnel_capath": "/etc/ssl",
    }
    with FixedRegistry(["pump"]) as registry:
        account["endpoint_url"] = registry.url
        (inventory.folder / "ca.pem").touch()
        plain_keys = inventory.file("plain", **account, access_key="AKIASHOWN", secret_key="shown")
        home = {"HOME": str(inventory.folder)}
        pump = inventory.hosts(plain_keys, **home)["pump"]
        done = inventory.read(plain_keys, **home)
        templates = inventory.file(
            "templates", access_key="{{ lookup('env', 'THE_KEY') }}", secret_key="{{ 'sec' ~ 'ret' }}"
        )
        keys = inventory.read(templates, AWS_ENDPOINT_URL_IOT=registry.url, THE_KEY="AKIATEMPLATE")
        shown = inventory.controller.run(
            *("ansible", "-i", templates, "pump", "-c", "local", "-m", "ansible.builtin.debug"),
            *("-a", "msg={{ iotops_tunnel_access_key }}/{{ iotops_tunnel_secret_key }}"),
            AWS_ENDPOINT_URL_IOT=registry.url,
            THE_KEY="AKIATEMPLATE",
        )
    assert {name: value for name, value in pump.items() if name.startswith("iotops_tunnel_")} == {
        "iotops_tunnel_thing": "pump",
        "iotops_tunnel_endpoint_url": registry.url,
        "iotops_tunnel_region": "us-east-1",
        "iotops_tunnel_aws_ca_bundle": str(inventory.folder / "ca.pem"),
        "iotops_tunnel_validate_certs": False,
        "iotops_tunnel_tunnel_endpoint": "127.0.0.1:8443",
        "iotops_tunnel_tunnel_capath": "/etc/ssl",
    }
    assert "AKIASHOWN" not in done.stdout
    assert "are in plain text, so they are used only for the registry" in words_of(done)
    assert "AKIATEMPLATE" not in keys.stdout
    assert "registry alone" not in words_of(keys)
    assert '"msg": "AKIATEMPLATE/secret"' in shown.stdout, shown.stdout + shown.stderr


def test_tasks_use_the_account_of_their_host(inventory: Inventory, service: TunnelingService) -> None:
    options = options_for(service)
    profiles = inventory.folder / "credentials"
    keys = f"aws_access_key_id = {options.pop('access_key')}\naws_secret_access_key = {options.pop('secret_key')}\n"
    profiles.write_text(f"[own]\n{keys}")
    path = inventory.file(
        **options, profile="own", attributes={"site": "north"}, filters=["thing_name is match('.*1$')"]
    )
    outcome = inventory.controller.module(
        "iotops.tunnel.tunnel_info",
        "device-0001",
        *("-i", str(path)),
        env={"AWS_SHARED_CREDENTIALS_FILE": str(profiles)},
    )["device-0001"]
    assert outcome.word == "SUCCESS", outcome.message
    assert outcome.result["account"].endswith(f"/us-east-1 at {urlsplit(service.api).netloc}")


def test_encrypted_keys_are_passed_on_encrypted(inventory: Inventory) -> None:
    password = inventory.folder / "password"
    password.write_text("any")
    vault = ("--vault-password-file", password)
    encrypt = ("ansible-vault", "encrypt_string", *vault, "--name")
    keys = [inventory.controller.run(*encrypt, name, "very-secret").stdout for name in ("access_key", "secret_key")]
    path = inventory.folder / "vault.things.yml"
    path.write_text("\n".join(["plugin: iotops.tunnel.things", *keys]))
    with FixedRegistry(["pump"]) as registry:
        listed = inventory.read(path, options=tuple(map(str, vault)), AWS_ENDPOINT_URL_IOT=registry.url)
        shown = inventory.controller.run(
            *("ansible", "-i", path, "pump", "-c", "local", "-m", "ansible.builtin.debug", *vault),
            *("-a", "var=iotops_tunnel_secret_key"),
            AWS_ENDPOINT_URL_IOT=registry.url,
        )
    assert '"pump"' in listed.stdout, listed.stderr
    assert "iotops_tunnel_secret_key" in listed.stdout
    assert "very-secret" not in listed.stdout
    assert "very-secret" in shown.stdout, shown.stdout + shown.stderr


def test_the_cache_of_one_account_is_not_used_for_another(inventory: Inventory) -> None:
    cache = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(inventory.folder / "cache"),
    }
    path = inventory.file(**cache)
    with FixedRegistry(["a"]) as first, FixedRegistry(["b"]) as second:
        for registry, host in ((first, "a"), (second, "b"), (first, "a")):
            assert list(inventory.hosts(path, AWS_ENDPOINT_URL_IOT=registry.url)) == [host]
        assert (first.asked, second.asked) == (1, 1)
        for changed in ({"AWS_REGION": "us-east-1"}, {"AWS_ACCESS_KEY_ID": "AKIAANOTHER"}, {"AWS_ROLE_ARN": "arn"}):
            inventory.hosts(path, **{"AWS_ENDPOINT_URL_IOT": first.url, **changed})
        assert first.asked == 4
        inventory.hosts(path, AWS_ENDPOINT_URL_IOT=first.url, AWS_SECRET_ACCESS_KEY="renewed")
        assert first.asked == 4
