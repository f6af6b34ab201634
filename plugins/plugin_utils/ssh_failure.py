# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh's own words mean, when it runs through a tunnel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

_CONNECTOR_LINE = re.compile(r"^iotops\.tunnel: (.+?)\s*$", re.MULTILINE)

# ssh had a stream, and it ended or stayed silent before the SSH server's greeting.
_NO_GREETING = (
    "kex_exchange_identification:",
    "Connection closed by UNKNOWN port 65535",
    "Connection reset by UNKNOWN port 65535",
)
_SILENCE = ("Connection timed out during banner exchange", "Connection to UNKNOWN port 65535 timed out")

# A line of ssh's that says why it did not log in, or that nothing is wrong.
_OTHER_REASON = re.compile(
    r"Permission denied|Too many authentication failures|Unable to negotiate|no mutual signature|"
    r"Bad configuration option|command-line line|Bad owner or permissions|Load key|ssh_askpass|sshpass"
)


class Way(NamedTuple):
    """What ssh was led to. C(alias) is the name by which it knows the host key."""

    thing: str
    service: str
    account: str
    alias: str


def explain_ssh_failure(stderr: str, way: Way, complaint: str) -> str | None:
    """Return a sentence for the operator, or None where ssh's own words serve (a refused key, a command's status).

    C(complaint) is what the connector has said. It is no part of C(stderr), in which the device has its say.
    """
    thing = way.thing
    connector = _CONNECTOR_LINE.search(complaint)
    if connector:
        return connector.group(1)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return (
            f"The SSH host key of {thing} is not the one that is known for it. Find out why; if the device was "
            f"replaced or installed anew, forget the old key with: ssh-keygen -R {way.alias}"
        )
    if "Host key verification failed" in stderr:
        return (
            f"The SSH host key of {thing} is not known here. Compare its fingerprint with the device's, then "
            "accept it once, for example with ANSIBLE_SSH_COMMON_ARGS='-o StrictHostKeyChecking=accept-new'."
        )
    if "proxy dialer did not pass back a connection" in stderr:
        words = (complaint.strip() or stderr.strip()).splitlines()[-1]
        return f"{thing} cannot be reached: ssh's proxy command failed: {words}"
    refused = any(words in stderr for words in _NO_GREETING)
    if refused or any(words in stderr for words in _SILENCE):
        return str(client.explain(thing, way.service, refused=refused, account=way.account))
    return None


def explain_break(stderr: str, way: Way, *, hub_pid: int | None, still_up: Callable[[], bool]) -> str | None:
    """Return a sentence for ssh's status 255, or None where ssh gave a reason; of a broken connection it says nothing.

    C(hub_pid) is that of the hub which carried it; C(still_up) tells whether the shared connection is there.
    """
    if _OTHER_REASON.search(stderr):
        return None
    if still_up():
        return (
            f"The command on {way.thing} ended with status 255, by which ssh also tells its own failures, so that "
            "Ansible takes the host for unreachable. The connection is up: have the command end with another status."
        )
    why = client.explain_break(way.thing, way.service, hub_pid=hub_pid, account=way.account)
    return (
        f"The SSH connection to {way.thing} broke off: {why}. What the task did until then is not known: look, then "
        "run it again."
    )
