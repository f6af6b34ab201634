# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of AWS's errors share."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.aws_failures import Shell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", monkeypatch)
