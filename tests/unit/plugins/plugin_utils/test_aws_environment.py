# SPDX-License-Identifier: GPL-3.0-or-later
"""How options, a host's variables, the task's environment, the controller's and ansible.cfg become one environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from tunnelproxy.hub.tags import valid_owner

KEYS = {"AWS_ACCESS_KEY_ID": "environment", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
MODULE = "ansible_collections.iotops.tunnel.plugins.plugin_utils._aws_environment"

CallerFor = Callable[..., Any]


@pytest.fixture
def caller_for(monkeypatch: pytest.MonkeyPatch) -> CallerFor:
    for name in (*KEYS, "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWSIOT_TUNNEL_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    found: CallerFor = importlib.import_module(MODULE).caller_for
    return found


def test_an_option_counts_before_a_variable_and_that_before_the_environments(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: dict[str, Any] = {
        "defaults": {"profile": "ini"},
        "task_environment": {},
        "variables": {},
        "options": {},
    }

    def profile() -> str:
        options = layers["options"]
        others = {name: layer for name, layer in layers.items() if name != "options"}
        found: str = caller_for(options, **others).environment["AWS_PROFILE"]
        return found

    assert profile() == "ini"
    monkeypatch.setenv("AWS_PROFILE", "environment")
    assert profile() == "environment"
    layers["task_environment"] = {"AWS_PROFILE": "task"}
    assert profile() == "task"
    layers["variables"] = {"profile": "variable"}
    assert profile() == "variable"
    layers["options"] = {"profile": "option"}
    assert profile() == "option"


def test_the_rest_of_the_environment_is_the_callers(caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "controller")
    monkeypatch.setenv("https_proxy", "controller")
    environment = caller_for({}).environment
    assert environment["AWS_CONFIG_FILE"] == environment["https_proxy"] == "controller"


TAKEN = ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_ROLE_ARN", "AWSIOT_TUNNEL_ENDPOINT", "AWSIOT_TUNNEL_CAPATH")
LEFT = (
    "PATH",
    "HOME",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_PRELOAD",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "BOTO_CONFIG",
)


def test_a_tasks_environment_which_is_the_devices_only_says_which_account(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = (*TAKEN, "IOTOPS_TUNNEL_OWNER", "IOTOPS_TUNNEL_UNREGISTERED")
    monkeypatch.setenv("PATH", "/controllers")
    before = caller_for({}).environment
    environment = caller_for({}, task_environment=dict.fromkeys((*taken, *LEFT), "task")).environment
    assert {name: environment[name] for name in taken} == dict.fromkeys(taken, "task")
    assert {name: environment.get(name) for name in LEFT} == {name: before.get(name) for name in LEFT}
    assert environment["PATH"] == "/controllers"


def test_the_owner_is_the_strongest_layers_fit_for_a_tag(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener_for = importlib.import_module(MODULE).opener_for
    monkeypatch.setenv("IOTOPS_TUNNEL_OWNER", "controller")
    task = caller_for({}, task_environment={"IOTOPS_TUNNEL_OWNER": "task", "IOTOPS_TUNNEL_UNREGISTERED": "yes"})
    assert opener_for(caller_for({}), {}, {"owner": "ini"}) == ("controller", False)
    assert opener_for(task, {}, {"owner": "controller", "unregistered": False}) == ("task", True)
    assert opener_for(task, {"owner": "a;b", "unregistered": False}, {"owner": "ini"}) == (valid_owner("a;b"), False)


def test_an_empty_variable_of_the_environment_leaves_what_is_configured(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "")
    assert caller_for({}, defaults={"region": "ini"}).environment["AWS_REGION"] == "ini"
    cleared = caller_for({}, defaults={"region": "ini"}, task_environment={"AWS_REGION": ""})
    assert cleared.environment["AWS_REGION"] == ""


@pytest.mark.parametrize(
    "layers",
    [
        {"options": {"profile": "work"}},
        {"options": {}, "variables": {"profile": "work"}},
        {"options": {}, "task_environment": {"AWS_PROFILE": "work"}},
    ],
)
def test_a_profile_replaces_keys_of_weaker_layers(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch, layers: dict[str, Any]
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    environment = caller_for(layers.pop("options"), **layers).environment
    assert environment["AWS_PROFILE"] == "work"
    assert not environment.keys() & KEYS.keys()


def test_keys_replace_the_profile_and_the_session_token_that_belonged_to_others(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    environment = caller_for({"access_key": "a", "secret_key": "b"}, variables={"profile": "work"}).environment
    assert environment["AWS_ACCESS_KEY_ID"] == "a"
    assert not environment.keys() & {"AWS_SESSION_TOKEN", "AWS_PROFILE"}


def test_half_a_pair_of_keys_is_refused(caller_for: CallerFor) -> None:
    with pytest.raises(ValueError, match="belong together"):
        caller_for({"access_key": "a"}, variables={"secret_key": "b"})


def test_the_endpoint_of_another_service_replaces_the_data_plane_of_the_first(
    caller_for: CallerFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWSIOT_TUNNEL_ENDPOINT", "first:443")
    environment = caller_for({"endpoint_url": "https://second"}).environment
    assert environment["AWS_ENDPOINT_URL_IOT"] == environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"] == "https://second"
    assert "AWSIOT_TUNNEL_ENDPOINT" not in environment


@pytest.mark.parametrize(
    ("option", "variable", "default", "verified"),
    [
        (None, None, None, True),
        (None, None, False, False),
        (None, True, False, True),
        (False, True, True, False),
        (None, False, True, False),
    ],
)
def test_certificates_are_verified_unless_the_strongest_layer_says_no(
    caller_for: CallerFor, option: bool | None, variable: bool | None, default: bool | None, verified: bool
) -> None:
    caller = caller_for(
        {"validate_certs": option}, variables={"validate_certs": variable}, defaults={"validate_certs": default}
    )
    assert caller.verify is verified
