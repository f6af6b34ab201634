# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m demo``: run the scenario, and clean up in any case."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from .cleanup import Cleanup, locked
from .console import Console
from .controller import REPOSITORY
from .processes import Failure, adopt_orphans
from .scenario import STEPS, Scenario

__all__ = ["main"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The demo received a signal."""


def main() -> int:
    """Run the command line, and return its exit status."""
    options = _parse()
    with locked(options.folder) as mine:
        if not mine:
            print(f"Another demo is running in {options.folder}. Wait until it ends, or stop it with Ctrl-C.")
            return 1
        return _stop(options.folder) if options.command == "stop" else _run(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show iotops.tunnel on this machine.")
    parser.add_argument("command", choices=("run", "stop"), nargs="?", default="run")
    parser.add_argument("--keep", action="store_true", help="leave the demo running; 'stop' removes it")
    parser.add_argument("--loopback", action="store_true", help="use the loopback interface, not network namespaces")
    parser.add_argument(
        "--folder",
        type=lambda text: Path(text).resolve(),
        default=REPOSITORY / ".demo",
        help="folder for files (%(default)s)",
    )
    return parser.parse_args()


def _stop(folder: Path) -> int:
    cleanup = Cleanup.load(folder)
    if cleanup is None:
        print("No demo is running.")
        return 0
    cleanup.remove()
    print("The demo has been removed: processes, namespaces and files.")
    return 0


def _run(options: argparse.Namespace) -> int:
    earlier = Cleanup.load(options.folder)
    if earlier is not None and earlier.kept:
        print("A demo is already running, left by KEEP=1. Remove it first: make demo-stop")
        return 1
    if earlier is not None:
        # It was killed before it could clean up.
        earlier.remove()
    return _run_scenario(options)


def _run_scenario(options: argparse.Namespace) -> int:
    adopt_orphans()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    console = Console(STEPS)
    cleanup = Cleanup.begin(options.folder)
    try:
        Scenario(console, cleanup, loopback=options.loopback).run(keep=options.keep)
    except Failure as failure:
        return _abort(console, cleanup, str(failure))
    except Interrupted:
        return _abort(console, cleanup, "Interrupted.")
    except Exception:
        _abort(console, cleanup, "The demo failed because of a bug in the demo.")
        raise
    if options.keep:
        cleanup.keep()
        return 0
    _ignore_signals()
    cleanup.remove()
    console.plain("All processes, namespaces and files of the demo have been removed.")
    return 0


def _abort(console: Console, cleanup: Cleanup, reason: str) -> int:
    _ignore_signals()
    console.failure(f"{reason} Cleaning up …")
    cleanup.remove(keep_logs=True)
    console.plain(f"Everything has been removed except the logs, which are in {os.path.relpath(cleanup.logs)}/")
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
