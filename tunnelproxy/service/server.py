# SPDX-License-Identifier: Apache-2.0
"""One process of the tunneling service: assembles the parts, runs them, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..log_file import DEFAULT_KEPT, DEFAULT_SIZE
from ..net.background_tasks import supervise
from ..net.descriptor_limit import allow_many_files
from ..outage import Outage
from .api.authorization import Authorizer
from .api.http import ControlApi
from .api.replay_guard import ReplayGuard
from .api.server import ApiServer
from .api.things import ThingOperations
from .api.tunnels import TunnelOperations
from .data_plane.server import TUNNEL_CLOSED, TUNNEL_EXPIRED, DataPlane
from .errors import ServiceError
from .events import Event, EventHandler
from .limits import DEFAULT_LIMITS, Limits
from .listening.bound_socket import bind, bind_remembered
from .logs.audit_log import AuditLog
from .logs.event_log import log_refusal
from .logs.log_limits import LogLimits
from .logs.unexpected_errors import UnexpectedErrors
from .metrics import Metric, Metrics
from .mqtt.notifier import NO_BROKER, BrokerSettings, Notifier, connected_notifier
from .mqtt.outbox import Outbox
from .state.certificates import Certificates, ProvidedCertificate
from .state.directory import Endpoints, StateDirectory
from .state.expiry import Expiry
from .state.server_certificate import ServerCertificate
from .state.store import Store

__all__ = ["ServiceSettings", "serve"]

_FINISH_SECONDS = 3.0
"""How long requests in progress may take when the service stops."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceSettings:
    """How to run the service. A port of 0 is that of the last run if it is free, or else any free port.

    Attributes:
        public_name: the name or address by which clients reach the service; None for ``host``.
        region: the region of a new service, or the one that an existing service must have; None for the default, or
            for the region that it has.
        certificate: a certificate of the operator's; None for one that the service issues itself.
        audit_log: the audit log; None for one in the state directory.
        audit_size: bytes at which the audit log is rotated; 0 for never.
        audit_files: how many rotated audit logs are kept.
        metrics_port: the port of the metrics for Prometheus; None for no metrics.
        reopen_log: reopens the service's log, together with the audit log; None if there is no file.
    """

    state_dir: Path
    host: str
    api_port: int
    data_port: int
    public_name: str | None = None
    region: str | None = None
    certificate: ProvidedCertificate | None = None
    limits: Limits = DEFAULT_LIMITS
    audit_log: Path | None = None
    audit_size: int = DEFAULT_SIZE
    audit_files: int = DEFAULT_KEPT
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    broker: BrokerSettings = NO_BROKER
    reopen_log: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """The name by which clients reach the service."""
        return self.public_name or self.host


@dataclass(frozen=True)
class _Sockets:
    """The listening sockets."""

    api: socket.socket
    data: socket.socket
    metrics: socket.socket | None

    @classmethod
    def bound(cls, settings: ServiceSettings, last: Endpoints | None, stack: contextlib.ExitStack) -> _Sockets:
        """Bind them all; the stack closes them."""
        api = bind_remembered(settings.host, settings.api_port, last.api_port if last else 0, "--api-port")
        stack.callback(api.close)
        data = bind_remembered(settings.host, settings.data_port, last.data_port if last else 0, "--data-port")
        stack.callback(data.close)
        if settings.metrics_port is None:
            return cls(api, data, None)
        metrics = bind(settings.metrics_host, settings.metrics_port, "--metrics-port")
        stack.callback(metrics.close)
        return cls(api, data, metrics)

    @property
    def ports(self) -> tuple[int, int]:
        """The ports that clients use."""
        return self.api.getsockname()[1], self.data.getsockname()[1]


@dataclass(frozen=True)
class _Resources:
    """What is opened before the service answers requests, and closed last."""

    state: StateDirectory
    store: Store
    audit: AuditLog
    certificate: ServerCertificate
    sockets: _Sockets


