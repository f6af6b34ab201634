# SPDX-License-Identifier: GPL-3.0-or-later
"""The private file between the action plugin and its module."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def exchange(tmp_path):
    module = importlib.import_module("ansible_collections.iotops.tunnel.plugins.module_utils.exchange")
    path = tmp_path / "exchange"
    path.touch(mode=0o600)
    return module.Exchange(str(path))


def test_an_empty_file_holds_nothing(exchange):
    assert exchange.environment() == {}
    assert exchange.tokens() == {}


def test_each_side_finds_what_the_other_put(exchange):
    exchange.put_environment({"AWS_REGION": "here"})
    exchange.put_tokens({"source": "one", "destination": "two"})
    exchange.put_tokens({"source": "three"})
    assert exchange.environment() == {"AWS_REGION": "here"}
    assert exchange.tokens() == {"source": "three", "destination": "two"}


def test_the_file_stays_private(exchange, tmp_path):
    exchange.put_tokens({"source": "one"})
    assert (tmp_path / "exchange").stat().st_mode & 0o777 == 0o600


def test_no_file_is_made_where_there_is_none(exchange, tmp_path):
    (tmp_path / "exchange").unlink()
    with pytest.raises(FileNotFoundError):
        exchange.put_tokens({"source": "one"})
