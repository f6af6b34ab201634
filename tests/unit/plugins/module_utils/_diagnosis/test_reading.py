# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a device, on this machine: bounds, masks, and what is not there."""

from __future__ import annotations

import ast
import importlib
import socket

import pytest

from peers.process import REPOSITORY

PACKAGE = "ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis"
ON_DEVICES = [
    REPOSITORY / "plugins" / "modules" / "diagnose.py",
    *sorted((REPOSITORY / "plugins" / "module_utils" / "_diagnosis").glob("*.py")),
]


def module(name):
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.mark.parametrize("path", ON_DEVICES, ids=lambda path: path.name)
def test_the_oldest_python_that_ansible_runs_on_devices_can_read_it(path):
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("password=hunter2 refused", "password=******** refused"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "********", "n": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ********"),
        ("key AKIAIOSFODNN7EXAMPLE is void", "key ******** is void"),
        ("SessionToken=xyz; next", "SessionToken=******** next"),
        ("the token was refused", "the token was refused"),
    ],
)
def test_what_looks_like_a_secret_is_masked(line, masked):
    assert module("reading").masked(line) == masked


def test_texts_are_one_line_without_controls_and_not_long():
    bounded = module("reading").bounded
    assert bounded({"a": ["x\n\x1b[31my\x00", 7, None]}) == {"a": ["x [31my", 7, None]}
    assert len(bounded("x" * 10_000)) == 400
    assert bounded("\ud800") == "?"


def test_what_is_not_there_says_so(tmp_path):
    reading = module("reading")
    with pytest.raises(reading.Unavailable, match="there is no command no-such-command"):
        reading.run("no-such-command")
    with pytest.raises(reading.Unavailable, match="cannot be read: No such file"):
        reading.read_text(str(tmp_path / "none"))


def test_tries_end_although_nobody_answers(monkeypatch):
    network = module("network")
    monkeypatch.setattr(network, "TRY_SECONDS", 0.3)
    with socket.socket() as deaf:
        # Bound, and never listening: refused at once.
        deaf.bind(("127.0.0.1", 0))
        refused = f"127.0.0.1:{deaf.getsockname()[1]}"
        rows = network.network(["localhost"], [refused, "nonsense"])["tries"]
    assert [(row["subject"], row["ok"]) for row in rows] == [
        ("localhost", True),
        (refused, False),
        ("nonsense", False),
    ]
    assert [row["detail"] for row in rows[1:]] == ["Connection refused", "not HOST:PORT"]
