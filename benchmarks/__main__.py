# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m benchmarks WHAT …``: measure, print medians, and write JSON and pictures into ``benchmarks/results``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from . import fleet, plots, proxies
from .figures import Figures


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=("proxies", "fleet"), default=["proxies", "fleet"])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median counts (%(default)s)")
    parser.add_argument("--megabytes", type=int, default=400, metavar="MB", help="in each bulk transfer (%(default)s)")
    parser.add_argument("--tunnels", type=int, default=1000, metavar="N", help="at most, in the fleet (%(default)s)")
    arguments = parser.parse_args()
    if "proxies" in arguments.what:
        compare(arguments.rounds, arguments.megabytes)
    if "fleet" in arguments.what:
        grow(arguments.tunnels)


def compare(rounds: int, megabytes: int) -> None:
    figures, memory = proxies.compare(rounds, megabytes)
    show(figures, "proxies")
    show(memory, "memory")
    bulk = {
        f"throughput {d}, {n} [MB/s]": f"{d},\n{n}" for n in ("1 connection", "8 connections") for d in ("up", "down")
    }
    plots.plot_bars(figures, "throughput", bulk)
    echoes = {f"echo {when}, p99 [ms]": when for when in ("idle", "beside bulk up", "beside bulk down")}
    plots.plot_bars(figures, "echo", echoes)


def grow(most: int) -> None:
    figures = fleet.grow(tuple(size for size in fleet.SIZES if size <= most))
    show(figures, "fleet")
    processes = ("hub", "service", "devices")
    plots.plot_growth(
        figures, "fleet-memory", {f"memory of the {name} [MB]": name for name in processes}, "MB resident"
    )
    echoes = {f"echo on all, one a second each, {p} [ms]": p for p in ("p50", "p99")}
    plots.plot_growth(figures, "fleet-echo", echoes, "ms")


def show(figures: Figures, name: str) -> None:
    print(f"\n{figures.title}\n\n{figures.table()}\n\nwritten to {figures.save(name)}\n", flush=True)


if __name__ == "__main__":
    main()
