# SPDX-License-Identifier: GPL-3.0-or-later
"""By which host names browsers know devices."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelproxy.hub.account import Account, TunnelKey
from tunnelproxy.hub.browser_host import browser_host

HERE = Account("aws", "123456789012", "eu-central-1")
THERE = Account("aws", "210987654321", "eu-central-1")


def host(thing: str, account: Account = HERE, *, is_first: bool = True) -> str:
    return browser_host(TunnelKey(account, thing), is_first=is_first)


@pytest.mark.parametrize("thing", ["pump", "pump-7", "7", "a" * 63, "r3---x", "gw-0011aabbccdd"])
def test_a_thing_whose_name_may_be_a_hosts_has_its_own(thing: str) -> None:
    assert host(thing) == f"{thing}.localhost"


@pytest.mark.parametrize("thing", ["Pump", "pump_7", "plant:pump", "pump-", "a" * 64, "xn--pump", "-_-"])
def test_of_other_names_as_much_is_kept_as_may_be(thing: str) -> None:
    kept = re.sub("[^a-z0-9]+", "-", thing.lower()).strip("-")[:50]
    assert re.fullmatch(rf"{kept}-?x[a-z2-7]{{11}}\.localhost", host(thing))


def test_two_accounts_things_of_one_name_are_two_hosts() -> None:
    found = {host("pump"), host("pump", THERE, is_first=False), host("pump", HERE, is_first=False)}
    assert len(found) == 3


def test_no_thing_is_named_like_the_host_of_another() -> None:
    taken = host("Pump").removesuffix(".localhost")
    assert host(taken) != host("Pump")


NAMES = st.text("aAbz09_:-", min_size=1, max_size=128).filter(lambda name: not name.startswith("-"))


@given(NAMES, NAMES)
def test_every_host_is_one_label_and_no_two_are_the_same(one: str, other: str) -> None:
    assert re.fullmatch(r"(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.localhost", host(one))
    assert (host(one) == host(other)) == (one == other)
