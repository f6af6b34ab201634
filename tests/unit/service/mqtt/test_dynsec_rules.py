# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the embedded broker. That Mosquitto understands and keeps them, the integration tests show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunnelproxy.service.mqtt.dynsec_rules import ADMINISTRATOR, COMMANDS, NOTIFIER, changes, configuration, refusals

TOPIC = "$aws/things/pump/tunnels/notify"


def commands(before: set[str], after: set[str]) -> list[dict[str, Any]]:
    content = changes(before, after)
    assert content is not None
    found: list[dict[str, Any]] = json.loads(content)["commands"]
    return found


def test_nobody_may_do_what_is_not_said() -> None:
    content = json.loads(configuration(["pump"]))
    assert content["defaultACLAccess"] == {
        "publishClientSend": False,
        "publishClientReceive": False,
        "subscribe": False,
        "unsubscribe": True,
    }
    allowed = {role["rolename"]: {(acl["acltype"], acl["topic"]) for acl in role["acls"]} for role in content["roles"]}
    assert allowed["pump"] == {("subscribeLiteral", TOPIC), ("publishClientReceive", TOPIC)}
    assert allowed[NOTIFIER] == {("publishClientSend", "$aws/things/+/tunnels/notify")}
    assert {user for user, acls in allowed.items() if any(topic.startswith("$CONTROL") for _, topic in acls)} == {
        ADMINISTRATOR
    }
    assert ("publishClientSend", COMMANDS) in allowed[ADMINISTRATOR]


def test_each_user_has_the_role_of_that_name_and_no_password() -> None:
    clients = json.loads(configuration(["pump", "valve"]))["clients"]
    assert {client["username"] for client in clients} == {"pump", "valve", NOTIFIER, ADMINISTRATOR}
    for client in clients:
        assert client == {"username": client["username"], "roles": [{"rolename": client["username"]}]}


def test_those_who_come_get_what_a_start_would_give_them() -> None:
    role, client = commands({"valve"}, {"valve", "pump"})
    [expected] = [role for role in json.loads(configuration(["pump"]))["roles"] if role["rolename"] == "pump"]
    assert (role.pop("command"), role) == ("createRole", expected)
    assert client == {"command": "createClient", "username": "pump", "roles": [{"rolename": "pump"}]}


def test_those_who_go_are_put_out_before_their_rules_go() -> None:
    assert commands({"valve", "pump"}, {"valve"}) == [
        {"command": "deleteClient", "username": "pump"},
        {"command": "deleteRole", "rolename": "pump"},
    ]


def test_where_nothing_changes_there_is_nothing_to_say() -> None:
    assert changes({"pump"}, {"pump"}) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"responses": [{"command": "createRole"}]}, []),
        ({"responses": [{"command": "createRole", "error": "Role already exists"}]}, []),
        (
            {"responses": [{"command": "createRole"}, {"command": "createClient", "error": "Out of memory"}]},
            ["createClient: Out of memory"],
        ),
        ({"responses": 7}, ["its answer cannot be parsed"]),
        ([], ["its answer cannot be parsed"]),
        ({"responses": [7]}, ["its answer cannot be parsed"]),
    ],
)
def test_answers_are_read(answer: object, expected: list[str]) -> None:
    assert refusals(json.dumps(answer).encode()) == expected


def test_what_is_no_json_is_not_understood() -> None:
    assert refusals(b"\xff") == ["its answer cannot be parsed"]
