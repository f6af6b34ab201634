# SPDX-License-Identifier: GPL-3.0-or-later
"""How tokens are told from what may be seen on a command line."""

from __future__ import annotations

import pytest

from tunnelproxy.cli.process import take_tokens


@pytest.mark.parametrize(
    ("arguments", "kept", "tokens"),
    [
        ("-m src", "-m src", {}),
        ("-m src -t T -v 5", "-m src -v 5", {"access-token": "T"}),
        ("-tT -m src", "-m src", {"access-token": "T"}),
        ("-t=T", "", {"access-token": "T"}),
        ("--access-token T", "", {"access-token": "T"}),
        ("--access-token=T", "", {"access-token": "T"}),
        ("--access-token=", "", {"access-token": ""}),
        ("--acc T --cl=C -m src", "-m src", {"access-token": "T", "client-token": "C"}),
        ("--c x", "--c x", {}),
        ("-i C -t T", "", {"access-token": "T", "client-token": "C"}),
        ("-iC --client-token=D", "", {"client-token": "D"}),
        ("--client-token C", "", {"client-token": "C"}),
        ("-t -T -i --C", "", {"access-token": "-T", "client-token": "--C"}),
        ("-t --access-token", "", {"access-token": "--access-token"}),
        ("-kt T -m src", "-k -m src", {"access-token": "T"}),
        ("-ktT", "-k", {"access-token": "T"}),
        ("-m src -t", "-m src -t", {}),
        ("--access-token", "--access-token", {}),
        ("--access-tokens T", "--access-tokens T", {}),
        ("-d -t", "-d -t", {}),
        ("-r us-east-1 -c /ti -dtcp=22 -e it", "-r us-east-1 -c /ti -dtcp=22 -e it", {}),
    ],
)
def test_what_is_taken(arguments: str, kept: str, tokens: dict[str, str]) -> None:
    assert take_tokens(arguments.split()) == (kept.split(), tokens)
