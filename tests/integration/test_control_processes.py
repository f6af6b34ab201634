# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that make control calls: one per environment, and none that blocks other callers."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from peers.process import wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client, location
from tunnelproxy.hub.control_process import MOST_PROCESSES


@pytest.fixture(autouse=True)
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    yield tmp_path / "hub"
    client.stop()


def caller(service: TunnelingService, **changes: str) -> client.Caller:
    return client.Caller({**os.environ, **service.environment, **changes}, "/")


def control_processes() -> list[psutil.Process]:
    status = client.status()
    assert status is not None
    return psutil.Process(status["pid"]).children()


def with_credential_process(service: TunnelingService, folder: Path, command: str) -> client.Caller:
    """A user whose credentials come from a program."""
    config = folder / "config"
    config.write_text(f"[default]\ncredential_process = {command}\n")
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    files = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return caller(service, **keys, **files)


def test_each_environment_has_one_process_up_to_a_limit(service: TunnelingService) -> None:
    callers = [caller(service, NUMBER=str(number)) for number in range(MOST_PROCESSES + 4)]
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            status = client.status()
            if status is not None:
                most = max(most, len(psutil.Process(status["pid"]).children()))

    client.locate("gw", caller=callers[0])
    (process,) = control_processes()
    assert process.environ()["NUMBER"] == "0"
    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(len(callers)) as pool:
        found = list(pool.map(lambda each: client.locate("gw", caller=each)["account"], callers))
    done.set()
    watching.join()
    assert len(set(found)) == 1
    # A process that is exiting may still exist while the next one starts.
    assert most <= MOST_PROCESSES + 2


def test_a_hanging_program_blocks_neither_other_callers_nor_the_hubs_exit(
    service: TunnelingService, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    stuck = with_credential_process(service, tmp_path, f"sh -c 'touch {mark}; exec sleep 1000'")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.locate, "gw", caller=stuck)
        wait_for(mark.exists, "the program runs")
        assert client.locate("gw", caller=caller(service))["region"] == "us-east-1"
        (program,) = [each for each in descendants() if "1000" in each.cmdline()]
        began = time.monotonic()
        assert client.stop()
        assert time.monotonic() - began < 10
        with pytest.raises(client.HubError):
            waiting.result(30)
    wait_for(lambda: not program.is_running(), "the program has exited with the hub")


def descendants() -> list[psutil.Process]:
    status = client.status()
    assert status is not None
    return psutil.Process(status["pid"]).children(recursive=True)


def test_a_killed_process_is_replaced_for_read_only_calls(service: TunnelingService) -> None:
    client.locate("gw", caller=caller(service))
    (process,) = control_processes()
    os.kill(service.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            # Another region means another account to look up, and the service does not answer for now.
            asked = pool.submit(
                client.call, "describe_thing", {"thingName": "gw"}, purpose="x", api="iot", caller=caller(service)
            )
            wait_for(process.net_connections, "a call is under way")
            process.kill()
            with pytest.raises(client.HubError, match="exited before it answered"):
                asked.result(30)
    finally:
        os.kill(service.pid, signal.SIGCONT)
    assert client.locate("gw", caller=caller(service, AWS_MAX_ATTEMPTS="2"))["region"] == "us-east-1"


def test_a_python_without_botocore_is_reported(service: TunnelingService, tmp_path: Path) -> None:
    (tmp_path / "botocore").mkdir()
    (tmp_path / "botocore" / "__init__.py").write_text("raise ImportError('not here')\n")
    with pytest.raises(client.HubError, match=r"cannot use boto3 \(not here\): .* -m pip install boto3") as caught:
        client.locate("gw", caller=caller(service, PYTHONPATH=str(tmp_path)))
    assert caught.value.code == "no-boto3"


def test_a_missing_or_inaccessible_working_directory_is_tolerated(service: TunnelingService) -> None:
    environment = {**os.environ, **service.environment}
    assert client.locate("gw", caller=client.Caller(environment, "/nowhere"))["region"] == "us-east-1"


def test_the_client_reports_a_hub_of_another_release(hub_folder: Path) -> None:
    """Like releases before 0.2, which use only the thing's name."""
    hub_folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(hub_folder / location.SOCKET_NAME))
        old.listen()

        def answer() -> None:
            connection, _ = old.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(json.dumps({"thing": "gw", "state": "connected"}).encode() + b"\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(client.HubError, match=r"is of another release .* `tunnelproxy hub stop`") as caught:
            client.ensure("gw")
        answering.join()
    assert caught.value.code == "other-release"
    (hub_folder / location.SOCKET_NAME).unlink()


def test_the_hub_refuses_a_client_of_another_release(service: TunnelingService, hub_folder: Path) -> None:
    client.locate("gw", caller=caller(service))
    assert "another release" in asked_by_an_old_client(hub_folder, {"op": "status"})["error"]
    # Clients of any release may stop the hub.
    assert asked_by_an_old_client(hub_folder, {"op": "stop"})["stopping"] is True


def asked_by_an_old_client(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / location.SOCKET_NAME))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
    return answer


def test_a_missing_python_is_named(service: TunnelingService) -> None:
    environment = {**os.environ, **service.environment}
    gone = client.Caller(environment, "/", python=f"{sys.executable}-gone")
    with pytest.raises(client.HubError, match=r"the control process cannot be started with .*-gone: No such file"):
        client.locate("gw", caller=gone)
