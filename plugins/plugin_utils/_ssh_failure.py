# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why ssh failed through a tunnel, as a message for the operator.

A connection "broke off" only if ssh had logged in. ssh does not report the login, but it does report every earlier
failure, in its log, or by having no log if its command line or its LogLevel is at fault.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ansible_collections.iotops.tunnel.plugins.plugin_utils._ssh_host_key import (
    explain_host_key,
    explain_unknown_key,
    is_known,
)
from ansible_collections.iotops.tunnel.plugins.plugin_utils._ssh_log import SshLog, last_words
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

__all__ = [
    "Probes",
    "SshOutput",
    "Target",
    "explain_killed",
    "explain_ssh",
    "explain_sshpass",
    "explain_transfer",
    "lost_master",
]

_CONNECTOR_LINE = re.compile(r"^iotops\.tunnel: (.+?)\s*$", re.MULTILINE)
_GREETING_LINE = re.compile(r"^iotops\.tunnel greeting: (.+?)\s*$", re.MULTILINE)

_NO_GREETING = r"(?:kex|ssh)_exchange_identification: .*|banner exchange: .*"
_SILENCE = r"Connection timed out during banner exchange|Connection to UNKNOWN port 65535 timed out"

# Algorithms for which the two sides have nothing in common, and the option of ssh that enables more.
_OPTIONS = {
    "host key type": "HostKeyAlgorithms",
    "key exchange method": "KexAlgorithms",
    "cipher": "Ciphers",
    "MAC": "MACs",
    "compression": "Compression",
}

_HINTS = (
    (
        r"ControlPath too long \(.*|.*unix_listener: path .* too long.*",
        "set ANSIBLE_SSH_CONTROL_PATH_DIR, or control_path_dir in ansible.cfg, to a shorter path",
    ),
    (
        r"Cannot specify -J with ProxyCommand|inconsistent options: ProxyCommand\+ProxyJump",
        "remove -J from ssh's arguments: the tunnel already leads to the device",
    ),
    (
        r"Cannot execute command-line and remote command\.",
        "remove RemoteCommand from ssh's configuration for this host, or add '-o RemoteCommand=none' to "
        "ansible_ssh_extra_args",
    ),
    (
        r"Received disconnect from .*: Too many authentication failures",
        "ssh offered more keys than the device's MaxAuthTries: set ansible_ssh_private_key_file, and add "
        "'-o IdentitiesOnly=yes' to ansible_ssh_common_args",
    ),
    (
        r".*: Permission denied \([^()]*\)\.",
        "the device does not let this user (ansible_user) log in with the keys, or the password, that ssh has",
    ),
)

# What ssh writes to stderr, not to its log, when a connection that no other process shares is lost after the login.
_LOST = re.compile(r"^(?:Connection to \S+ closed by remote host\.|Read from remote host \S+: .+)\r?$", re.MULTILINE)
_SILENT_LEVELS = ("SILENT", "QUIET")
_TERSE_LEVELS = (*_SILENT_LEVELS, "FATAL", "ERROR")


class Target(NamedTuple):
    """What ssh connected to. C(alias) is the name by which it knows the host key."""

    thing: str
    service: str
    account: str
    alias: str


class SshOutput(NamedTuple):
    """The output of a run of ssh.

    C(log) is ssh's own log, or None if ssh exited before it opened one; C(stderr) also has the device's output.
    C(connector) is the output of the connector, or None if ssh did not start it, because it shared a connection or
    failed earlier.
    """

    log: str | None
    stderr: str
    connector: str | None


class Probes(NamedTuple):
    """Checks that are made only if needed.

    C(still_up) returns whether the connection that tasks share exists. C(config) returns the output of C(ssh -G) as
    options by name, or its error as C(failure).
    C(hub_pid) is the process ID of the hub that carried the connection.
    """

    still_up: Callable[[], bool]
    config: Callable[[], Mapping[str, str]]
    hub_pid: int | None


def lost_master(output: SshOutput) -> bool:
    """Whether the process with the shared connection had just exited, in which case ansible-core runs ssh again."""
    return SshLog(output.log).lost_master


def explain_ssh(output: SshOutput, target: Target, probes: Probes) -> str | None:
    """Return a message for ssh's status 255, or None if ssh printed nothing."""
    before = _explain_before_login(output, target, probes)
    if before is not None:
        return before
    if output.log is None and output.connector is None:
        words = last_words(output.stderr)
        return _nothing_was_run(target, [words], words) if words else None
    log = SshLog(output.log)
    if log.ends_session:
        return _explain_session(output, log, target, probes)
    if log.ends_anywhere:
        return _perhaps_broken(target, log.words, _why_broken(target, probes))
    return _nothing_was_run(target, log.lines, log.words)


def explain_killed(output: SshOutput, target: Target, probes: Probes) -> str | None:
    """Return a message for an ssh that Ansible killed, or None if it had logged in, as far as is known."""
    return _explain_before_login(output, target, probes)


def explain_sshpass(output: SshOutput, target: Target, probes: Probes) -> str | None:
    """Return a message if sshpass stopped ssh because ssh asked whether to accept a host key.

    Return None if the status is that of the command, which sshpass passes on.
    """
    before = _explain_before_login(output, target, probes)
    if before is not None or probes.still_up():
        return before
    config = probes.config()
    if config.get("stricthostkeychecking") != "ask":
        return None
    # If the connection is kept after a login, it would still be up.
    is_kept = config.get("controlmaster") != "false" and config.get("controlpersist") != "no"
    if not is_kept and is_known(target.alias, config):
        return None
    return explain_unknown_key(target.thing, target.alias, probes.config)


