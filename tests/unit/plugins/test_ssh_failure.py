# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator reads when ssh fails."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def explain(monkeypatch, tmp_path):
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    return importlib.import_module(
        "ansible_collections.iotops.tunnel.plugins.plugin_utils.ssh_failure"
    ).explain_ssh_failure


def test_the_connectors_line_is_all_that_is_said(explain):
    stderr = (
        "Warning: something\r\niotops.tunnel: the device thing refused SSH1: look there\r\nproxy dialer did not\r\n"
    )
    assert explain(stderr, "thing", "SSH1") == "the device thing refused SSH1: look there"


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R thing"),
        ("No ED25519 host key is known for thing\nHost key verification failed.", "is not known here"),
    ],
)
def test_host_keys_are_told_apart(explain, stderr, words):
    assert words in explain(stderr, "thing", "SSH1")


@pytest.mark.parametrize("stderr", ["", "user@thing: Permission denied (publickey).", "mux_client_request_session: x"])
def test_sshs_own_words_stay_where_they_serve(explain, stderr):
    assert explain(stderr, "thing", "SSH1") is None
