# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures, as Prometheus reads them over HTTP."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.data_plane.connected_clients import ConnectedClients
from tunnelproxy.service.events import ControlCall, CutOff, Refused
from tunnelproxy.service.metrics import Metrics


def read(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def call(operation: str | None, outcome: str, seconds: float) -> ControlCall:
    return ControlCall("r", "192.0.2.1", "ci", "AKIA", operation, "pump", "t-1", outcome, 200, seconds)


@in_event_loop
async def test_events_are_counted_and_the_rest_is_counted_when_asked_for() -> None:
    metrics = Metrics(ConnectedClients(lambda event: None, clock=lambda: 0.0), lambda: 7)
    metrics.note(call("OpenTunnel", "ok", 0.25))
    metrics.note(call("OpenTunnel", "ok", 0.5))
    metrics.note(call(None, "BadRequest", 0.0))
    metrics.note(Refused("c", None, None, None, None, "token-used"))
    metrics.note(CutOff("192.0.2.1", "handshake-time"))
    listener = socket.create_server(("127.0.0.1", 0))
    async with metrics.served(listener):
        found = await asyncio.get_running_loop().run_in_executor(None, read, listener.getsockname()[1])
    calls = "tunnelproxy_control_call_seconds"
    opened = (("operation", "OpenTunnel"), ("outcome", "ok"))
    assert found[f"{calls}_count", opened] == 2
    assert found[f"{calls}_sum", opened] == 0.75
    assert found[f"{calls}_count", (("operation", "unknown"), ("outcome", "BadRequest"))] == 1
    assert found["tunnelproxy_refusals_total", (("cause", "token-used"),)] == 1
    assert found["tunnelproxy_refusals_total", (("cause", "handshake-time"),)] == 1
    assert found["tunnelproxy_tunnels_open", ()] == 7


@in_event_loop
async def test_who_connects_and_says_nothing_takes_neither_descriptors_without_end_nor_the_figures() -> None:
    metrics = Metrics(ConnectedClients(lambda event: None, clock=lambda: 0.0), lambda: 7)
    listener = socket.create_server(("127.0.0.1", 0))
    async with metrics.served(listener):
        silent = [await asyncio.open_connection(*listener.getsockname()) for _ in range(100)]
        port = listener.getsockname()[1]
        found = await asyncio.get_running_loop().run_in_executor(None, read, port)
        assert found["tunnelproxy_tunnels_open", ()] == 7
        await until(lambda: sum(reader.at_eof() for reader, _ in silent) >= 36)
        assert not silent[-1][0].at_eof()
        for _, writer in silent:
            writer.close()
