# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host of the inventory a thing becomes, so that no thing takes another host's place.

Whoever may name a thing, or set its attributes, could otherwise name it like a host or a group of the operator's: its
variables would be merged into those of that host, and a play for that group would not reach whom it is meant for.

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

# What Ansible's patterns and the paths of its files leave a name. A colon ends a name in a pattern; names of things may
# have one.
_FIT = re.compile(r"\w[\w .:+=@-]{0,254}(?<! )\Z")


class Origin(NamedTuple):
    """Where a thing is from.

    Attributes:
        asked: a digest of what says which registry was asked; equal for one account.
        endpoint: the registry's URL; empty for AWS's own.
    """

    asked: str
    endpoint: str


class KnownThing(NamedTuple):
    """What a host of the inventory stands for."""

    name: str
    arn: str | None
    origin: Origin

    def is_same(self, other: KnownThing) -> bool:
        """Whether the two are one thing, in one account."""
        if self.name != other.name:
            return False
        if self.origin.asked == other.origin.asked:
            return True
        return self.arn is not None and (self.arn, self.origin.endpoint) == (other.arn, other.origin.endpoint)


# The things among the hosts of an inventory, for the next of its files; by each inventory, which is read again.
_hosts_of: weakref.WeakKeyDictionary[InventoryData, dict[str, KnownThing]] = weakref.WeakKeyDictionary()


def is_fit(name: object) -> bool:
    """Whether a text may be a host's name."""
    return isinstance(name, str) and bool(_FIT.match(name))


class HostNames:
    """Gives names to the things of one file.

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
        """Return the name of a thing's host, and why it is not the one that is wanted, if it is not.

        It is C(THING.ACCOUNT.REGION) where the other is taken, or C(THING.thing) where the account is not known; None
        where that is taken as well.
        """
        reason = self._taken(wanted, thing)
        name = self._qualified(thing) if reason else wanted
        if reason and self._taken(name, thing):
            return None, reason
        self._given[name] = thing
        return name, reason

    def keep(self) -> None:
        """Tell the files that are read after this one."""
        self._things.update(self._given)

    def _taken(self, name: str, thing: KnownThing) -> str:
        """What has a name, for a sentence; empty if it is free, or the thing's already."""
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
