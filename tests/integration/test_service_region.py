# SPDX-License-Identifier: GPL-3.0-or-later
"""``tunnelproxy service run --region``: where the region appears, and that it is fixed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from peers.process import REPOSITORY, wait_for
from peers.service import TunnelingService
from peers.thing import ThingClient, notify_topic

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    # Keys can be created before the first start: this creates the database.
    new = TunnelingService("--region", REGION, "--mqtt-port", "0")
    add_key = [sys.executable, "-m", "tunnelproxy", "service", "key", "add", "early", "--state-dir", new.state_dir]
    subprocess.run(add_key, cwd=REPOSITORY, check=True, capture_output=True)
    with new as running:
        yield running


def run(service: TunnelingService, *options: str) -> subprocess.CompletedProcess[str]:
    command = service.command("run", *options)
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)


def test_arns_signatures_and_the_environment_contain_the_region(service: TunnelingService) -> None:
    assert (service.environment["AWS_REGION"], service.environment["AWS_DEFAULT_REGION"]) == (REGION, REGION)
    opened = service.boto3_client().open_tunnel()
    assert opened["tunnelArn"].startswith(f"arn:aws:iot:{REGION}:")
    with pytest.raises(ClientError, match=f"scoped to a valid region: '{REGION}'"):
        service.boto3_client(region_name="us-east-1").list_tunnels()


def test_a_notification_names_the_region(service: TunnelingService, tmp_path: Path) -> None:
    service.add_thing("pump", tmp_path / "pump", "--services", "SSH1=22")
    [thing] = service.boto3_client("iot").list_things()["things"]
    assert thing["thingArn"].startswith(f"arn:aws:iot:{REGION}:")
    port = int(service.mqtt.rpartition(":")[2])
    # The broker learns of a new thing a moment later.
    wait_for(lambda: ThingClient("pump", tmp_path / "pump", port).is_let_in(), "the thing may connect")
    with ThingClient("pump", tmp_path / "pump", port) as device:
        device.subscribe(notify_topic("pump"))
        service.boto3_client().open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
        wait_for(lambda: device.heard, "a notification")
    assert device.heard[0][1]["region"] == REGION


def test_a_later_start_keeps_the_region_and_refuses_another(service: TunnelingService) -> None:
    arn = service.boto3_client().open_tunnel()["tunnelArn"]
    service.stop()

    refused = run(service, "--region", "us-west-2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"has the region {REGION} since its first start, and --region says us-west-2" in refused.stderr
    assert refused.stderr.count("\n") == 1

    again = TunnelingService()
    again.state_dir = service.state_dir
    with again:
        assert again.environment["AWS_REGION"] == REGION
        assert again.boto3_client().list_tags_for_resource(resourceArn=arn)["tags"] == []


def test_an_invalid_region_is_refused(tmp_path: Path) -> None:
    refused = run(TunnelingService(), "--region", "somewhere")
    assert refused.returncode == 1
    assert "'somewhere' is not the name of an AWS region, as in eu-central-1" in refused.stderr
