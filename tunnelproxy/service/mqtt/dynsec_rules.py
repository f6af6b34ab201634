# SPDX-License-Identifier: Apache-2.0
"""The embedded broker's access rules, for Mosquitto's dynamic security plugin.

With an ACL file, Mosquitto 2.0 grants every subscription and checks only when it delivers. The plugin rejects a
subscription immediately, so an agent learns that its topic is wrong. The passwords are in Mosquitto's password
file, which Mosquitto consults for users that have no password here; so these rules contain no secrets.

Source: the plugin's own documentation, mosquitto.org/documentation/dynamic-security.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

__all__ = ["ADMINISTRATOR", "ANSWERS", "COMMANDS", "NOTIFIER", "changes", "configuration", "refusals"]

NOTIFIER = "tunnel.notifier"
"""The user that publishes notifications. No thing can have this name."""

ADMINISTRATOR = "tunnel.administrator"
"""The user that changes the rules. No thing can have this name."""

COMMANDS = "$CONTROL/dynamic-security/v1"
"""The topic for commands to the plugin."""

ANSWERS = f"{COMMANDS}/response"
"""The topic of the plugin's answers."""

# Errors of repeated commands, which change nothing.
_ALREADY_DONE = frozenset({"Role already exists", "Client already exists", "Role not found", "Client not found"})


def configuration(things: Iterable[str]) -> bytes:
    """The plugin's configuration file, for a broker that is about to start."""
    rules = {
        NOTIFIER: [_allow("publishClientSend", _notify_topic("+"))],
        ADMINISTRATOR: [
            _allow("publishClientSend", COMMANDS),
            _allow("subscribeLiteral", ANSWERS),
            _allow("publishClientReceive", ANSWERS),
        ],
        **{thing: _rules_of(thing) for thing in things},
    }
    return json.dumps(
        {
            "defaultACLAccess": {
                "publishClientSend": False,
                "publishClientReceive": False,
                "subscribe": False,
                "unsubscribe": True,
            },
            "roles": [{"rolename": user, "acls": acls} for user, acls in rules.items()],
            "clients": [{"username": user, "roles": [{"rolename": user}]} for user in rules],
        }
    ).encode()


def changes(before: Iterable[str], after: Iterable[str]) -> bytes | None:
    """The commands that replace the rules for some things with those for others; None if nothing changes."""
    old, new = set(before), set(after)
    commands: list[dict[str, Any]] = []
    for thing in sorted(new - old):
        commands.append({"command": "createRole", "rolename": thing, "acls": _rules_of(thing)})
        commands.append({"command": "createClient", "username": thing, "roles": [{"rolename": thing}]})
    for thing in sorted(old - new):
        # This also disconnects the thing.
        commands.append({"command": "deleteClient", "username": thing})
        commands.append({"command": "deleteRole", "rolename": thing})
    return json.dumps({"commands": commands}).encode() if commands else None


def refusals(answer: bytes) -> list[str]:
    """The commands that the plugin did not execute, and why."""
    try:
        responses = json.loads(answer)["responses"]
        failed = [(response["command"], response["error"]) for response in responses if "error" in response]
    except (ValueError, KeyError, TypeError):
        return ["its answer cannot be parsed"]
    return [f"{command}: {error}" for command, error in failed if error not in _ALREADY_DONE]


def _rules_of(thing: str) -> list[dict[str, Any]]:
    topic = _notify_topic(thing)
    return [_allow("subscribeLiteral", topic), _allow("publishClientReceive", topic)]


def _allow(what: str, topic: str) -> dict[str, Any]:
    return {"acltype": what, "topic": topic, "priority": 0, "allow": True}


def _notify_topic(thing: str) -> str:
    return f"$aws/things/{thing}/tunnels/notify"
