# SPDX-License-Identifier: Apache-2.0
"""Argument parsing as the reference does it: no abbreviations, and exit status 1 for a bad invocation."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """argparse with one line per error, which names the option at fault."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"tunnelproxy: error: {message} (see {self.prog} --help)\n")
