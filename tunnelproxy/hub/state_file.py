# SPDX-License-Identifier: Apache-2.0
"""What outlives a hub: its tunnels with their tokens, in a file of mode 0600 in the hub's folder."""

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
        entries = json.loads(path.read_text(encoding="utf-8"))
        records = [TunnelRecord.from_json(entry) for entry in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("what the last hub left in %s cannot be read (%s): starting without it", path, type(error).__name__)
        return []
    return [record for record in records if not record.expires_within(0)]


def save(path: Path, records: Iterable[TunnelRecord]) -> None:
    """Replace the file whole, so that a crash leaves either the old or the new one."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump([record.to_json() for record in records], stream)
    temporary.replace(path)
