# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The things of a fleet: from AWS IoT's registry or its fleet index, or from the registry of the tunneling service.

Reference: botocore's C(iot) model.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

# The maximum of ListThings and ListThingsInThingGroup.
_PAGE = 250
# The default of SearchIndex.
_INDEX_PAGE = 100


@dataclass(frozen=True)
class Selection:
    """Which things to return. The other conditions also apply to the results of C(query) in the fleet index."""

    query: str | None = None
    index: str = "AWS_Things"
    thing_types: tuple[str, ...] = ()
    thing_groups: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)

    def covers(self, thing: Thing) -> bool:
        """Whether type and attributes match. The registry itself checks only one of each; here all are checked."""
        if self.thing_types and thing.type not in self.thing_types:
            return False
        return all(thing.attributes.get(name) == value for name, value in self.attributes.items())


@dataclass(frozen=True)
class Thing:
    """A thing. None stands for what its source does not know."""

    name: str
    arn: str | None = None
    id: str | None = None
    type: str | None = None
    version: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    groups: list[str] | None = None
    connectivity: dict | None = None
    shadow: dict | None = None

    def known(self) -> dict:
        """The known values by name, always with C(type) and C(attributes)."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "type"}

    @classmethod
    def from_answer(cls, answer: dict, groups: list[str] | None = None) -> Thing:
        """Create it from a ThingAttribute (ListThings) or a ThingDocument (SearchIndex)."""
        return cls(
            name=answer["thingName"],
            arn=answer.get("thingArn"),
            id=answer.get("thingId"),
            type=answer.get("thingTypeName"),
            version=answer.get("version"),
            attributes=dict(answer.get("attributes") or {}),
            groups=answer.get("thingGroupNames") if groups is None else groups,
            connectivity=_connectivity(answer.get("connectivity")),
            shadow=_shadow(answer.get("shadow")),
        )


def things(caller: client.Caller, selection: Selection) -> list[Thing]:
    """Return the selected things, sorted by name.

    Args:
        caller: its environment selects the registry. The hub makes the calls.
    """
    found = _from_index(caller, selection) if selection.query else _from_registry(caller, selection)
    wanted = {thing.name: thing for thing in found if selection.covers(thing)}
    return [wanted[name] for name in sorted(wanted)]


def _from_index(caller: client.Caller, selection: Selection) -> Iterator[Thing]:
    purpose = f"search the index {selection.index} for {selection.query!r}"
    request = {"indexName": selection.index, "queryString": selection.query, "maxResults": _INDEX_PAGE}
    groups = set(selection.thing_groups)
    for answer in _pages(caller, purpose, "search_index", **request):
        for document in answer.get("things", ()):
            if not groups or groups & set(document.get("thingGroupNames", ())):
                yield Thing.from_answer(document)


def _from_registry(caller: client.Caller, selection: Selection) -> Iterator[Thing]:
    """Read all pages of the registry, also for the things of a group.

    A group's list has names only, and a page of the registry is as many things as 250 calls for one each.
    """
    groups = _groups_by_thing(caller, selection.thing_groups)
    if groups == {}:
        return
    for thing_type in selection.thing_types or (None,):
        for answer in _pages(caller, "list things", "list_things", **_request(selection, thing_type)):
            for document in answer.get("things", ()):
                if groups is None or document["thingName"] in groups:
                    yield Thing.from_answer(document, (groups or {}).get(document["thingName"]))


def _pages(caller: client.Caller, purpose: str, operation: str, **request: Any) -> Iterator[dict]:
    """Generate the responses of a call with C(nextToken)."""
    while True:
        answer = client.call(operation, request, purpose=purpose, api="iot", caller=caller)
        yield answer
        if not answer.get("nextToken"):
            return
        request["nextToken"] = answer["nextToken"]


def _request(selection: Selection, thing_type: str | None) -> dict:
    request: dict = {"maxResults": _PAGE}
    if thing_type:
        request["thingTypeName"] = thing_type
    if selection.attributes:
        request["attributeName"], request["attributeValue"] = next(iter(selection.attributes.items()))
    return request


def _groups_by_thing(caller: client.Caller, names: tuple[str, ...]) -> dict[str, list[str]] | None:
    """For each thing, the groups that it is in, directly or in a subgroup; None if no groups are given."""
    if not names:
        return None
    members: dict[str, list[str]] = {}
    for group in names:
        request = {"thingGroupName": group, "recursive": True, "maxResults": _PAGE}
        for answer in _pages(caller, f"list the things of group {group}", "list_things_in_thing_group", **request):
            for thing in answer.get("things", ()):
                members.setdefault(thing, []).append(group)
    return members


def _connectivity(answer: dict | None) -> dict | None:
    """Whether the thing's MQTT client is connected, since when (seconds since 1970), and why it disconnected."""
    if answer is None:
        return None
    known = {"connected": bool(answer.get("connected"))}
    if answer.get("timestamp"):
        known["since"] = answer["timestamp"] / 1000
    if answer.get("disconnectReason"):
        known["disconnect_reason"] = answer["disconnectReason"]
    return known


def _shadow(text: str | None) -> dict | None:
    try:
        shadow = json.loads(text or "null")
    except ValueError:
        return None
    return shadow if isinstance(shadow, dict) and shadow else None
