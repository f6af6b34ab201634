# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd accepts the unit in ``deploy/``, and rates it as hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from peers.process import REPOSITORY

UNIT = REPOSITORY / "deploy" / "tunnelproxy-service.service"
MOST_EXPOSED = 2.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture(params=[UNIT.name, "tunnelproxy-service@.service"])
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The unit, under each of its names, with a program that exists on every machine."""
    copy = tmp_path / str(request.param)
    copy.write_text(UNIT.read_text().replace("/opt/tunnelproxy/bin/tunnelproxy", "/bin/true"))
    return copy


def test_systemd_accepts_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) < MOST_EXPOSED
