# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy`` with the command line of AWS's reference ``localproxy``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..protocol.session import Mode
from ..proxy.destination import DestinationProxy
from ..proxy.link import LinkLost
from ..proxy.source import SourceProxy
from ..proxy.tunnel_end import Plan, TunnelEnd
from . import logs
from .invocation import Invocation, read_invocation
from .options import TOKEN_VARIABLE, Options, read_options
from .process import hidden_tokens, run_until_signal
from .proxy_settings import export_defaults
from .readiness import notify
from .retrying_listener import RetryingListener

__all__ = ["run_proxy"]

log = logging.getLogger(__name__)


def run_proxy(arguments: Sequence[str]) -> int:
    """Run a source or a destination proxy, and return the exit status."""
    options = Options({})
    try:
        options = read_options(arguments, hidden_tokens())
        if options.get("export-default-settings"):
            export_defaults(Path(options.get("export-default-settings")))
            return 0
        logs.configure(options.get("verbose", logs.DEFAULT_VERBOSITY), options.get("log-format", "text"))
        invocation = read_invocation(options, os.environ)
        _warn(options, invocation)
        run_until_signal(_serve(invocation))
    except TunnelClosed as closed:
        log.info("the tunnel is closed or has expired: %s", closed)
        return 0
    except (ConfigurationError, TunnelRefused, LinkLost) as error:
        logs.complain(error, options.get("log-format", "text"))
        return 1
    return 0


def _warn(options: Options, invocation: Invocation) -> None:
    if "access-token" in options.given and "access-token" not in options.from_file:
        log.warning(
            "the access token was passed as an argument, so the shell's history may contain it: pass it in %s instead",
            TOKEN_VARIABLE,
        )
    if options.get("no-ssl-host-verify"):
        log.warning(
            "%s: the certificate of %s is not verified: anyone on the path can read and change everything, and steal "
            "the access token",
            options.label("no-ssl-host-verify"),
            invocation.route,
        )


async def _serve(invocation: Invocation) -> None:
    log.info("starting as the %s of the tunnel, at %s", invocation.access.mode.value, invocation.route)
    if invocation.access.mode is Mode.DESTINATION:
        destination = _destination(invocation)
        await _run_together(destination.run(), _announce(destination.end))
    elif invocation.strict:
        source = _source(invocation, invocation.plan)
        await _run_together(source.run(), _announce(source.end))
    else:
        settings = invocation.settings
        bind_address = invocation.bind_address or settings.bind_address
        listener = RetryingListener(invocation.plan, bind_address, settings.connect_attempts, settings.connect_pause)
        source = _source(invocation, listener.plan)
        await _run_together(source.run(), listener.run(source), _announce(source.end, listener.begun))


async def _run_together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all coroutines until one fails; then cancel the others, and raise its error."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _source(invocation: Invocation, plan: Plan) -> SourceProxy:
    return SourceProxy(
        invocation.route,
        invocation.access,
        plan,
        bind_address=invocation.bind_address or invocation.settings.bind_address,
        max_connections=invocation.settings.max_connections,
        retry_policy=invocation.settings.retry_policy,
        destination_version=invocation.destination_version,
        stall_seconds=invocation.stall_seconds,
    )


def _destination(invocation: Invocation) -> DestinationProxy:
    return DestinationProxy(
        invocation.route,
        invocation.access,
        invocation.plan,
        bind_address=invocation.bind_address,
        max_connections=invocation.settings.max_connections,
        connect_attempts=invocation.settings.connect_attempts,
        connect_pause=invocation.settings.connect_pause,
        retry_policy=invocation.settings.retry_policy,
        stall_seconds=invocation.stall_seconds,
    )


async def _announce(end: TunnelEnd, *more: asyncio.Event) -> None:
    """Tell systemd that the proxy is ready, once the events in ``more`` are set, too."""
    for event in (end.ready, *more):
        await event.wait()
    notify("READY=1", f"STATUS=connected to {end.endpoint}, with {', '.join(end.services)}")
