# SPDX-License-Identifier: Apache-2.0
"""Logs on stderr, with the reference's levels."""

from __future__ import annotations

import logging
import sys

__all__ = ["DEFAULT_VERBOSITY", "configure"]

DEFAULT_VERBOSITY = 4

_LEVELS = (
    logging.CRITICAL + 1,
    logging.CRITICAL,
    logging.ERROR,
    logging.WARNING,
    logging.INFO,
    logging.DEBUG,
    logging.DEBUG,
)


def configure(verbosity: int, handler: logging.Handler | None = None) -> None:
    """Log to stderr, or to another handler.

    Args:
        verbosity: 0 off, 1 fatal, 2 error, 3 warning, 4 info, 5 debug, 6 trace, as in the reference local proxy.
    """
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(handlers=[handler], level=_LEVELS[min(verbosity, len(_LEVELS) - 1)], force=True)
