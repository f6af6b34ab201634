# SPDX-License-Identifier: Apache-2.0
"""One process of the tunneling service: puts the parts together, runs them, and takes them apart."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ..net.background_tasks import supervise
from ..net.descriptor_limit import allow_many_files
from .api.authorization import Authorizer
from .api.http import BODY_DEADLINE, ControlApi
from .api.replay_guard import ReplayGuard
from .api.request_handler import RequestHandler
from .api.things import ThingOperations
from .api.tunnels import TunnelOperations
from .audit_log import AuditLog
from .data_plane.server import TUNNEL_CLOSED, TUNNEL_EXPIRED, DataPlane
from .errors import ServiceError
from .event_log import log_refusal
from .events import Event, EventHandler
from .expiry import Expiry
from .limits import DEFAULT_LIMITS, Limits
from .listener import Listener
from .log_limits import LogLimits
from .metrics import Figure, Metrics
from .mqtt.notifier import NO_BROKER, BrokerSettings, Notifier, notifying
from .outage import Outage
from .rotating_file import DEFAULT_KEPT, DEFAULT_SIZE
from .state.certificates import Certificates, ProvidedCertificate
from .state.directory import Endpoints, StateDirectory
from .state.server_certificate import ServerCertificate
from .state.store import Store
from .unexpected_errors import UnexpectedErrors

__all__ = ["Settings", "serve"]

_BACKLOG = 1024
_API_STOP_DEADLINE = 3.0
_API_IDLE = 75.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to run the service. A port of 0 means the one of the last run where it is free, else any.

    Attributes:
        public_name: the name or address by which clients reach the service; where None, ``host``.
        region: that of a new service, or the one that a service is expected to have; None for the default, or for
            the one that it has.
        certificate: one of the operator's own, in place of one that the service makes.
        audit_log: where to write it; where None, in the state directory.
        audit_size: bytes at which it is full, and another is begun; 0 for never.
        audit_files: how many full ones are kept.
        metrics_port: where to serve figures for Prometheus; where None, nowhere.
        reopen_log: begins a new log, as the audit log and at the same time; where None, nothing does.
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
        """By what clients reach the service."""
        return self.public_name or self.host


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run the service until cancelled.

    Args:
        settings: where, and with what state.
        announce: is given the one line that tells that the service is ready.

    Raises:
        ServiceError: it cannot start.
    """
    state = StateDirectory(settings.state_dir)
    with contextlib.ExitStack() as stack:
        with _in_sentences(state):
            state.create()
            stack.enter_context(state.locked())
            store = Store(
                state.database,
                Outage(
                    f"the service's database {state.database}",
                    "calls that change something are refused until it can be written again",
                ),
            )
            stack.callback(store.close)
            _settle_region(settings, state, store)
            audit = AuditLog(
                settings.audit_log or state.audit_log,
                clock=time.time,
                size=settings.audit_size,
                kept=settings.audit_files,
            )
            stack.callback(audit.close)
            certificate = ServerCertificate(settings.certificate or Certificates(state.keys, state.ca), settings.name)
            listeners = _Listeners.bound(settings, state.read_endpoints(), stack)
        own = settings.certificate is not None
        endpoints = Endpoints(settings.name, *listeners.ports, own)
        allow_many_files()

        def on_hangup() -> None:
            if settings.reopen_log is not None:
                settings.reopen_log()
            audit.reopen()
            certificate.renew()

        async with contextlib.AsyncExitStack() as running:
            notifier = await running.enter_async_context(
                notifying(
                    settings.broker,
                    state,
                    store.identity(),
                    host=settings.host,
                    name=settings.name,
                )
            )
            await running.enter_async_context(
                _running(settings, store, certificate, audit, listeners, notifier=notifier)
            )
            running.enter_context(_on_hangup(on_hangup))
            running.enter_context(_background("looking after the certificate", certificate.run))
            with _in_sentences(state):
                state.write_endpoints(endpoints)
            authority = "system" if own else state.ca
            announce(f"ready api={endpoints.api} data={endpoints.data} ca={authority}{notifier.announcement}")
            await asyncio.Event().wait()


