# SPDX-License-Identifier: GPL-3.0-or-later
"""The unmodified ``aws`` command line, with only the environment that ``service env`` prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peers.service import TunnelingService

AWS = Path(sys.executable).parent / "aws"

pytestmark = pytest.mark.skipif(not AWS.exists(), reason="awscli is not installed next to this Python")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def aws(service: TunnelingService, home: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **service.environment, **changes}
    command = [sys.executable, str(AWS), "iotsecuretunneling", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def answer(service: TunnelingService, home: Path, *arguments: str) -> dict[str, Any]:
    done = aws(service, home, *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def test_a_tunnel_from_open_to_delete(service: TunnelingService, home: Path) -> None:
    # The first command is the guide's own.
    opened = answer(service, home, "open-tunnel", "--destination-config", "thingName=foo,services=HTTP1,SSH1")
    tunnel_id, arn = opened["tunnelId"], opened["tunnelArn"]
    described = answer(service, home, "describe-tunnel", "--tunnel-id", tunnel_id)["tunnel"]
    assert described["destinationConfig"] == {"thingName": "foo", "services": ["HTTP1", "SSH1"]}
    listed = answer(service, home, "list-tunnels", "--thing-name", "foo")["tunnelSummaries"]
    assert [summary["tunnelId"] for summary in listed] == [tunnel_id]
    answer(service, home, "tag-resource", "--resource-arn", arn, "--tags", "key=site,value=north")
    tags = answer(service, home, "list-tags-for-resource", "--resource-arn", arn)["tags"]
    assert tags == [{"key": "site", "value": "north"}]
    answer(service, home, "untag-resource", "--resource-arn", arn, "--tag-keys", "site")
    rotated = answer(service, home, "rotate-tunnel-access-token", "--tunnel-id", tunnel_id, "--client-mode", "SOURCE")
    assert sorted(rotated) == ["sourceAccessToken", "tunnelArn"]
    answer(service, home, "close-tunnel", "--tunnel-id", tunnel_id, "--delete")
    gone = aws(service, home, "describe-tunnel", "--tunnel-id", tunnel_id)
    assert gone.returncode in {254, 255}
    assert "ResourceNotFoundException" in gone.stderr


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "x" * 40}, "InvalidSignatureException"),
        ({"AWS_ACCESS_KEY_ID": "AKIAAAAAAAAAAAAAAAAA"}, "UnrecognizedClientException"),
    ],
)
def test_wrong_keys_are_refused(service: TunnelingService, home: Path, changes: dict[str, str], kind: str) -> None:
    done = aws(service, home, "list-tunnels", **changes)
    assert done.returncode != 0
    assert kind in done.stderr
