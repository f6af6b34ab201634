# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy agent``: wait for tunnels on the device, and serve them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import libraries
from .logs import add_options, complain, configure
from .readiness import notify

__all__ = ["add_parser"]

_DEFAULT_CONFIG = Path("/etc/tunnelproxy/agent.yml")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``agent`` and its commands; each sets ``handler`` to a function from the arguments to an exit status."""
    agent = subparsers.add_parser("agent", help="the agent on the device: wait for tunnels on MQTT, and serve them")
    commands = agent.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run the agent until SIGTERM or SIGINT")
    _add_config(run)
    add_options(run)
    run.set_defaults(handler=_reporting(_run))

    check = commands.add_parser("check", help="check a configuration without running the agent")
    _add_config(check)
    check.add_argument(
        "--connect",
        action="store_true",
        help="also connect to the MQTT broker; this briefly disconnects a running agent, without losing notifications",
    )
    check.set_defaults(handler=_reporting(_check))


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=_DEFAULT_CONFIG,
        metavar="FILE",
        help="the configuration file (default: %(default)s)",
    )


def _reporting(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Report an error on one line, and return exit status 1."""

    def handler(arguments: argparse.Namespace) -> int:
        from ..errors import ConfigurationError

        log_format = getattr(arguments, "log_format", "text")
        try:
            return command(arguments)
        except ConfigurationError as error:
            complain(error, log_format)
        except ImportError as error:
            complain(libraries.explain(error, "the agent", "agent"), log_format)
        return 1

    return handler


def _run(arguments: argparse.Namespace) -> int:
    from ..agent.agent import run_agent
    from ..agent.config import read_config
    from .process import run_until_signal

    configure(arguments.verbose, arguments.log_format)
    run_until_signal(run_agent(read_config(arguments.config, os.environ), notify))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    import asyncio

    from ..agent.check import find_faults, try_broker
    from ..agent.notification import notify_topic

    config, faults = find_faults(arguments.config, os.environ)
    for fault in faults:
        complain(fault)
    if config is None:
        return 1
    for warning in config.warnings:
        print(f"tunnelproxy: warning: {warning}", file=sys.stderr)
    if not faults:
        print(f"{arguments.config}: no problems found")
    if arguments.connect:
        refusal = asyncio.run(try_broker(config))
        if refusal is not None:
            complain(refusal)
            return 1
        topic = notify_topic(config.thing)
        print(f"the MQTT broker {config.broker} allows {config.broker.client_id} to subscribe to {topic}")
    return 1 if faults else 0
