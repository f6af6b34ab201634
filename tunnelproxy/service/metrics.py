# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus, and the HTTP server that exposes them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, core, generate_latest
from prometheus_client.registry import Collector

from ..net.accept_loop import accept_connections
from ..net.background_tasks import spawn, supervise
from .events import ControlCall, CutOff, Event, Refused

__all__ = ["Metric", "Metrics"]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_CONNECTIONS = 64
"""Concurrent scrapes. One more connection closes the oldest one: every local user can connect and send nothing."""

_LAG_PERIOD = 0.5
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True)
class Metric:
    """A metric whose values are read at each scrape, and cost nothing in between.

    Attributes:
        name: the Prometheus name, without ``_total``.
        help: the description.
        read: returns the value for each combination of label values; for a metric without labels, the key is ``()``.
        labels: the names of the labels.
        is_counter: whether the values only ever grow; otherwise the metric is a gauge.
    """

    name: str
    help: str
    read: Callable[[], Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()
    is_counter: bool = False


class Metrics:
    """The metrics of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Histogram(
            "tunnelproxy_control_call_seconds",
            "Duration of control calls, by operation and outcome.",
            ("operation", "outcome"),
            registry=self._registry,
        )
        self._refusals = Counter(
            "tunnelproxy_refusals", "Refused connections, by cause.", ("cause",), registry=self._registry
        )
        self._lag = Histogram(
            "tunnelproxy_event_loop_lag_seconds",
            "How much later than scheduled the event loop ran a timer.",
            buckets=_LAG_BUCKETS,
            registry=self._registry,
        )

    def add(self, metrics: Iterable[Metric]) -> None:
        """Expose further metrics."""
        self._registry.register(_ScrapeCollector(tuple(metrics)))

    def note(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, ControlCall):
            self._calls.labels(event.operation or "unknown", event.outcome).observe(event.seconds)
        elif isinstance(event, (Refused, CutOff)):
            self._refusals.labels(event.cause).inc()

    @contextlib.asynccontextmanager
    async def served(self, listening: socket.socket) -> AsyncIterator[None]:
        """Serve ``/metrics`` over HTTP on a listening socket, and measure the event loop's lag, within the block."""
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101  setup() has created it
        loop = asyncio.get_running_loop()

        def admit(sock: socket.socket, _peer: Any) -> None:
            connections = server.connections
            if len(connections) >= _MAX_CONNECTIONS:
                connections[0].force_close()
            # Not the event loop's own server: uvloop's stops at the first error of accept(2).
            spawn("a connection for metrics", _serve(loop, server, sock))

        accepting = supervise("accepting connections for metrics", lambda: accept_connections(listening, admit))
        measuring = supervise("measuring the event loop's lag", self._measure_lag)
        try:
            yield
        finally:
            accepting.cancel()
            measuring.cancel()
            await runner.cleanup()

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": _CONTENT_TYPE})

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_PERIOD
            await asyncio.sleep(_LAG_PERIOD)
            self._lag.observe(max(0.0, loop.time() - due))


async def _serve(loop: asyncio.AbstractEventLoop, server: web.Server, sock: socket.socket) -> None:
    # A client that has already gone is not an error.
    with contextlib.suppress(OSError):
        await loop.connect_accepted_socket(server, sock)


class _ScrapeCollector(Collector):
    """Reads metrics when Prometheus asks for them."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[core.Metric]:
        for metric in self._metrics:
            family = core.CounterMetricFamily if metric.is_counter else core.GaugeMetricFamily
            samples = family(metric.name, metric.help, labels=metric.labels)
            for label_values, value in metric.read().items():
                samples.add_metric(label_values, value)
            yield samples
