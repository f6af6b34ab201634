# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host names of things in the inventory, chosen so that no thing replaces another host.

Otherwise, someone with permission to name things, or to set their attributes, could give a thing the name of one of the
operator's hosts or groups. Its variables would be merged into those of the host, and a play for the group would not
reach the hosts in it.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable
from typing import NamedTuple

from ansible import constants
from ansible.inventory.data import InventoryData
from ansible_collections.iotops.tunnel.tunnelproxy.hub.account import Account

_OWN_NAMES = {"all", "ungrouped", *constants.LOCALHOST}

# The names that work in Ansible's patterns and file paths. Names of things may contain a colon, which ends a name in a
# pattern.
_FIT = re.compile(r"\w[\w .:+=@-]{0,254}(?<! )\Z")


class Origin(NamedTuple):
    """The source of a thing.

    Attributes:
        asked: a digest of the settings that select the registry; equal for the same account.
        endpoint: the registry's URL; empty for AWS's own.
    """

    asked: str
    endpoint: str


class KnownThing(NamedTuple):
    """The thing of a host in the inventory."""

    name: str
    arn: str | None
    origin: Origin

    def is_same(self, other: KnownThing) -> bool:
        """Whether both are the same thing in the same account."""
        if self.name != other.name:
            return False
        if self.origin.asked == other.origin.asked:
            return True
        return self.arn is not None and (self.arn, self.origin.endpoint) == (other.arn, other.origin.endpoint)


# The things among the hosts, for the next file of the same inventory. A new run of the inventory starts afresh.
_hosts_of: weakref.WeakKeyDictionary[InventoryData, dict[str, KnownThing]] = weakref.WeakKeyDictionary()


def is_fit(name: object) -> bool:
    """Whether a string can be the name of a host."""
    return isinstance(name, str) and bool(_FIT.match(name))


class HostNames:
    """Chooses names for the things of one file.

    Args:
        inventory: with what the files before have put there.
        groups: names of groups that the file itself makes.
    """

    def __init__(self, inventory: InventoryData, groups: Iterable[str]) -> None:
        self._inventory = inventory
        self._groups = _OWN_NAMES | set(inventory.groups) | set(groups)
        self._things = _hosts_of.setdefault(inventory, {})
        self._given: dict[str, KnownThing] = {}

    def give(self, wanted: str, thing: KnownThing) -> tuple[str | None, str]:
        """Return the name of a thing's host and, if it is not the wanted one, the reason.

        If the wanted name is taken, it is C(THING.ACCOUNT.REGION), or C(THING.thing) if the account is not known, or
        None if that is also taken.
        """
        reason = self._taken(wanted, thing)
        name = self._qualified(thing) if reason else wanted
        if reason and self._taken(name, thing):
            return None, reason
        self._given[name] = thing
        return name, reason

    def keep(self) -> None:
        """Store the names for the files that are read after this one."""
        self._things.update(self._given)

    def _taken(self, name: str, thing: KnownThing) -> str:
        """What has the name, for a message; empty if the name is free, or the thing already has it."""
        if name in _OWN_NAMES:
            return "Ansible itself uses that name"
        if name in self._groups:
            return "a group has that name"
        if name in self._given:
            return f"the thing {self._given[name].name} has that name"
        if name not in self._inventory.hosts:
            return ""
        known = self._things.get(name)
        if known is None:
            return "a host from another source of the inventory has that name"
        return "" if known.is_same(thing) else f"a thing {known.name} in another account has that name"

    def _qualified(self, thing: KnownThing) -> str:
        alike = (known.arn for known in (*self._given.values(), *self._things.values()) if known.origin == thing.origin)
        for arn in (thing.arn, *alike):
            try:
                account = Account.from_arn(arn or "")
            except ValueError:
                continue
            return f"{thing.name}.{account.account_id}.{account.region}"
        return f"{thing.name}.thing"
