# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m benchmarks [WHAT [OPTIONS]]``: measure, print, and write JSON and charts to ``benchmarks/results``."""

from __future__ import annotations

import os
import sys

from . import ansible_fleet, fleet, fragments, line, proxies, service_capacity, service_processes, starts

COMMANDS = {
    "proxies": proxies.main,
    "fleet": fleet.main,
    "service": service_capacity.main,
    "processes": service_processes.main,
    "ansible": ansible_fleet.main,
    "starts": starts.main,
    "fragments": fragments.main,
    "line": line.main,
}


def main() -> None:
    """Run one benchmark, with its options, or all of them."""
    # If it is set, Python compiles the measured code again in every process.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    what = sys.argv[1:2]
    if not what:
        for command in COMMANDS.values():
            command([])
    elif what[0] in COMMANDS:
        COMMANDS[what[0]](sys.argv[2:])
    else:
        sys.exit(f"unknown benchmark '{what[0]}': choose from {', '.join(COMMANDS)}, or omit the name to run all")


if __name__ == "__main__":
    main()
