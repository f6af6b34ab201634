# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects repeated measurements, prints their medians, and writes all values as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["RESULTS", "Results", "cpu_seconds", "percentile"]

RESULTS = Path(__file__).parent / "results"


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used, in user and system mode."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass
class Results:
    """All values of each measurement (a row), for each method or process (a column)."""

    title: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, what: str, who: str, value: float) -> None:
        """Add one value. ``what`` names the measurement and its unit."""
        self.values.setdefault(what, {}).setdefault(who, []).append(value)

    def median(self, what: str, who: str) -> float:
        """The median of the values."""
        return statistics.median(self.values[what][who])

    def table(self) -> str:
        """The medians, as a Markdown table."""
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
        """Print the medians, and write all values to a file."""
        print(f"\n{self.title}\n\n{self.table()}\n\nwritten to {self.save(name)}\n", flush=True)

    def save(self, name: str) -> Path:
        """Write all values as JSON, with a description of the machine."""
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
