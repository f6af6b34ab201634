# SPDX-License-Identifier: Apache-2.0
"""Figures for Prometheus, and the HTTP server that it reads them from.

What can be counted when it is asked for is counted then, and costs nothing in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..net.accept_loop import accept_connections
from ..net.background_tasks import spawn, supervise
from .data_plane.connected_clients import ConnectedClients
from .events import ControlCall, CutOff, Event, Refused

__all__ = ["Figure", "Metrics"]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_CONNECTIONS = 64
"""For figures, at once. Of more, the oldest is closed: every local user can connect there, and say nothing."""

_LAG_PERIOD = 0.5
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True)
class Figure:
    """A figure that somebody else keeps.

    Attributes:
        name: that of Prometheus, without ``_total``.
        values: gives the value for each value of the label, when it is asked for; without a label, for "" alone.
        label: what differs between the values, if there are several.
        counts: whether it only ever grows.
    """

    name: str
    help: str
    values: Callable[[], Mapping[str, float]]
    label: str = ""
    counts: bool = True


class Metrics:
    """The figures of one service.

    Args:
        connected_clients: who is connected.
        count_open_tunnels: counts them.
    """

    def __init__(self, connected_clients: ConnectedClients, count_open_tunnels: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Present(connected_clients, count_open_tunnels))
        self._calls = Histogram(
            "tunnelproxy_control_call_seconds",
            "Control calls by operation and outcome, with the time that they took.",
            ("operation", "outcome"),
            registry=self._registry,
        )
        self._refusals = Counter(
            "tunnelproxy_refusals", "Connections refused, by cause.", ("cause",), registry=self._registry
        )
        self._lag = Histogram(
            "tunnelproxy_event_loop_lag_seconds",
            "How much later than asked for the event loop came back.",
            buckets=_LAG_BUCKETS,
            registry=self._registry,
        )

    def add_figures(self, figures: Iterable[Figure]) -> None:
        """Serve further ones."""
        self._registry.register(_Further(tuple(figures)))

    def note(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, ControlCall):
            self._calls.labels(event.operation or "unknown", event.outcome).observe(event.seconds)
        elif isinstance(event, (Refused, CutOff)):
            self._refusals.labels(event.cause).inc()

    @contextlib.asynccontextmanager
    async def served(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve ``/metrics`` over HTTP on a bound socket, and watch the event loop, for as long as the block runs."""
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101  setup() has made it
        loop = asyncio.get_running_loop()

        def admit(connection: socket.socket, _peer: Any) -> None:
            present = server.connections
            if len(present) >= _MOST_CONNECTIONS:
                present[0].force_close()
            # Not asyncio's own server: that of uvloop ends with the first error of accept(2).
            spawn("a connection for figures", _serve(loop, server, connection))

        accepting = supervise("accepting connections for figures", lambda: accept_connections(listener, admit))
        watching = supervise("watching the event loop", self._watch_loop)
        try:
            yield
        finally:
            accepting.cancel()
            watching.cancel()
            await runner.cleanup()

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": _CONTENT_TYPE})

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_PERIOD
            await asyncio.sleep(_LAG_PERIOD)
            self._lag.observe(max(0.0, loop.time() - due))


async def _serve(loop: asyncio.AbstractEventLoop, server: web.Server, connection: socket.socket) -> None:
    # One that is gone already is nobody's fault.
    with contextlib.suppress(OSError):
        await loop.connect_accepted_socket(server, connection)


class _Further(Collector):
    """What others keep."""

    def __init__(self, figures: tuple[Figure, ...]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for figure in self._figures:
            family = CounterMetricFamily if figure.counts else GaugeMetricFamily
            metric = family(figure.name, figure.help, labels=(figure.label,) if figure.label else ())
            for value, number in figure.values().items():
                metric.add_metric((value,) if figure.label else (), number)
            yield metric


class _Present(Collector):
    """What holds at the moment of asking."""

    def __init__(self, connected_clients: ConnectedClients, count_open_tunnels: Callable[[], int]) -> None:
        self._connected_clients = connected_clients
        self._count_open_tunnels = count_open_tunnels

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("tunnelproxy_tunnels_open", "Open tunnels.", self._count_open_tunnels())
        ends = GaugeMetricFamily(
            "tunnelproxy_ends_connected",
            "Clients connected, by mode and version of the protocol.",
            labels=("mode", "version"),
        )
        for (mode, version), number in self._connected_clients.ends().items():
            ends.add_metric((mode, f"V{version}"), number)
        yield ends
        relayed = CounterMetricFamily(
            "tunnelproxy_bytes_relayed", "Bytes taken from clients for the other end, by mode.", labels=("mode",)
        )
        for mode, number in self._connected_clients.relayed().items():
            relayed.add_metric((mode,), number)
        yield relayed
