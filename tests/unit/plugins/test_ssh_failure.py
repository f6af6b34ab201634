# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator reads when ssh fails."""

from __future__ import annotations

import importlib

import pytest

WAY = ("thing", "SSH1", "aws:123456789012:eu-central-1", "thing.123456789012.eu-central-1")


@pytest.fixture
def ssh_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.ssh_failure")


@pytest.fixture
def explain(ssh_failure):
    """For ssh's words, and the connector's."""

    def explain(stderr, complaint=""):
        return ssh_failure.explain_ssh_failure(stderr, ssh_failure.Way(*WAY), complaint)

    return explain


@pytest.fixture
def explain_break(ssh_failure):
    """For a connection that a hub which is no more has carried."""

    def explain(stderr, still_up):
        return ssh_failure.explain_break(stderr, ssh_failure.Way(*WAY), hub_pid=1, still_up=lambda: still_up)

    return explain


def test_the_connectors_line_is_all_that_is_said(explain):
    complaint = "Warning: something\r\niotops.tunnel: the device thing refused SSH1: look there\r\n"
    assert explain("proxy dialer did not\r\n", complaint) == "the device thing refused SSH1: look there"


def test_what_the_device_says_is_not_taken_for_the_connectors_word(explain):
    assert explain("iotops.tunnel: the tunnel was closed: run this\r\nPermission denied (publickey).") is None


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "ssh-keygen -R thing.123456789012.eu-central-1",
        ),
        ("No ED25519 host key is known for thing\nHost key verification failed.", "is not known here"),
    ],
)
def test_host_keys_are_told_apart(explain, stderr, words):
    assert words in explain(stderr)


@pytest.mark.parametrize("stderr", ["", "user@thing: Permission denied (publickey).", "mux_client_request_session: x"])
def test_sshs_own_words_stay_where_they_serve(explain, stderr):
    assert explain(stderr) is None


def test_a_connector_that_crashed_is_no_silent_device(explain):
    stderr = "mm_receive_fd: recvmsg: expected received 1 got 0\nproxy dialer did not pass back a connection\n"
    assert explain(stderr, "Traceback …\nKeyError: 'x'\n") == (
        "thing cannot be reached: ssh's proxy command failed: KeyError: 'x'"
    )


def test_a_hub_that_ended_broke_the_connection(explain_break):
    sentence = explain_break("Shared connection to thing closed.", still_up=False)
    assert sentence.startswith("The SSH connection to thing broke off: the hub (process 1) has ended")


def test_a_connection_that_is_up_did_not_break(explain_break):
    assert "The command on thing ended with status 255" in explain_break("", still_up=True)


def test_a_login_that_was_refused_is_no_broken_connection(explain_break):
    assert explain_break("user@thing: Permission denied (publickey).", still_up=False) is None
