# SPDX-License-Identifier: Apache-2.0
"""What outlives a hub: its tunnels with their tokens, one a line, in a file of mode 0600 in the hub's folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from .held_tunnel import TunnelRecord

__all__ = ["load", "save"]

log = logging.getLogger(__name__)


def load(path: Path) -> list[TunnelRecord]:
    """The tunnels of the hub before this one, less those whose life is over."""
    try:
        with path.open(encoding="utf-8") as lines:
            records = [TunnelRecord.from_json(json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("what the last hub left in %s cannot be read (%s): starting without it", path, type(error).__name__)
        return []
    return [record for record in records if not record.expires_within(0)]


def save(path: Path, records: Iterable[TunnelRecord]) -> None:
    """Replace the file whole, so that a crash leaves either the old or the new one."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        # One by one: a text of all of them, a little longer each time, leaves holes in the memory that nothing fills.
        stream.writelines(f"{record.saved}\n" for record in records)
    temporary.replace(path)