@contextlib.contextmanager
def _in_sentences(state: StateDirectory) -> Iterator[None]:
    """Tell the operator what the system says of the state directory, while the service starts."""
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
    """A task that is there as long as the block runs, whatever happens in it."""
    task = supervise(name, run)
    try:
        yield
    finally:
        task.cancel()


def _settle_region(settings: Settings, state: StateDirectory, store: Store) -> None:
    """Give a service that starts for the first time its region, and hold one that has started before to its own.

    Raises:
        ServiceError: it has another than the one that the operator names.
    """
    region, wanted = store.identity().region, settings.region
    if wanted is None or wanted == region:
        return
    if state.read_endpoints() is not None:
        raise ServiceError(
            f"the tunneling service in {state.path} has the region {region} since its first start, and --region says "
            f"{wanted}; leave --region out, or give --state-dir another directory for another service"
        )
    store.set_region(wanted)


@dataclass(frozen=True)
class _Listeners:
    """The sockets that the service listens on."""

    api: socket.socket
    data: socket.socket
    metrics: socket.socket | None

    @classmethod
    def bound(cls, settings: Settings, last: Endpoints | None, stack: contextlib.ExitStack) -> _Listeners:
        """Bind them all; the stack closes them."""
        api = _listen(settings.host, settings.api_port, last.api_port if last else 0, "--api-port")
        stack.callback(api.close)
        data = _listen(settings.host, settings.data_port, last.data_port if last else 0, "--data-port")
        stack.callback(data.close)
        if settings.metrics_port is None:
            return cls(api, data, None)
        metrics = _bind(settings.metrics_host, settings.metrics_port, "--metrics-port")
        stack.callback(metrics.close)
        return cls(api, data, metrics)

    @property
    def ports(self) -> tuple[int, int]:
        """The ports that clients use."""
        return self.api.getsockname()[1], self.data.getsockname()[1]


