# SPDX-License-Identifier: GPL-3.0-or-later
"""A service in this process: what it announces, serves and remembers, and why it does not start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.signing import now, post, sign
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.mqtt.notifier import BrokerSettings
from tunnelproxy.service.server import ServiceSettings, serve
from tunnelproxy.service.state.certificates import Certificates, ProvidedCertificate
from tunnelproxy.service.state.directory import StateDirectory
from tunnelproxy.service.state.store import Store


@dataclass
class Service:
    """A running service, by the line that it announced."""

    settings: ServiceSettings
    announced: str

    @property
    def api(self) -> str:
        return re.findall(r"api=(\S+)", self.announced)[0]

    async def call(self, operation: str) -> tuple[int, dict[str, Any]]:
        store = Store(StateDirectory(self.settings.state_dir).database)
        pair = store.keys()[0].credentials
        store.close()
        headers = sign(self.api, operation, key_id=pair.access_key_id, secret=pair.secret_access_key, signed_at=now())
        context = ssl.create_default_context(cafile=str(self.settings.state_dir / "ca" / "ca.pem"))
        return await asyncio.to_thread(post, self.api, headers, b"{}", context)


@contextlib.asynccontextmanager
async def running(settings: ServiceSettings) -> AsyncIterator[Service]:
    announced: list[str] = []
    task = asyncio.ensure_future(serve(settings, announced.append))
    try:
        await until(lambda: announced or task.done())
        if task.done():
            await task
        yield Service(settings, announced[0])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def settings(folder: Path, **changes: Any) -> ServiceSettings:
    return ServiceSettings(folder / "state", "127.0.0.1", 0, 0, **changes)


@in_event_loop
async def test_it_announces_where_it_listens_and_answers_signed_requests(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as service:
        assert re.fullmatch(
            rf"ready api=https://127\.0\.0\.1:\d+ data=127\.0\.0\.1:\d+ ca={tmp_path}/state/ca", service.announced
        )
        assert await service.call("ListTunnels") == (200, {"tunnelSummaries": []})
        status, opened = await service.call("OpenTunnel")
        assert (status, "tunnelId" in opened) == (200, True)


@in_event_loop
async def test_it_listens_where_it_did_in_its_last_run(tmp_path: Path) -> None:
    async with running(settings(tmp_path)) as first:
        pass
    async with running(settings(tmp_path)) as second:
        assert second.announced == first.announced


@in_event_loop
async def test_calls_are_written_to_the_audit_log_and_counted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    audit_log = tmp_path / "audit.log"
    async with running(settings(tmp_path, metrics_port=port, audit_log=audit_log)) as service:
        await service.call("OpenTunnel")
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        )
    assert [json.loads(line)["operation"] for line in audit_log.read_text().splitlines()] == ["OpenTunnel"]
    for sample in (
        'tunnelproxy_control_call_seconds_count{operation="OpenTunnel",outcome="ok"} 1.0',
        "tunnelproxy_tunnels_open 1.0",
        'tunnelproxy_writes_failed_total{file="audit"} 0.0',
        'tunnelproxy_failures_total{kind="any"} 0.0',
        'tunnelproxy_certificate_not_after_timestamp_seconds{certificate="authority"} ',
    ):
        assert f"\n{sample}" in text
    assert "tunnelproxy_mqtt" not in text


@in_event_loop
async def test_with_a_broker_its_metrics_are_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = BrokerSettings(external=BrokerAddress("127.0.0.1", 1, encrypted=False))
    async with running(settings(tmp_path, metrics_port=port, broker=broker)) as service:
        assert service.announced.endswith(" mqtt=mqtt://127.0.0.1:1")
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        )
    assert "\ntunnelproxy_mqtt_broker_connected 0.0" in text
    assert "\ntunnelproxy_notifications_waiting 0.0" in text


@in_event_loop
async def test_sighup_reopens_both_logs(tmp_path: Path) -> None:
    reopened: list[bool] = []
    audit_log = tmp_path / "audit.log"
    async with running(settings(tmp_path, audit_log=audit_log, reopen_log=lambda: reopened.append(True))) as service:
        audit_log.rename(tmp_path / "audit.old")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reopened and audit_log.exists())
        await service.call("ListTunnels")
    assert "ListTunnels" in audit_log.read_text()
    assert (tmp_path / "audit.old").read_text() == ""


@in_event_loop
async def test_a_second_service_with_the_same_state_does_not_start(tmp_path: Path) -> None:
    async with running(settings(tmp_path)):
        with pytest.raises(ServiceError, match=f"process {os.getpid()}. already runs with the state directory"):
            await serve(settings(tmp_path), lambda line: None)


@in_event_loop
async def test_a_region_is_chosen_at_the_first_start_only(tmp_path: Path) -> None:
    async with running(settings(tmp_path, region="eu-central-1")):
        store = Store(tmp_path / "state" / "service.db")
        assert store.identity().region == "eu-central-1"
        store.close()
    async with running(settings(tmp_path, region="eu-central-1")):
        pass
    with pytest.raises(ServiceError, match="has the region eu-central-1 since its first start"):
        await serve(settings(tmp_path, region="us-west-2"), lambda line: None)


@in_event_loop
async def test_a_provided_certificate_needs_no_authority_of_the_services_own(
    tmp_path: Path, certificates: Certificates
) -> None:
    provided = ProvidedCertificate(certificates.server_chain, certificates.server_key)
    async with running(settings(tmp_path, certificate=provided, public_name="localhost")) as service:
        assert re.fullmatch(r"ready api=https://localhost:\d+ data=localhost:\d+ ca=system", service.announced)


@in_event_loop
async def test_a_state_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    in_the_way = tmp_path / "state" / "endpoints.json.partial"
    in_the_way.mkdir(parents=True)
    with pytest.raises(
        ServiceError,
        match=r"cannot write .*endpoints\.json in the state directory: Is a directory; make it writable for "
        "this user, or give --state-dir another directory",
    ):
        await serve(settings(tmp_path), lambda line: None)
