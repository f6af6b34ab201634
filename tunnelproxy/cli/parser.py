# SPDX-License-Identifier: Apache-2.0
"""Argument parsing as the reference does it: no abbreviations, and exit status 1 for a bad invocation."""

from __future__ import annotations

import argparse
import math
from typing import Any, Callable, NoReturn

__all__ = ["Parser", "seconds"]


class Parser(argparse.ArgumentParser):
    """argparse with one line per error, which names the option at fault.

    Args:
        place: where the arguments come from, if not from the command line; the prefix of each message.
    """

    def __init__(self, *, place: str = "", **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)
        self._place = place

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"tunnelproxy: error: {self._place}{message} (see {self.prog} --help)\n")


def seconds(least: float, most: float) -> Callable[[str], float]:
    """The ``type`` of an option that takes a number of seconds within bounds."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from {least:g} to {most:g}")
        return number

    return read