@contextlib.asynccontextmanager
async def _running(
    settings: Settings,
    store: Store,
    certificate: ServerCertificate,
    audit: AuditLog,
    listeners: _Listeners,
    *,
    notifier: Notifier,
) -> AsyncIterator[None]:
    """Both servers and the clock that ends tunnels, for as long as the block runs."""
    store.disconnect_all(time.time())
    failures = UnexpectedErrors()
    asyncio.get_running_loop().set_exception_handler(failures.of_loop)

    def write(event: Event) -> None:
        audit.write(event)
        log_refusal(event)

    strangers = LogLimits(write, time.monotonic)
    accounts: list[EventHandler] = [strangers.note]

    def record(event: Event) -> None:
        for account in accounts:
            account(event)

    limits = settings.limits
    data_plane = DataPlane(store, clock=time.time, limits=limits, notify=record, failures=failures)
    metrics = Metrics(data_plane.connected_clients, store.count_open_tunnels)
    metrics.add_figures(_figures(store, audit, failures, certificate))
    metrics.add_figures(notifier.figures)
    accounts.append(metrics.note)
    expiry = Expiry(store, lambda tunnel_id: data_plane.close_tunnel(tunnel_id, TUNNEL_EXPIRED), clock=time.time)
    operations = TunnelOperations(
        store,
        data_plane,
        clock=time.time,
        tunnel_opened=expiry.tunnel_opened,
        deliver=notifier.deliver,
        closed_reason=TUNNEL_CLOSED,
        limits=limits,
    )
    api = _ApiServer(certificate.context, limits, record, failures)
    identity = store.identity()
    control = ControlApi(
        operations,
        ThingOperations(store),
        Authorizer(identity, store.find_tunnel),
        find_key=store.find_key,
        region=identity.region,
        account_id=identity.account_id,
        clock=time.time,
        replays=ReplayGuard(time.monotonic),
        notify=record,
        failures=failures,
        authenticated=api.settle,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(strangers.sum_up)
        if listeners.metrics is not None:
            await stack.enter_async_context(metrics.served(listeners.metrics))
        stack.enter_context(_background("closing expired tunnels", expiry.run))
        stack.enter_context(_background("summing up refusals", strangers.run))
        try:
            await data_plane.start(listeners.data, certificate.context)
            await api.start(control.application(), listeners.api)
            notifier.open(certificate.context, limits, record)
            yield
        finally:
            _log.info("stopping")
            # Calls that have begun are answered, while the data plane can still do what they ask.
            api.stop_accepting()
            await control.finish(_API_STOP_DEADLINE)
            await api.stop()
            await data_plane.stop()


def _figures(
    store: Store, audit: AuditLog, failures: UnexpectedErrors, certificate: ServerCertificate
) -> tuple[Figure, ...]:
    return (
        Figure(
            "tunnelproxy_writes_failed",
            "Changes and lines that could not be written.",
            lambda: {"database": store.failed_writes, "audit": audit.outage.total},
            "file",
        ),
        Figure(
            "tunnelproxy_failures",
            "Faults of the service itself; its log has them.",
            lambda: {"any": failures.total},
            "kind",
        ),
        Figure(
            "tunnelproxy_certificate_not_after_timestamp_seconds",
            "When the certificates expire, in seconds since the epoch.",
            lambda: {which: ends.timestamp() for which, ends in certificate.expires.items()},
            "certificate",
            counts=False,
        ),
    )


class _ApiServer:
    """aiohttp behind a door.

    Args:
        context: for TLS.
        limits: how many connections there may be.
        notify: is told of every connection that is cut off.
        failures: logs what should not have happened.
    """

    def __init__(
        self, context: ssl.SSLContext, limits: Limits, notify: EventHandler, failures: UnexpectedErrors
    ) -> None:
        self._notify = notify
        self._failures = failures
        deadline = limits.handshake_seconds + BODY_DEADLINE
        self._door = Listener(self._make_protocol, context, limits, notify, deadline=deadline)
        self._runner: web.AppRunner | None = None

    async def start(self, application: web.Application, listener: socket.socket) -> None:
        """Answer requests on a bound socket."""
        self._runner = web.AppRunner(application, shutdown_timeout=_API_STOP_DEADLINE)
        await self._runner.setup()
        self._door.open(listener)

    def stop_accepting(self) -> None:
        """Let nobody else connect."""
        self._door.stop_accepting()

    async def stop(self) -> None:
        """Close all connections once their answers are out."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._door.close()

    def settle(self, protocol: object) -> None:
        """A connection has shown that its client has a key."""
        self._door.settle(protocol)

    def _make_protocol(self) -> asyncio.BaseProtocol:
        assert self._runner is not None  # noqa: S101  the door opens after that
        assert self._runner.server is not None  # noqa: S101  and after its setup
        return RequestHandler(
            self._runner.server, notify=self._notify, failures=self._failures, keepalive_timeout=_API_IDLE
        )


@contextlib.contextmanager
def _on_hangup(action: Callable[[], object]) -> Iterator[None]:
    """Act on SIGHUP for as long as the block runs."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, action)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _listen(host: str, port: int, remembered: int, option: str) -> socket.socket:
    """Bind a port: the one that was asked for, else the one of the last run, else any."""
    if port == 0 and remembered:
        # Proxies and clients look for the service where it was.
        with contextlib.suppress(ServiceError):
            return _bind(host, remembered, option)
        _log.warning("port %d of the last run is taken now; picking another for %s", remembered, option)
    return _bind(host, port, option)


def _bind(host: str, port: int, option: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ServiceError(f"cannot find the address of --host {host}: {error.strerror}") from error
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"port {port} of {host} is in use; give {option} another one, or 0 for any") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServiceError(f"this machine has no address {host}; give --host one that it has") from error
        raise ServiceError(
            f"cannot listen on port {port} of {host} ({option}): {os.strerror(error.errno or 0)}"
        ) from error
