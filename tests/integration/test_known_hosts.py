# SPDX-License-Identifier: GPL-3.0-or-later
"""Host keys that ssh-keygen does or does not find in known_hosts files: the messages for the operator."""

from __future__ import annotations

import importlib

import pytest

from peers.host_keys import FAILED, KEY, STRICT, HostKeys

PACKAGE = "ansible_collections.iotops.tunnel.plugins.plugin_utils"

pytestmark = pytest.mark.usefixtures("importable_collection")


@pytest.fixture
def explain(tmp_path):
    return HostKeys(tmp_path).explain


@pytest.mark.parametrize("lines", [(STRICT, FAILED), (FAILED,)])
def test_an_unknown_key_may_be_accepted(explain, lines):
    assert "accept-new" in explain(*lines, known=f"@cert-authority other {KEY}\n")


def test_a_key_without_a_certificate_must_not_be_accepted_if_there_is_an_authority(explain):
    said = explain(FAILED, known=f"@cert-authority g* {KEY}\n")
    assert "no certificate of it is from the authority" in said
    assert "accept-new" not in said


TARGET = ("thing", "SSH1", "aws:123456789012:eu-central-1", "thing.123456789012.eu-central-1")
KNOWN = f"{TARGET[3]} {KEY}\n"
KEPT = {"stricthostkeychecking": "ask", "controlmaster": "auto", "controlpersist": "60"}
NOT_KEPT = {"stricthostkeychecking": "ask", "controlmaster": "false", "controlpersist": "no"}


@pytest.mark.parametrize(
    ("known", "still_up", "config", "is_unknown_key"),
    [
        ("", False, KEPT, True),
        ("", False, NOT_KEPT, True),
        (KNOWN, False, KEPT, True),  # a key of another type is known, and ssh asks too
        (KNOWN, True, KEPT, False),
        (KNOWN, False, NOT_KEPT, False),
        ("", False, {**NOT_KEPT, "stricthostkeychecking": "false"}, False),
    ],
)
def test_sshpass_status_for_an_unknown_key_can_be_that_of_a_command(
    tmp_path, monkeypatch, known, still_up, config, is_unknown_key
):
    (tmp_path / "known_hosts").write_text(known)
    config = {**config, "userknownhostsfile": str(tmp_path / "known_hosts")}
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    ssh_failure = importlib.import_module(f"{PACKAGE}._ssh_failure")
    output = ssh_failure.SshOutput("", "", "")
    probes = ssh_failure.Probes(lambda: still_up, lambda: {"loglevel": "INFO", **config}, 1)
    said = ssh_failure.explain_sshpass(output, ssh_failure.Target(*TARGET), probes)
    assert ("is not known here" in (said or "")) == is_unknown_key
