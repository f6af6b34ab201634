# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy service``: run the tunneling service, and print how to reach it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import libraries, service_keys, service_options, service_things
from .logs import add_options, complain, configure
from .readiness import notify

if TYPE_CHECKING:
    from ..service.state.directory import StateDirectory

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``service`` and its commands; each sets ``handler`` to a function from the arguments to an exit status."""
    service = subparsers.add_parser("service", help="run a self-hosted tunneling service, instead of AWS's")
    commands = service.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run the service until SIGTERM or SIGINT")
    _add_state_dir(run)
    run.add_argument("--host", default="127.0.0.1", help="address or name to listen on (default: %(default)s)")
    for name in ("api", "data"):
        run.add_argument(
            f"--{name}-port",
            type=_port,
            default=0,
            metavar="N",
            help="port to listen on (default: that of the last run, or any free port)",
        )
    add_options(run)
    service_options.add_options(run, _port)
    service_things.add_broker_options(run, _port)
    run.set_defaults(handler=_reporting(_run))

    env = commands.add_parser("env", help="print the environment variables with which clients use the service")
    _add_state_dir(env)
    env.add_argument(
        "--key", default="default", metavar="NAME", help="access key for the clients (default: %(default)s)"
    )
    env.set_defaults(handler=_reporting(_env))

    service_keys.add_parser(commands, _add_state_dir, _reporting, _state)
    service_things.add_parser(commands, _add_state_dir, _reporting, _state)


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the service keeps its state (default: tunnelproxy/service below $XDG_STATE_HOME or ~/.local/state)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number from 0 to 65535")
    return int(text)


def _reporting(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Report an error on one line, and return exit status 1."""

    def handler(arguments: argparse.Namespace) -> int:
        import sqlite3

        from ..service.errors import ServiceError

        try:
            command(arguments)
        except ServiceError as error:
            problem = str(error)
        except ImportError as error:
            problem = libraries.explain(error, "the tunneling service", "service")
        except BrokenPipeError:
            raise
        except OSError as error:
            problem = f"cannot use {error.filename or _path(arguments)}: {error.strerror or error}"
        except sqlite3.Error as error:
            problem = f"the service's database in {_path(arguments)} cannot be used: {error}"
        else:
            return 0
        complain(problem, getattr(arguments, "log_format", "text"))
        return 1

    return handler


def _path(arguments: argparse.Namespace) -> Path:
    return _state(arguments).path


def _run(arguments: argparse.Namespace) -> None:
    # Slow to import, and only installed with an extra.
    from ..service.server import ServiceSettings, serve
    from ..service.state.directory import default_path
    from .process import run_until_signal

    log_file = service_options.log_file(arguments)
    configure(arguments.verbose, arguments.log_format, log_file)
    state_dir = arguments.state_dir or default_path()
    settings = ServiceSettings(
        state_dir,
        arguments.host,
        arguments.api_port,
        arguments.data_port,
        broker=service_things.broker_settings(arguments),
        reopen_log=None if log_file is None else log_file.reopen,
        **service_options.settings(arguments),
    )
    run_until_signal(serve(settings, _announce))


def _env(arguments: argparse.Namespace) -> None:
    from ..service.client_environment import client_environment, export_lines

    state = _state(arguments)
    with state.entered():
        lines = export_lines(client_environment(state, arguments.key))
    sys.stdout.write(lines)


def _state(arguments: argparse.Namespace) -> StateDirectory:
    from ..service.state.directory import StateDirectory, default_path

    return StateDirectory(arguments.state_dir or default_path())


def _announce(line: str) -> None:
    print(line, flush=True)
    notify("READY=1")
