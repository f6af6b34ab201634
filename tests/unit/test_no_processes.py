# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests cannot start processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda: subprocess.run(["true"], check=True), id="subprocess"),
        pytest.param(lambda: asyncio.run(asyncio.create_subprocess_exec("true")), id="asyncio"),  # type: ignore[arg-type]
        pytest.param(lambda: os.system("true"), id="system"),
    ],
)
def test_a_test_that_starts_a_process_fails(start: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test starts a process"):
        start()
