# SPDX-License-Identifier: Apache-2.0
"""The names of a thing in ssh: the host to connect to, which also names the control socket, and the host key's name.

Within an account, each name is unique, and ssh uses it. The first account in which a name occurs keeps the name
permanently; a thing with that name in another account is ``THING.ACCOUNT.REGION``, so that ssh never confuses them. The
names are kept in a file, because host keys outlive the hub.

A tunneling service that has moved keeps the host keys of its things. But a copy of it, which has the same account ID,
may have other devices: their control sockets are never shared. ssh ignores case in names, AWS does not: if two names
differ only in case, the second gets a digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from . import json_lines
from .account import Account, TunnelKey
from .location import DIRECTORY_VARIABLE, directory

__all__ = ["SshNames", "qualified_name"]

log = logging.getLogger(__name__)

FILE_NAME = "ssh-names.jsonl"


def qualified_name(key: TunnelKey) -> str:
    """The name of a thing that includes its account. Names of things contain no dots."""
    account = key.account
    return f"{key.thing}.{account.account_id or f'unknown-{_digest(account.endpoint)}'}.{account.region}"


class SshNames:
    """The assigned names.

    Args:
        path: the file in which they are kept.
    """

    def __init__(self, path: Path) -> None:
        self.file = json_lines.JsonLinesFile(path, self._lines)
        self._first: dict[str, TunnelKey] = {}
        """The thing that has the plain name, by that name in lower case."""
        for value in json_lines.read(path):
            try:
                thing, account = value
                self._first[thing.lower()] = TunnelKey(Account.from_key(account), thing)
            except (ValueError, TypeError, AttributeError):
                log.warning("skipping a line of %s that this release cannot read", path)

    @classmethod
    def of_this_user(cls) -> SshNames:
        """Open the names in the hub's folder, if one was configured, or else in a folder that survives a reboot."""
        if os.environ.get(DIRECTORY_VARIABLE):
            return cls(Path(directory()) / FILE_NAME)
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        return cls(Path(state) / "tunnelproxy" / FILE_NAME)

    def host(self, key: TunnelKey) -> str:
        """The host that ssh connects to; no two things have the same."""
        if self._first_of(key) == key:
            return key.thing
        # A self-hosted service may have a copy with the same account ID.
        at = f".{_digest(key.account.endpoint)}" if key.account.endpoint else ""
        return f"{self._told_apart(key)}{at}"

    def host_key(self, key: TunnelKey) -> str:
        """The name of the host key."""
        first = self._first_of(key)
        same = first.thing == key.thing and _without_endpoint(first.account) == _without_endpoint(key.account)
        return key.thing if same else self._told_apart(key)

    def _told_apart(self, key: TunnelKey) -> str:
        spelled = "" if self._first_of(key).thing == key.thing else f".{_digest(key.thing)}"
        return f"{qualified_name(key)}{spelled}"

    def _first_of(self, key: TunnelKey) -> TunnelKey:
        """The thing that has the plain name; if there is none, assign it to this one."""
        plain = key.thing.lower()
        if plain not in self._first:
            self._first[plain] = key
            self.file.save()
        return self._first[plain]

    def _lines(self) -> Iterator[str]:
        return (json.dumps([first.thing, first.account.key]) for first in self._first.values())


def _without_endpoint(account: Account) -> Account:
    return account._replace(endpoint="") if account.account_id else account


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