def explain_transfer(output: SshOutput, target: Target, probes: Probes) -> str | None:
    """Return a message for an sftp or scp that failed, or None if only the transfer may have failed.

    In that case, ansible-core tries the next method. sftp and scp keep no log, and their output is not evaluated.
    """
    said = _connector_said(output)
    if said is not None:
        return said
    if probes.still_up():
        return None
    why = _why_broken(target, probes)
    if why.code == "broken":
        return None
    return f"A file transfer with {target.thing} broke off: {why}. A part of the file may be there: run the task again."


def _connector_said(output: SshOutput) -> str | None:
    found = _CONNECTOR_LINE.search(output.connector or "")
    return found[1] if found else None


def _explain_before_login(output: SshOutput, target: Target, probes: Probes) -> str | None:
    """Return why there was no connection, or why the host key or an algorithm was not accepted."""
    log = SshLog(output.log)
    return (
        _connector_said(output)
        or explain_host_key(log, target.thing, target.alias, probes.config)
        or _explain_negotiation(log, target)
        or _explain_proxy_command(output, log, target)
        or _explain_greeting(output, log, target)
    )


def _explain_negotiation(log: SshLog, target: Target) -> str | None:
    found = log.find(r"Unable to negotiate with .+: no matching (.+) found\. Their offer: ([A-Za-z0-9@.,_+-]+)")
    if not found or found[1] not in _OPTIONS:
        return None
    return (
        f"ssh and the SSH server of {target.thing} have no {found[1]} in common; the server offers {found[2]}. Update "
        f"the older of the two, or allow it for this host: ansible_ssh_common_args='-o {_OPTIONS[found[1]]}="
        f"+{found[2].split(',')[0]}'"
    )


def _explain_proxy_command(output: SshOutput, log: SshLog, target: Target) -> str | None:
    if not log.has(r".*proxy dialer did not pass back a connection"):
        return None
    words = ((output.connector or "").strip() or log.words).splitlines()[-1]
    return f"{target.thing} cannot be reached: ssh's proxy command failed: {words}"


def _explain_greeting(output: SshOutput, log: SshLog, target: Target) -> str | None:
    """Explain a stream that was closed, or stayed silent, before the SSH server's greeting."""
    refused = log.has(_NO_GREETING)
    if not refused and not log.has(_SILENCE):
        return None
    greeting = _GREETING_LINE.search(output.connector or "")
    if greeting:
        hint = (
            "more connections were waiting for their login than its MaxStartups allows; try again, or raise it"
            if greeting[1] == "Exceeded MaxStartups"
            else f"check that {target.service} leads to an SSH server, and that it lets this machine log in"
        )
        return f"The server behind {target.service} of {target.thing} rejected ssh with '{greeting[1]}': {hint}."
    return str(client.explain(target.thing, target.service, refused=refused, account=target.account))


def _nothing_was_run(target: Target, lines: list[str], words: str) -> str:
    hint = next((hint for pattern, hint in _HINTS if any(re.fullmatch(pattern, line) for line in lines)), None)
    if hint:
        return f"ssh failed ({words}), and nothing was run on {target.thing}: {hint}."
    return f"ssh failed, and nothing was run on {target.thing}: {words}"


def _explain_session(output: SshOutput, log: SshLog, target: Target, probes: Probes) -> str:
    """Explain the end of a connection that had worked, or about which ssh logged nothing at all."""
    config = {} if log.lines else probes.config()
    words = last_words(config.get("failure", ""))
    if words and output.connector is None:
        return _nothing_was_run(target, [words], words)
    silent = config.get("loglevel") in _SILENT_LEVELS
    if not silent and (probes.still_up() or _ended_by_itself(output, log, probes)):
        return (
            f"The command on {target.thing} ended with status 255, which ssh also uses for its own failures, so "
            "Ansible reports the host as unreachable. The connection did not break: have the command end with another "
            "status."
        )
    why = _why_broken(target, probes)
    if silent and why.code == "broken":
        return (
            f"ssh to {target.thing} ended with status 255, and does not say why, because its LogLevel is QUIET: set "
            "LogLevel=ERROR in its arguments, or its configuration. Whether the task had begun is not known: check, "
            "then run it again."
        )
    if silent:
        return _perhaps_broken(target, "ssh's LogLevel is QUIET", why)
    return (
        f"The SSH connection to {target.thing} broke off: {why}. What the task did until then is not known: check, "
        "then run it again."
    )


def _ended_by_itself(output: SshOutput, log: SshLog, probes: Probes) -> bool:
    """Whether ssh would have reported a lost connection, because it does not share its connection."""
    if log.lines or output.connector is None or _LOST.search(output.stderr):
        return False
    config = probes.config()
    return config.get("controlmaster") == "false" and config.get("loglevel") not in _TERSE_LEVELS


def _perhaps_broken(target: Target, words: str, why: client.HubError) -> str:
    return (
        f"The SSH connection to {target.thing} ended ({words}): {why}. Whether the task had begun is not known: check, "
        "then run it again."
    )


def _why_broken(target: Target, probes: Probes) -> client.HubError:
    return client.explain_break(target.thing, target.service, hub_pid=probes.hub_pid, account=target.account)
