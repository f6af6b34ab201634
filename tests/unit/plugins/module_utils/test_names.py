# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of things and services."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="module")
def valid_name():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.module_utils._names").valid_name


@pytest.mark.parametrize("name", ["a", "device-1", "Site:7_b", "x" * 128])
def test_names_of_aws_iot_are_valid(valid_name, name):
    assert valid_name("thing", name) == name


@pytest.mark.parametrize("name", ["", "-o", "a b", "a;b", "a\n", "a.b", "x" * 129, "%h", "$(x)", None])
def test_other_names_are_not(valid_name, name):
    with pytest.raises(ValueError, match="cannot be the name of a thing"):
        valid_name("thing", name)
