# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects what was measured, several times for each thing, and shows the medians."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["RESULTS", "Results", "add_delay", "cpu_seconds", "delay_suffix", "percentile"]

RESULTS = Path(__file__).parent / "results"


def add_delay(parser: argparse.ArgumentParser) -> None:
    """Add the option for distance."""
    parser.add_argument(
        "--delay",
        type=float,
        default=0.0,
        metavar="MS",
        help="what each direction of a WebSocket takes (%(default)s); by the other methods, the far end is as far away",
    )


def delay_suffix(delay: float) -> str:
    """What sets the results with distance apart from those without."""
    return f"-delay-{delay:g}" if delay else ""


def cpu_seconds(pid: int) -> float:
    """What a process has used, in user and system mode."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the others are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass
class Results:
    """A table: what was measured, by whom it was done, and all the values."""

    title: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, what: str, who: str, value: float) -> None:
        """Note one measurement. ``what`` says its unit."""
        self.values.setdefault(what, {}).setdefault(who, []).append(value)

    def median(self, what: str, who: str) -> float:
        """The median of what was noted."""
        return statistics.median(self.values[what][who])

    def table(self) -> str:
        """The medians as Markdown."""
        columns = list(dict.fromkeys(who for row in self.values.values() for who in row))
        lines = [["", *columns]]
        lines += [
            [what, *(_number(statistics.median(row[who])) if who in row else "-" for who in columns)]
            for what, row in self.values.items()
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        padded = [
            "| "
            + " | ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            + " |"
            for line in lines
        ]
        rule = "|" + "|".join("-" * (width + 1) + ("-" if not i else ":") for i, width in enumerate(widths)) + "|"
        return "\n".join([padded[0], rule, *padded[1:]])

    def show(self, name: str) -> None:
        """Print the medians, and save everything."""
        print(f"\n{self.title}\n\n{self.table()}\n\nwritten to {self.save(name)}\n", flush=True)

    def save(self, name: str) -> Path:
        """Write all of it as JSON, with what it was measured on."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        content = {
            "title": self.title,
            "machine": {
                "cores": os.cpu_count(),
                "processor": _processor(),
                "python": platform.python_version(),
                "openssl": subprocess.run(
                    ["openssl", "version"], capture_output=True, text=True, check=True
                ).stdout.strip(),
            },
            "values": self.values,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
