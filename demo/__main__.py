# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m demo``: run the scenario, and clear up whatever happens."""

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
    """A signal came."""


def main() -> int:
    """Run the command line, and return its exit status."""
    options = _parse()
    with locked(options.folder) as mine:
        if not mine:
            print(f"Another demo runs in {options.folder} just now. Wait for its end, or stop it with Ctrl-C.")
            return 1
        return _stop(options.folder) if options.command == "stop" else _run(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show iotops.tunnel on this machine.")
    parser.add_argument("command", choices=("run", "stop"), nargs="?", default="run")
    parser.add_argument("--keep", action="store_true", help="leave all of it up; 'stop' removes it")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument(
        "--folder", type=lambda text: Path(text).resolve(), default=REPOSITORY / ".demo", help="for files (%(default)s)"
    )
    return parser.parse_args()


def _stop(folder: Path) -> int:
    cleanup = Cleanup.load(folder)
    if cleanup is None:
        print("No demo is up.")
        return 0
    cleanup.remove()
    print("The demo is gone: processes, namespaces and files.")
    return 0


def _run(options: argparse.Namespace) -> int:
    earlier = Cleanup.load(options.folder)
    if earlier is not None and earlier.kept:
        print("A demo is up already, kept with KEEP=1. Remove it first: make demo-stop")
        return 1
    if earlier is not None:
        # It was killed before it could clear up.
        earlier.remove()
    return _tell(options)


def _tell(options: argparse.Namespace) -> int:
    adopt_orphans()
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    console = Console(STEPS)
    cleanup = Cleanup.begin(options.folder)
    try:
        Scenario(console, cleanup, loopback=options.loopback).run(keep=options.keep)
    except Failure as failure:
        return _give_up(console, cleanup, str(failure))
    except Interrupted:
        return _give_up(console, cleanup, "Interrupted.")
    except Exception:
        _give_up(console, cleanup, "The demo itself has a fault.")
        raise
    if options.keep:
        cleanup.keep()
        return 0
    _ignore_signals()
    cleanup.remove()
    console.plain("Nothing is left behind: processes, namespaces and files of the demo are gone.")
    return 0


def _give_up(console: Console, cleanup: Cleanup, reason: str) -> int:
    _ignore_signals()
    console.failure(f"{reason} Clearing up …")
    cleanup.remove(keep_logs=True)
    console.plain(f"Nothing else is left behind, but the logs are kept: {os.path.relpath(cleanup.logs)}/")
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
