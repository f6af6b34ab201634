# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening tunnels on demand: the hub finds the open tunnel of a thing, or opens exactly one."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.device import Device
from peers.process import wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client

numbers = itertools.count(1)


@pytest.fixture
def controller(service: TunnelingService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An operator's machine with its own hub, which uses the service."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    yield tmp_path
    client.stop()


@pytest.fixture
def thing(service: TunnelingService, device: Device) -> Iterator[str]:
    """A thing for one test, whose device joins the first tunnel that is opened to it."""
    name = f"thing-{next(numbers)}"
    joining = threading.Thread(target=join_first_tunnel, args=(service, device, name), daemon=True)
    joining.start()
    yield name
    device.stop_proxy()


def join_first_tunnel(service: TunnelingService, device: Device, thing: str) -> None:
    """Do what an agent does when it is notified of a tunnel."""
    try:
        tunnel_id = wait_for(lambda: open_tunnels(service, thing), f"a tunnel to {thing} is opened")[0]
    except AssertionError:
        return
    rotated = service.boto3_client().rotate_tunnel_access_token(tunnelId=tunnel_id, clientMode="DESTINATION")
    device.start_proxy(rotated["destinationAccessToken"])


def open_tunnels(service: TunnelingService, thing: str) -> list[str]:
    summaries = service.boto3_client().list_tunnels(thingName=thing)["tunnelSummaries"]
    return [summary["tunnelId"] for summary in summaries if summary["status"] == "OPEN"]


def ensure(thing: str, open_policy: str = "reuse", **settings: Any) -> dict[str, Any]:
    # These are not enrolled.
    return client.ensure(thing, open_policy=open_policy, **{"unregistered": True, **settings})


def greeting(thing: str) -> bytes:
    with socket.socket(fileno=client.open_stream(thing, "SSH1")) as stream:
        return stream.recv(8)


@contextmanager
def another_hub(folder: Path) -> Iterator[None]:
    """Act as another controller within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOTOPS_TUNNEL_DIR", str(folder / "another-hub"))
        try:
            yield
        finally:
            client.stop()


def test_a_tunnel_is_opened_and_the_device_waited_for(service: TunnelingService, controller: Path, thing: str) -> None:
    row = ensure(thing)
    assert open_tunnels(service, thing) == [row["tunnel_id"]]
    assert greeting(thing) == b"SSH-2.0-"


def test_concurrent_callers_get_the_same_tunnel(service: TunnelingService, controller: Path, thing: str) -> None:
    def reach(_: int) -> tuple[str, bytes]:
        return ensure(thing)["tunnel_id"], greeting(thing)

    with ThreadPoolExecutor(10) as pool:
        reached = list(pool.map(reach, range(10)))
    # No caller continues before the device is connected, whichever came first.
    assert set(reached) == {(tunnel_id, b"SSH-2.0-") for tunnel_id in open_tunnels(service, thing)}
    assert len(open_tunnels(service, thing)) == 1


def test_if_the_hub_is_killed_while_it_waits_for_the_device_the_next_one_continues(
    service: TunnelingService, controller: Path, device: Device
) -> None:
    thing = f"thing-{next(numbers)}"
    ensure_thing = ThreadPoolExecutor(1).submit(ensure, thing)
    held = wait_for(lambda: (client.status() or {"tunnels": ()})["tunnels"], "the hub holds a tunnel")
    killed = (client.status() or {})["pid"]
    os.kill(killed, signal.SIGKILL)
    join_first_tunnel(service, device, thing)

    assert ensure_thing.result(30)["tunnel_id"] == held[0]["tunnel_id"]
    assert open_tunnels(service, thing) == [held[0]["tunnel_id"]]
    assert (client.status() or {})["pid"] != killed
    assert greeting(thing) == b"SSH-2.0-"
    device.stop_proxy()


def test_an_open_tunnel_of_the_same_owner_is_reused(service: TunnelingService, controller: Path, thing: str) -> None:
    with another_hub(controller):
        opened = ensure(thing)["tunnel_id"]
    assert ensure(thing)["tunnel_id"] == opened
    assert greeting(thing) == b"SSH-2.0-"
    assert open_tunnels(service, thing) == [opened]


def test_another_owners_tunnel_is_used_only_with_take_over(
    service: TunnelingService, controller: Path, thing: str
) -> None:
    with another_hub(controller):
        theirs = ensure(thing, owner="alice@jump1")["tunnel_id"]
        # The device in this test joins one tunnel only.
        with pytest.raises(client.HubError, match="did not connect to its tunnel"), another_hub(controller / "mine"):
            ensure(thing, owner="bob", wait=0)
        assert client.ensure(thing)["tunnel_id"] == theirs
        assert greeting(thing) == b"SSH-2.0-"
        with another_hub(controller / "mine too"):
            assert ensure(thing, "take_over", owner="bob")["tunnel_id"] == theirs
            assert greeting(thing) == b"SSH-2.0-"
        why = client.explain(thing, "SSH1", refused=True)
    assert why.code == "taken-over"
    assert str(why).startswith(f"bob took over the tunnel of {thing} ({theirs} in ")
    assert len(open_tunnels(service, thing)) == 2


def test_an_owner_who_has_lost_a_tunnel_opens_another(service: TunnelingService, controller: Path, thing: str) -> None:
    lost = ensure(thing, owner="alice")["tunnel_id"]
    with another_hub(controller):
        ensure(thing, "take_over", owner="bob")
        with pytest.raises(client.HubError, match="did not connect"), another_hub(controller / "alice again"):
            ensure(thing, owner="alice", wait=0)
    assert len(open_tunnels(service, thing)) == 2
    assert lost in open_tunnels(service, thing)


def test_tunnels_that_the_collection_did_not_open_are_not_used(service: TunnelingService, controller: Path) -> None:
    thing = f"thing-{next(numbers)}"
    foreign = service.boto3_client().open_tunnel(destinationConfig={"thingName": thing, "services": ["SSH1"]})
    with pytest.raises(client.HubError):
        ensure(thing, wait=0)
    assert len(open_tunnels(service, thing)) == 2
    states = service.boto3_client().describe_tunnel(tunnelId=foreign["tunnelId"])["tunnel"]
    assert states["sourceConnectionState"]["status"] == "DISCONNECTED"


def test_always_opens_a_new_tunnel(service: TunnelingService, controller: Path, thing: str) -> None:
    with another_hub(controller):
        first = ensure(thing)["tunnel_id"]
    with pytest.raises(client.HubError, match="did not connect to its tunnel"):
        ensure(thing, "always", wait=0)
    assert len(open_tunnels(service, thing)) == 2
    assert first in open_tunnels(service, thing)


def test_never_opens_no_tunnel(service: TunnelingService, controller: Path) -> None:
    thing = f"thing-{next(numbers)}"
    with pytest.raises(client.HubError) as caught:
        ensure(thing, "never")
    assert caught.value.code == "no-tunnel"
    assert open_tunnels(service, thing) == []


def test_a_closed_tunnel_is_replaced(service: TunnelingService, controller: Path, thing: str, device: Device) -> None:
    closed = ensure(thing)["tunnel_id"]
    service.boto3_client().close_tunnel(tunnelId=closed)
    wait_for(lambda: (client.status() or {})["tunnels"][0]["state"] == "tunnel-closed", "the hub knows it is closed")
    joining = threading.Thread(target=join_first_tunnel, args=(service, device, thing), daemon=True)
    joining.start()
    assert ensure(thing)["tunnel_id"] != closed
    assert greeting(thing) == b"SSH-2.0-"


def test_a_tunnel_that_was_closed_while_no_hub_ran_is_replaced(
    service: TunnelingService, controller: Path, thing: str, device: Device
) -> None:
    """The next hub reads it from its file, and is asked for it before it learns that the tunnel is closed."""
    first = ensure(thing)
    os.kill(first["hub_pid"], signal.SIGKILL)
    service.boto3_client().close_tunnel(tunnelId=first["tunnel_id"])
    os.kill(service.pid, signal.SIGSTOP)
    try:
        ensure_thing = ThreadPoolExecutor(1).submit(ensure, thing)
        wait_for(lambda: (client.status() or {"opening": ()})["opening"] == [thing], "the next hub is asked")
    finally:
        os.kill(service.pid, signal.SIGCONT)
    join_first_tunnel(service, device, thing)

    second = ensure_thing.result(30)
    assert second["tunnel_id"] != first["tunnel_id"]
    assert open_tunnels(service, thing) == [second["tunnel_id"]]


def test_a_tunnel_about_to_expire_is_replaced_but_keeps_its_connections(
    service: TunnelingService, controller: Path, device: Device
) -> None:
    thing = f"thing-{next(numbers)}"
    short = service.boto3_client().open_tunnel(
        destinationConfig={"thingName": thing, "services": ["SSH1", "HTTP1"]},
        timeoutConfig={"maxLifetimeTimeoutMinutes": 5},
    )
    device.start_proxy(short["destinationAccessToken"])
    described = service.boto3_client().describe_tunnel(tunnelId=short["tunnelId"])["tunnel"]
    client.adopt(
        thing,
        tunnel_id=short["tunnelId"],
        tunnel_arn=short["tunnelArn"],
        source_token=short["sourceAccessToken"],
        services=["SSH1", "HTTP1"],
        expires_at=described["createdAt"].timestamp() + 300,
    )
    with socket.socket(fileno=client.open_stream(thing, "SSH1")) as stream:
        assert stream.recv(8) == b"SSH-2.0-"
        with pytest.raises(client.HubError, match="did not connect to its tunnel"):
            ensure(thing, wait=0)
        held = (client.status() or {})["tunnels"]
        assert [row["tunnel_id"] for row in held] != [short["tunnelId"]]
        stream.sendall(b"SSH-2.0-test\r\n")
        stream.settimeout(10)
        assert stream.recv(1)
    device.stop_proxy()


def test_the_error_names_a_device_that_does_not_connect(service: TunnelingService, controller: Path) -> None:
    thing = f"thing-{next(numbers)}"
    with pytest.raises(
        client.HubError, match=rf"the device {thing} did not connect to its tunnel .* within 1 s"
    ) as caught:
        ensure(thing, wait=1)
    assert caught.value.code == "device-not-connected"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", r"keys .* are not accepted \(InvalidSignatureException\)"),
        ("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN", r"keys .* are not accepted \(UnrecognizedClientException\)"),
        ("AWS_REGION", "eu-west-1", "region"),
        ("AWS_ENDPOINT_URL_IOTSECURETUNNELING", "https://127.0.0.1:9", "https://127.0.0.1:9 cannot be reached"),
    ],
)
def test_the_error_says_why_no_tunnel_could_be_opened(
    controller: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(client.HubError, match=words):
        ensure(f"thing-{next(numbers)}")


@pytest.mark.parametrize(
    ("variables", "settings", "code", "words"),
    [
        ({"AWSIOT_TUNNEL_ENDPOINT": "127.0.0.1:9"}, {}, "not-linked", "cannot reach 127.0.0.1:9: connection refused"),
        ({"AWSIOT_TUNNEL_ENDPOINT": "no endpoint"}, {}, "bad-input", "'no endpoint' is not an endpoint"),
        ({"AWSIOT_TUNNEL_CAPATH": "/etc/ssl/certs"}, {}, "not-linked", "cannot be verified"),
        ({"AWSIOT_TUNNEL_CAPATH": "/nowhere"}, {}, "bad-input", "cannot read certificate authorities from '/nowhere'"),
        ({"https_proxy": "gopher://nowhere"}, {}, "bad-input", "gopher"),
        ({"https_proxy": "http://127.0.0.1:9"}, {}, "not-linked", "127.0.0.1:9"),
        ({}, {"services": ["SSH1", "no name"]}, "bad-input", "'no name' cannot be the name of a service"),
        ({}, {"services": ["SSH1", "SSH1"]}, "bad-input", "carries at least one service, and each once"),
        ({}, {"unregistered": False}, "unknown-thing", "the registry has no thing"),
    ],
)
def test_no_tunnel_is_opened_that_could_not_work(
    service: TunnelingService,
    controller: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    settings: dict[str, Any],
    code: str,
    words: str,
) -> None:
    thing = f"thing-{next(numbers)}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # The control API is reached without the HTTP proxy, on the loopback.
    monkeypatch.setenv("NO_PROXY", service.api.partition("://")[2])
    with pytest.raises(client.HubError, match=re.escape(words)) as caught:
        ensure(thing, **settings)
    assert caught.value.code == code
    assert open_tunnels(service, thing) == []


def test_similar_names_are_suggested_for_a_misspelt_thing(controller: Path, tmp_path: Path) -> None:
    with TunnelingService("--mqtt-port", "0") as own, pytest.MonkeyPatch.context() as patch:
        for name in ("sensor-7", "sensor-8", "pump"):
            own.add_thing(name, tmp_path / name)
        for name, value in own.environment.items():
            patch.setenv(name, value)
        with pytest.raises(client.HubError, match=r"has no thing senser-7: did you mean sensor-7, sensor-8\?"):
            ensure("senser-7", unregistered=False)
        assert own.boto3_client().list_tunnels()["tunnelSummaries"] == []
