# SPDX-License-Identifier: Apache-2.0
"""Files of the hub's: a value in JSON on each line, replaced whole, for this user alone."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["read", "replace"]

log = logging.getLogger(__name__)


def read(path: Path) -> list[Any]:
    """The values of a file; none where it is not there, and without lines that cannot be read."""
    values = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return []
    for line in lines:
        try:
            values.append(json.loads(line))
        except ValueError:
            log.warning("a line of %s cannot be read, and is left out", path)
    return values


def replace(path: Path, lines: Iterable[str]) -> None:
    """Replace the file whole, so that a crash leaves either the old or the new one.

    Args:
        lines: the values, as JSON.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        # One by one: a text of all of them, a little longer each time, leaves holes in the memory that nothing fills.
        stream.writelines(f"{line}\n" for line in lines)
    temporary.replace(path)
