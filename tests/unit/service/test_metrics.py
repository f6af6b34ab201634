# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics, as Prometheus reads them over HTTP."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from peers.event_loop import in_event_loop, until
from tunnelproxy.service import metrics as module
from tunnelproxy.service.events import ControlCall, CutOff, Refused
from tunnelproxy.service.metrics import Metric, Metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def served(metrics: Metrics) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    async with metrics.served(listening):
        yield listening.getsockname()[1]
    listening.close()


async def scraped(metrics: Metrics) -> Samples:
    async with served(metrics) as port:
        return await asyncio.to_thread(read, port)


def call(operation: str | None, outcome: str, seconds: float) -> ControlCall:
    return ControlCall("r", "192.0.2.1", "ci", "AKIA", operation, "pump", "t-1", outcome, 200, seconds)


@in_event_loop
async def test_events_are_counted() -> None:
    metrics = Metrics()
    metrics.note(call("OpenTunnel", "ok", 0.25))
    metrics.note(call("OpenTunnel", "ok", 0.5))
    metrics.note(call(None, "BadRequest", 0.0))
    metrics.note(Refused("c", None, None, None, None, "token-used"))
    metrics.note(CutOff("192.0.2.1", "handshake-time"))
    found = await scraped(metrics)
    calls = "tunnelproxy_control_call_seconds"
    opened = (("operation", "OpenTunnel"), ("outcome", "ok"))
    assert found[f"{calls}_count", opened] == 2
    assert found[f"{calls}_sum", opened] == 0.75
    assert found[f"{calls}_count", (("operation", "unknown"), ("outcome", "BadRequest"))] == 1
    assert found["tunnelproxy_refusals_total", (("cause", "token-used"),)] == 1
    assert found["tunnelproxy_refusals_total", (("cause", "handshake-time"),)] == 1


@in_event_loop
async def test_added_metrics_are_read_at_each_scrape() -> None:
    value = 7.0
    metrics = Metrics()
    metrics.add(
        [
            Metric("open", "Open.", lambda: {(): value}),
            Metric("sent", "Sent.", lambda: {("a", "b"): value}, ("x", "y"), is_counter=True),
        ]
    )
    async with served(metrics) as port:
        before = await asyncio.to_thread(read, port)
        value = 8.0
        after = await asyncio.to_thread(read, port)
    assert (before["open", ()], after["open", ()]) == (7, 8)
    assert after["sent_total", (("x", "a"), ("y", "b"))] == 8


@in_event_loop
async def test_the_lag_of_the_event_loop_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAG_PERIOD", 0.01)
    metrics = Metrics()
    async with served(metrics) as port:
        found: Samples = {}
        while not found.get(("tunnelproxy_event_loop_lag_seconds_count", ())):
            found = await asyncio.to_thread(read, port)


@in_event_loop
async def test_idle_connections_neither_use_up_descriptors_nor_block_a_scrape() -> None:
    metrics = Metrics()
    metrics.add([Metric("open", "Open.", lambda: {(): 7})])
    async with served(metrics) as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        found = await asyncio.to_thread(read, port)
        assert found["open", ()] == 7
        await until(lambda: sum(reader.at_eof() for reader, _ in idle) >= 36)
        assert not idle[-1][0].at_eof()
        for _, writer in idle:
            writer.close()
