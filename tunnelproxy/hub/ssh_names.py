# SPDX-License-Identifier: Apache-2.0
"""By which names ssh knows a thing: the host that it connects to, and so the control socket; and the host key.

Whoever works in one account meets each thing's name once, and ssh knows it by that name. The first account in which a
name is met keeps it, for good; the thing of that name in any other account is ``THING.ACCOUNT.REGION``, so that ssh
never takes one for the other. A file remembers, for host keys outlive the hub.

A tunneling service that has moved keeps the host keys of its things. But its copy, which has the same account ID, may
have other devices: their control sockets are never shared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from .account import Account, TunnelKey
from .client import DIRECTORY_VARIABLE, directory

__all__ = ["SshNames", "qualified_name"]

log = logging.getLogger(__name__)

FILE_NAME = "ssh-names.jsonl"


def qualified_name(key: TunnelKey) -> str:
    """The name that a thing has in one account alone. The name of a thing has no dots."""
    account = key.account
    return f"{key.thing}.{account.account_id or 'unknown'}.{account.region}"


class SshNames:
    """The names that were given.

    Args:
        path: the file that remembers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: dict[str, Account] = {}
        try:
            with path.open(encoding="utf-8") as lines:
                self._first = {thing: Account.from_key(account) for thing, account in map(json.loads, lines)}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            log.warning("which account a name of ssh's is for cannot be read from %s: %s", path, error)

    @classmethod
    def of_this_user(cls) -> SshNames:
        """Those in the hub's folder, if one was chosen, and else where a user's state outlives the machine's start."""
        if os.environ.get(DIRECTORY_VARIABLE):
            return cls(Path(directory()) / FILE_NAME)
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return cls(Path(state) / "tunnelproxy" / FILE_NAME)

    def host(self, key: TunnelKey) -> str:
        """The host that ssh connects to: no two things have the same."""
        first = self._first_account(key)
        if first == key.account:
            return key.thing
        if key.account.endpoint and first._replace(endpoint="") == key.account._replace(endpoint=""):
            digest = hashlib.sha256(key.account.endpoint.encode()).hexdigest()
            return f"{qualified_name(key)}.{digest[:8]}"
        return qualified_name(key)

    def host_key(self, key: TunnelKey) -> str:
        """The name of the host key."""
        same = self._first_account(key)._replace(endpoint="") == key.account._replace(endpoint="")
        return key.thing if same else qualified_name(key)

    def _first_account(self, key: TunnelKey) -> Account:
        """The account that has the plain name of a thing: from now on that of this one, if none has."""
        if key.thing not in self._first:
            self._first[key.thing] = key.account
            self._remember(key.thing, key.account.key)
        return self._first[key.thing]

    def _remember(self, thing: str, account: str) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([thing, account]) + "\n")
        except OSError as error:
            log.warning("which account the name %s is for cannot be kept in %s: %s", thing, self._path, error.strerror)
