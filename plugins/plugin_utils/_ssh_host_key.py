# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why ssh does not accept a device's host key, and what to do about it.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping

from ansible_collections.iotops.tunnel.plugins.plugin_utils._ssh_log import SshLog

__all__ = ["explain_host_key", "explain_unknown_key", "is_known"]

_KNOWN_HOSTS = ("userknownhostsfile", "globalknownhostsfile")
_AGAIN = "have its authority sign the host key again."


def explain_host_key(log: SshLog, thing: str, alias: str, config: Callable[[], Mapping[str, str]]) -> str | None:
    """Return a message for the operator, or None if ssh accepted the host key or did not receive it.

    Args:
        log: ssh's log.
        alias: the name by which ssh knows the device.
        config: returns ssh's configuration, as C(ssh -G) prints it. Called only if needed.
    """
    if not log.has(r"Host key verification failed\."):
        return None
    return (
        _revoked(log, thing)
        or _bad_certificate(log, thing, alias)
        or _changed(log, thing, alias)
        or _unchecked(log, thing)
        or explain_unknown_key(thing, alias, config)
    )


def explain_unknown_key(thing: str, alias: str, config: Callable[[], Mapping[str, str]]) -> str:
    """Return a message for a key that is in no known hosts file."""
    file = _file_with_authority(alias, config())
    if file is not None:
        return (
            f"The SSH host key of {thing} is not known here, and no certificate of it is from the authority that "
            f"{file} has for {alias}. Have that authority sign the host key (ssh-keygen -s CA_KEY -I {thing} -h -n "
            f"{alias}), and name the certificate in the device's sshd_config (HostCertificate)."
        )
    return (
        f"The SSH host key of {thing} is not known here. Compare its fingerprint with the device's, then "
        "accept it once, for example with ANSIBLE_SSH_COMMON_ARGS='-o StrictHostKeyChecking=accept-new'."
    )


def is_known(alias: str, config: Mapping[str, str]) -> bool:
    """Whether a known hosts file has a key for a name."""
    return any("" in _marks(alias, path) for path in _files(config))


def _revoked(log: SshLog, thing: str) -> str | None:
    by_file = log.find(r"Host key \S+ \S+ revoked by file (.+)")
    if not by_file and not log.has(r"The \S+ host key for .+ is marked as revoked\."):
        return None
    place = by_file[1] if by_file else "an @revoked line of ssh's known hosts"
    return (
        f"The SSH host key of {thing}, or the authority of its certificate, is revoked by {place}. Somebody else may "
        "have that key: give the device another one before you connect to it."
    )


def _bad_certificate(log: SshLog, thing: str, alias: str) -> str | None:
    if log.has(r"Certificate invalid: name is not a listed principal"):
        return (
            f"The SSH host certificate of {thing} does not have the name {alias}, by which ssh knows the device. Have "
            f"its authority sign the host key for that name (ssh-keygen -s CA_KEY -I {thing} -h -n {alias}), or see "
            "iotops_tunnel_host_key_alias."
        )
    now = time.strftime("%Y-%m-%d %H:%M %Z")
    if log.has(r"Certificate invalid: expired"):
        return f"The SSH host certificate of {thing} has expired; this machine's clock says {now}: {_AGAIN}"
    if log.has(r"Certificate invalid: not yet valid"):
        return (
            f"The SSH host certificate of {thing} is not valid yet; this machine's clock says {now}. Correct the "
            f"clock if it is wrong; if it is right, {_AGAIN}"
        )
    other = log.find(r"Certificate (?:invalid: |lacks |type is |has |signed ).*")
    return f"The SSH host certificate of {thing} is not accepted ({other[0]}): {_AGAIN}" if other else None


def _changed(log: SshLog, thing: str, alias: str) -> str | None:
    if not log.has(r"@ +WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! +@"):
        return None
    offending = log.find(r"Offending \S+ key in (.+):\d+")
    file = f" -f {shlex.quote(offending[1])}" if offending else ""
    return (
        f"The SSH host key of {thing} differs from the known one. Find out why. If the device was "
        f"replaced or reinstalled, remove the old key with: ssh-keygen -R {shlex.quote(alias)}{file}"
    )


def _unchecked(log: SshLog, thing: str) -> str | None:
    found = log.find(
        r"Error checking host key .+|host key \S+ not permitted by HostkeyAlgorithms|"
        r"Exiting, you have requested strict checking\."
    )
    return f"The SSH host key of {thing} could not be checked: {found[0]}" if found else None


def _file_with_authority(alias: str, config: Mapping[str, str]) -> str | None:
    """Return the known hosts file that has a certificate authority for a name."""
    return next((path for path in _files(config) if "CA" in _marks(alias, path)), None)


def _files(config: Mapping[str, str]) -> list[str]:
    """Return the known hosts files that exist. ssh -G does not quote their names."""
    named = [os.path.expanduser(file) for option in _KNOWN_HOSTS for file in config.get(option, "").split()]
    return [path for path in named if os.path.isfile(path)]


def _marks(alias: str, path: str) -> list[str]:
    """Return the marker of each line for a name: empty, C(CA) or C(REVOKED)."""
    command = ["ssh-keygen", "-F", alias, "-f", path]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603  no shell
    except OSError:
        return []
    return re.findall(r"^# Host .+ found: line \d+ ?(\w*)$", found.stdout, re.MULTILINE)