async def serve(settings: ServiceSettings, announce: Callable[[str], None]) -> None:
    """Run the service until cancelled.

    Args:
        settings: how to run it.
        announce: called with the line that announces that the service is ready.

    Raises:
        ServiceError: the service cannot start.
    """
    with contextlib.ExitStack() as stack:
        resources = _opened(settings, stack)
        state, store, certificate = resources.state, resources.store, resources.certificate
        is_provided = settings.certificate is not None
        endpoints = Endpoints(settings.name, *resources.sockets.ports, is_provided)
        allow_many_files()

        def on_hangup() -> None:
            if settings.reopen_log is not None:
                settings.reopen_log()
            resources.audit.reopen()
            certificate.renew()

        async with contextlib.AsyncExitStack() as running:
            notifier = await running.enter_async_context(
                connected_notifier(settings.broker, state, store.identity(), host=settings.host, name=settings.name)
            )
            await running.enter_async_context(_running(settings.limits, resources, notifier))
            running.enter_context(_on_hangup(on_hangup))
            running.enter_context(_background("renewing the certificate", certificate.run))
            with _explained(state):
                state.write_endpoints(endpoints)
            authority = "system" if is_provided else state.ca
            announce(f"ready api={endpoints.api} data={endpoints.data} ca={authority}{notifier.announcement}")
            await asyncio.Event().wait()


def _opened(settings: ServiceSettings, stack: contextlib.ExitStack) -> _Resources:
    """Open the service's files and sockets; the stack closes them."""
    state = StateDirectory(settings.state_dir)
    with _explained(state):
        state.create()
        stack.enter_context(state.locked())
        outage = Outage(
            f"the service's database {state.database}",
            "calls that change something are refused until it can be written again",
        )
        store = Store(state.database, outage)
        stack.callback(store.close)
        _settle_region(settings.region, state, store)
        audit = AuditLog(
            settings.audit_log or state.audit_log,
            clock=time.time,
            size=settings.audit_size,
            kept=settings.audit_files,
        )
        stack.callback(audit.close)
        certificate = ServerCertificate(settings.certificate or Certificates(state.keys, state.ca), settings.name)
        sockets = _Sockets.bound(settings, state.read_endpoints(), stack)
    return _Resources(state, store, audit, certificate, sockets)


@contextlib.contextmanager
def _explained(state: StateDirectory) -> Iterator[None]:
    """Turn an OSError about the state directory into a sentence for the operator."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free space on its disk",
            errno.EDQUOT: "free space on its disk",
            errno.EROFS: "remount its disk read-write",
        }.get(error.errno or 0, "make it writable for this user")
        raise ServiceError(
            f"cannot write {error.filename or state.path} in the state directory: {error.strerror}; {remedy}, or give "
            "--state-dir another directory"
        ) from error


@contextlib.contextmanager
def _background(name: str, run: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Run a task within the block, and restart it whenever it fails."""
    task = supervise(name, run)
    try:
        yield
    finally:
        task.cancel()


def _settle_region(wanted: str | None, state: StateDirectory, store: Store) -> None:
    """Give a new service its region, and check that an existing service has the wanted one.

    Raises:
        ServiceError: an existing service has another region.
    """
    region = store.identity().region
    if wanted is None or wanted == region:
        return
    if state.read_endpoints() is not None:
        raise ServiceError(
            f"the tunneling service in {state.path} has the region {region} since its first start, and --region says "
            f"{wanted}; leave --region out, or give --state-dir another directory for another service"
        )
    store.set_region(wanted)


