# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy hub``: run, inspect and stop the process that holds this user's tunnels."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

from ..hub import client
from ..log_file import LogFile
from . import libraries, logs
from .process import run_until_signal
from .readiness import SOCKET_VARIABLE, notify

__all__ = ["add_parser"]

log = logging.getLogger(__name__)

_LOG_NAME = "hub.log"
_LOG_BYTES = 1024 * 1024
_IDLE_SECONDS = 60.0


def add_parser(subparsers: Any) -> None:
    """Add the ``hub`` command to the parser of ``tunnelproxy``."""
    hub = subparsers.add_parser("hub", help="the process that holds this user's tunnels")
    commands = hub.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run the hub (Ansible starts one automatically)")
    run.add_argument("--background", action="store_true", help="run in the background, and log to a file")
    run.add_argument(
        "--idle-seconds",
        type=float,
        default=_IDLE_SECONDS,
        metavar="N",
        help=f"exit after N seconds without a working tunnel (default {_IDLE_SECONDS:.0f})",
    )
    logs.add_options(run)
    run.set_defaults(handler=_run)

    status = commands.add_parser("status", help="show tunnels, services, ports, connections and bytes")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(handler=_status)

    # Only the hub starts this, so it is not in the list of commands.
    control = commands.add_parser("control")
    control.add_argument("--no-verify", dest="verify", action="store_false")
    logs.add_options(control)
    control.set_defaults(handler=_control)

    stop = commands.add_parser("stop", help="stop the hub; its tunnels stay open, and the next hub takes them over")
    stop.add_argument("--force", action="store_true", help="even if it could not save its tunnels")
    stop.set_defaults(handler=_stop)


def _run(options: argparse.Namespace) -> int:
    try:
        return _be_background(options) if options.background else _be_foreground(options)
    except client.HubError as error:
        return _fail(error)
    except ImportError as error:
        return _fail(libraries.explain(error, "the hub", "hub"))


def _be_foreground(options: argparse.Namespace) -> int:
    logs.configure(options.verbose, options.log_format)
    return _serve(options, _announce)


def _announce() -> None:
    log.info("the hub is ready in %s", client.directory())
    notify("READY=1")


def _be_background(options: argparse.Namespace) -> int:
    """Fork twice, into a new session; close standard output when ready: the starter waits for that."""
    folder = client.directory()
    log_file = LogFile(Path(folder) / _LOG_NAME, size=_LOG_BYTES, kept=1, follow_path=True)
    if os.fork():
        return 0
    os.setsid()
    if os.fork():
        os._exit(0)
    logs.configure(options.verbose, options.log_format, log_file)
    # The service manager supervises the process that started this one, not this one.
    os.environ.pop(SOCKET_VARIABLE, None)
    status = _serve(options, _say_ready, log_file)
    os._exit(status)


def _say_ready() -> None:
    print("ready", flush=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _serve(options: argparse.Namespace, ready: Callable[[], None], log_file: LogFile | None = None) -> int:
    from ..hub.server import AlreadyRunningError, serve

    def moved(folder: Path) -> None:
        if log_file is not None:
            log_file.move(folder / _LOG_NAME)

    try:
        run_until_signal(serve(ready, idle_seconds=options.idle_seconds, moved=moved))
    except AlreadyRunningError as error:
        if error.answers and options.background:
            # The running hub serves as well as a new one would.
            ready()
            return 0
        does = "" if error.answers else ", and does not answer"
        return _fail(f"a hub is already running in {client.directory()}{does}: tunnelproxy hub status")
    except client.HubError as error:
        return _fail(error)
    except OSError as error:
        return _fail(f"the hub {client.cannot_write(error.filename or client.directory(), error)}")
    return 0


def _control(options: argparse.Namespace) -> int:
    from ..hub.control_worker import serve

    logs.configure(options.verbose, options.log_format)
    # botocore logs its own errors, unredacted; each of them is reported in a sentence anyway.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    serve(verify=options.verify)
    return 0


def _status(options: argparse.Namespace) -> int:
    try:
        status = client.status()
    except client.HubError as error:
        return _fail(error)
    if options.json:
        print(json.dumps(status if status is not None else {"pid": None, "tunnels": []}, indent=2))
    elif status is None:
        print("no hub is running")
    else:
        print(f"hub: pid {status['pid']}, {len(status['tunnels'])} tunnel(s), in {client.directory()}")
        if status.get("not_saved"):
            print(f"{status['not_saved']}")
        for tunnel in status["tunnels"]:
            _print_tunnel(tunnel)
    return 0


def _print_tunnel(tunnel: dict[str, Any]) -> None:
    round_trip = "-" if tunnel["round_trip_ms"] is None else f"{tunnel['round_trip_ms']} ms"
    left = "" if tunnel["expires_at"] is None else f", expires in {_duration(tunnel['expires_at'] - time.time())}"
    account = f" in {tunnel['account_name']}" if tunnel["account_name"] else ""
    owner = f", of {tunnel['owner']}" if tunnel["owner"] else ""
    print(f"\n{tunnel['thing']}{account}: {tunnel['state']}, round trip {round_trip}{left}")
    print(f"  tunnel {tunnel['tunnel_id']} at {tunnel['endpoint']}{owner}")
    if tunnel["cause"]:
        print(f"  {tunnel['cause']}")
    listens = {name: _listens(name, service) for name, service in tunnel["services"].items()}
    width = max(18, *map(len, listens.values()), 0)
    print(f"  {'SERVICE':<16} {'LISTENS ON':<{width}} {'CONNECTIONS':>11} {'BYTES IN':>14} {'BYTES OUT':>14}")
    for name, service in tunnel["services"].items():
        print(
            f"  {name:<16} {listens[name]:<{width}} {service['connections']:>11} {service['bytes_in']:>14} "
            f"{service['bytes_out']:>14}"
        )


def _listens(name: str, service: dict[str, Any]) -> str:
    if not service["port"]:
        return "(through ssh)" if name.upper().startswith("SSH") else "(no port)"
    where: str = service.get("url") or f"127.0.0.1:{service['port']}"
    return f"{where} (any host)" if service.get("any_host") else where


def _duration(seconds: float) -> str:
    minutes = max(0, int(seconds // 60))
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _stop(options: argparse.Namespace) -> int:
    not_saved = "" if options.force else _not_saved()
    if not_saved:
        return _fail(f"the hub was not stopped: it {not_saved}, or give --force, which loses their tokens")
    try:
        stopped = client.stop()
    except client.HubError as error:
        return _fail(error)
    print("the hub has stopped" if stopped else "no hub is running")
    return 0


def _not_saved() -> str:
    """Why the next hub would not know all tunnels of this one; empty if it would, or if this is not known."""
    try:
        status = client.status()
    except client.HubError:
        # For example, a hub of another release, which can be stopped nevertheless.
        return ""
    return str(status.get("not_saved") or "") if status is not None else ""


def _fail(message: object) -> int:
    print(f"tunnelproxy: error: {message}", file=sys.stderr, flush=True)
    return 1
