# SPDX-License-Identifier: GPL-3.0-or-later
"""The results of a soak: JSON for programs, text for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .record import Record
from .watch import MEGA, Sample

__all__ = ["save", "text"]

_MOST_VIOLATIONS = 100


def save(folder: Path, content: dict[str, Any], report: str) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "soak.txt").write_text(report)


def machine() -> dict[str, Any]:
    """The machine that the soak runs on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}


def text(record: Record, samples: Sequence[Sample], measurements: dict[str, Any]) -> str:
    """The verdict, the violations, and the tables."""
    violations = record.violations()
    parts = [
        "PASSED" if not violations else f"FAILED: {len(violations)} violations",
        "\n".join(f"- {violation}" for violation in violations[:_MOST_VIOLATIONS]),
        _load(record, measurements),
        _faults(record),
        _processes(samples),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _load(record: Record, measurements: dict[str, Any]) -> str:
    excused = len(record.failures) - len(record.unexcused())
    rows = [[what, str(value)] for what, value in (*measurements.items(), *record.done.items())]
    rows.append(["failures explained by a fault", str(excused)])
    return "Load\n" + _table(["", ""], rows)


def _faults(record: Record) -> str:
    grouped = defaultdict(list)
    for window in record.windows:
        grouped[window.fault].append(window)
    rows = []
    for fault, windows in grouped.items():
        recovery = [window.recovered - window.removed for window in windows if window.recovered]
        excused = sum(any(window.excuses(failure) for window in windows) for failure in record.failures)
        more = ", ".join(f"{name}: {value:g}" for name, value in windows[-1].measurements.items())
        failed = sum(bool(window.violation) for window in windows)
        slowest = f"{max(recovery):.1f} s" if recovery else "-"
        rows.append([fault, str(len(windows)), slowest, str(excused), str(failed) if failed else "", more])
    header = ["Fault", "count", "slowest recovery", "excused failures", "violations", "last measurement"]
    return "Faults\n" + _table(header, rows)


def _processes(samples: Sequence[Sample]) -> str:
    grouped: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        grouped[sample.name].append(sample)
    rows = []
    for name, life in grouped.items():
        part = max(1, min(3, len(life) // 2))
        first, last = life[:part], life[-part:]
        rows.append(
            [
                name,
                str(len({sample.pid for sample in life})),
                _megabytes(first),
                _megabytes(last),
                f"{max(sample.rss for sample in life) / MEGA:.1f}",
                str(max(sample.descriptors for sample in life)),
                str(max(sample.threads for sample in life)),
            ]
        )
    header = ["Process", "starts", "MB at first", "at the end", "max", "max descriptors", "max threads"]
    return "Processes (resident memory)\n" + _table(header, rows)


def _megabytes(samples: Sequence[Sample]) -> str:
    return f"{statistics.median(sample.rss for sample in samples) / MEGA:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, *rows] if any(header) else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