@contextlib.asynccontextmanager
async def _running(limits: Limits, resources: _Resources, notifier: Notifier) -> AsyncIterator[None]:
    """Run both servers, and the tasks that expire tunnels and summarize refusals, within the block."""
    store, certificate, sockets = resources.store, resources.certificate, resources.sockets
    store.disconnect_all(time.time())
    failures = UnexpectedErrors()
    asyncio.get_running_loop().set_exception_handler(failures.of_loop)
    metrics = Metrics()
    log_limits = LogLimits(_event_writer(resources.audit), time.monotonic)

    def record(event: Event) -> None:
        log_limits.note(event)
        metrics.note(event)

    data_plane = DataPlane(store, clock=time.time, limits=limits, notify=record, failures=failures)
    metrics.add(_metrics(resources, data_plane, failures))
    if notifier.outbox is not None:
        metrics.add(_broker_metrics(notifier.outbox))
    expiry = Expiry(store, lambda tunnel_id: data_plane.close_tunnel(tunnel_id, TUNNEL_EXPIRED), clock=time.time)
    tunnels = TunnelOperations(
        store,
        disconnect=lambda tunnel_id: data_plane.close_tunnel(tunnel_id, TUNNEL_CLOSED),
        revoke=data_plane.revoke,
        clock=time.time,
        tunnel_opened=expiry.tunnel_opened,
        deliver=notifier.deliver,
        limits=limits,
    )
    server = ApiServer(certificate.context, limits, record, failures)
    identity = store.identity()
    control = ControlApi(
        tunnels,
        ThingOperations(store),
        Authorizer(identity, store.find_tunnel),
        find_key=store.find_key,
        region=identity.region,
        account_id=identity.account_id,
        clock=time.time,
        replay_guard=ReplayGuard(time.monotonic),
        notify=record,
        failures=failures,
        authenticated=server.settle,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(log_limits.summarize)
        if sockets.metrics is not None:
            await stack.enter_async_context(metrics.served(sockets.metrics))
        stack.enter_context(_background("closing expired tunnels", expiry.run))
        stack.enter_context(_background("summarizing refusals", log_limits.run))
        try:
            await data_plane.start(sockets.data, certificate.context)
            await server.start(control.application(), sockets.api)
            notifier.open(certificate.context, limits, record)
            yield
        finally:
            log.info("stopping")
            # Requests in progress are answered while the data plane can still carry them out.
            server.stop_accepting()
            await control.finish(_FINISH_SECONDS)
            await server.stop()
            await data_plane.stop()


def _event_writer(audit: AuditLog) -> EventHandler:
    def write(event: Event) -> None:
        audit.write(event)
        log_refusal(event)

    return write


def _metrics(resources: _Resources, data_plane: DataPlane, failures: UnexpectedErrors) -> tuple[Metric, ...]:
    store, audit, certificate = resources.store, resources.audit, resources.certificate
    clients = data_plane.connected_clients
    return (
        Metric("tunnelproxy_tunnels_open", "Open tunnels.", lambda: {(): store.count_open_tunnels()}),
        Metric(
            "tunnelproxy_ends_connected",
            "Connected clients, by mode and protocol version.",
            lambda: {(mode, f"V{version}"): number for (mode, version), number in clients.ends().items()},
            ("mode", "version"),
        ),
        Metric(
            "tunnelproxy_bytes_relayed",
            "Bytes received from clients for the other end, by mode.",
            lambda: {(mode,): number for mode, number in clients.relayed().items()},
            ("mode",),
            is_counter=True,
        ),
        Metric(
            "tunnelproxy_writes_failed",
            "Changes and log lines that could not be written.",
            lambda: {("database",): store.failed_writes, ("audit",): audit.outage.total},
            ("file",),
            is_counter=True,
        ),
        Metric(
            "tunnelproxy_failures",
            "Unexpected errors in the service; its log contains the details.",
            lambda: {("any",): failures.total},
            ("kind",),
            is_counter=True,
        ),
        Metric(
            "tunnelproxy_certificate_not_after_timestamp_seconds",
            "When the certificates expire, in seconds since the epoch.",
            lambda: {(which,): expires.timestamp() for which, expires in certificate.expires.items()},
            ("certificate",),
        ),
    )


def _broker_metrics(outbox: Outbox) -> tuple[Metric, ...]:
    return (
        Metric(
            "tunnelproxy_mqtt_broker_connected",
            "Whether the service is connected to the MQTT broker: 1 or 0.",
            lambda: {(): outbox.is_connected},
        ),
        Metric(
            "tunnelproxy_notifications_waiting",
            "Notifications that the MQTT broker has not confirmed.",
            lambda: {(): outbox.waiting},
        ),
    )


@contextlib.contextmanager
def _on_hangup(action: Callable[[], object]) -> Iterator[None]:
    """Call the action on SIGHUP, within the block."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, action)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
