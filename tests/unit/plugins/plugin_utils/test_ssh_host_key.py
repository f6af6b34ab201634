# SPDX-License-Identifier: GPL-3.0-or-later
"""Why ssh does not accept a host key: the lines are those of OpenSSH 9.2 and 10.5."""

from __future__ import annotations

import pytest

from peers.host_keys import FAILED, STRICT, HostKeys

CHANGED = "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @"


@pytest.fixture
def explain(tmp_path):
    return HostKeys(tmp_path).explain


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((CHANGED, "Offending ECDSA key in /k h:3", FAILED), "ssh-keygen -R gw -f '/k h'"),
        ((CHANGED, "Update the SSHFP RR in DNS", FAILED), "ssh-keygen -R gw"),
        (("Certificate invalid: name is not a listed principal", FAILED), "does not have the name gw"),
        (("Certificate invalid: expired", STRICT, FAILED), "has expired; this machine's clock says"),
        (("Certificate invalid: not yet valid", FAILED), "is not valid yet; this machine's clock says"),
        (("Certificate lacks principal list", FAILED), "is not accepted (Certificate lacks principal list)"),
        (("The ED25519-CERT host key for gw is marked as revoked.", FAILED), "revoked by an @revoked line"),
        (("Host key ED25519 SHA256:x revoked by file /r k", FAILED), "revoked by /r k."),
        (("Error checking host key ED25519 SHA256:x in revoked keys file /x: No", FAILED), "could not be checked"),
    ],
)
def test_only_a_key_that_is_not_known_is_to_be_accepted(explain, lines, words):
    assert words in explain(*lines)
    assert "accept-new" not in explain(*lines)


def test_ssh_has_to_say_that_it_is_the_host_key(explain):
    assert explain(CHANGED, "Permission denied") is None
