# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts of the results, for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # works without a screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .results import RESULTS, Results

__all__ = ["plot_bars", "plot_growth"]

_COLOURS = ("#9aa0a6", "#5b8def", "#2f4b8f", "#e0a33a", "#2e8b57")


def plot_bars(results: Results, name: str, rows: dict[str, str], unit: str, *, without: Collection[str] = ()) -> Path:
    """A group of bars for each row: the median of each method, with its minimum and maximum as an error bar.

    Args:
        rows: the measurements to draw, each with its label below the bars.
        without: methods to leave out, because their bars would dwarf the others.
    """
    methods = list(dict.fromkeys(who for what in rows for who in results.values[what] if who not in without))
    chart, axes = plt.subplots(figsize=(1.2 + 1.7 * len(rows), 4), layout="constrained")
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        places, heights, spans = [], [], ([], [])
        for place, what in enumerate(rows):
            values = results.values[what].get(method)
            if values:
                middle = statistics.median(values)
                places.append(place + (number - (len(methods) - 1) / 2) * width)
                heights.append(middle)
                spans[0].append(middle - min(values))
                spans[1].append(max(values) - middle)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(places, heights, width * 0.92, yerr=spans, label=method, color=colour, ecolor="#444", capsize=2)
    axes.set_xticks(range(len(rows)), rows.values())
    return _finish(chart, axes, results.title, name, unit)


def plot_growth(results: Results, name: str, rows: dict[str, str], unit: str) -> Path:
    """A line for each row, over the number of tunnels."""
    chart, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (what, label) in enumerate(rows.items()):
        sizes = sorted(results.values[what], key=int)
        axes.plot(
            [int(size) for size in sizes],
            [statistics.median(results.values[what][size]) for size in sizes],
            marker="o",
            label=label,
            color=_COLOURS[(number + 1) % len(_COLOURS)],
        )
    axes.set_xlabel("tunnels")
    axes.set_ylim(bottom=0)
    return _finish(chart, axes, results.title, name, unit)


def _finish(chart: Figure, axes: Axes, title: str, name: str, unit: str) -> Path:
    """Add what all charts have in common, write the file, and return its path."""
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    chart.legend(frameon=False, loc="outside right upper")
    path = RESULTS / f"{name}.png"
    chart.savefig(path, dpi=80)
    plt.close(chart)
    return path
