# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy agent``: wait on the device for tunnels, and serve them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .logs import add_options, complain, configure
from .readiness import notify

__all__ = ["add_parser"]

DEFAULT_CONFIG = Path("/etc/tunnelproxy/agent.yml")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``agent`` and its command, which sets ``handler`` to a function from the arguments to an exit status."""
    agent = subparsers.add_parser("agent", help="on the device: wait for tunnels on MQTT, and serve them")
    commands = agent.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="run the agent until SIGTERM or SIGINT")
    run.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="what the agent is to do (default: %(default)s)",
    )
    add_options(run)
    run.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ..errors import ConfigurationError
    from .process import run_until_signal

    configure(arguments.verbose, arguments.log_format)
    try:
        from ..agent.agent import run_agent
        from ..agent.config import read_config

        run_until_signal(run_agent(read_config(arguments.config, os.environ), notify))
    except ConfigurationError as error:
        complain(error, arguments.log_format)
        return 1
    except ModuleNotFoundError as error:
        complain(
            f"the Python package {error.name} is missing, which the agent needs; install it with: "
            "pip install 'iot-tunnelproxy[agent]'",
            arguments.log_format,
        )
        return 1
    return 0
