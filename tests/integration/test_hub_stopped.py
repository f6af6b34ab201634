# SPDX-License-Identifier: GPL-3.0-or-later
"""A stopped hub: its callers soon get an error that says so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peers.process import stopped
from peers.proxies import open_tunnel
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from tunnelproxy.hub import client, wire

SILENT_SECONDS = 0.5


@pytest.fixture(scope="module", autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A hub's process ID. Its callers have short timeouts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path_factory.mktemp("hub")))
        patch.setattr(wire, "SILENT_SECONDS", SILENT_SECONDS)
        with pytest.raises(client.HubError, match="there is no tunnel"):
            client.open_stream("pump", "SSH1", account=ACCOUNT)
        running = client.status()
        assert running is not None
        yield running["pid"]
        client.stop()


ACCOUNT = "aws:123456789012:eu-central-1"
CALLS: dict[str, Callable[[], object]] = {
    "ensure": lambda: client.ensure("pump"),
    "open": lambda: client.open_stream("pump", "SSH1", account=ACCOUNT),
    "status": client.status,
    "locate": lambda: client.locate("pump"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_the_error_says_that_the_hub_does_not_answer(hub: int, call: Callable[[], object]) -> None:
    with stopped(hub):
        began = time.monotonic()
        with pytest.raises(client.HubError) as caught:
            call()
        assert time.monotonic() - began < 10 * SILENT_SECONDS
    assert f"kill -CONT {hub}" in str(caught.value)
    assert_documented("Hub stopped", f"pump cannot be reached: {caught.value}")
    assert client.status() is not None


def test_stopping_a_hub_that_does_not_answer_fails_with_the_same_error(
    hub: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "START_SECONDS", SILENT_SECONDS)
    with stopped(hub), pytest.raises(client.HubError) as caught:
        client.stop()
    assert_documented("Hub stopped", f"pump cannot be reached: {caught.value}")


def test_a_caller_keeps_waiting_while_the_hub_answers_others(hub: int, tmp_path: Path) -> None:
    """The hub answers others meanwhile: only this request takes long."""
    program = tmp_path / "credentials"
    program.write_text("#!/bin/sh\nsleep 2\nexit 1\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\nregion = eu-central-1\n")
    environment = {**os.environ, "AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.raises(client.HubError) as caught:
        client.locate("pump", caller=client.Caller(environment, "/"))
    assert "does not answer" not in str(caught.value)


def test_the_hub_gives_a_reason_although_the_service_is_stopped(service: TunnelingService) -> None:
    tunnel = open_tunnel(service, ["SSH1"], "valve")
    caller = client.Caller({**os.environ, **service.environment}, "/")
    row = client.adopt(
        "valve",
        tunnel_id=tunnel.tunnel_id,
        tunnel_arn=tunnel.arn,
        source_token=tunnel.source_token,
        services=["SSH1"],
        caller=caller,
    )
    with stopped(service.pid), pytest.raises(client.HubError) as caught:
        client.open_stream("valve", "SSH1", account=row["account"], timeout=1)
    assert "the device valve did not answer on SSH1 in time" in str(caught.value)
