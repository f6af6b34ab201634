# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests share, and a check that they stay unit tests: they start no processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tunnelproxy.service.state.certificates import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(folder / "keys", folder / "ca")
    made.ensure("localhost")
    return made


STILL_START_PROCESSES = {
    "hub/aws_errors/test_credentials.py",
    "hub/aws_errors/test_explain.py",
    "plugins/module_utils/_diagnosis/test_reading.py",
    "plugins/plugin_utils/_fleet/test_live_display.py",
    "plugins/plugin_utils/test_ssh_failure.py",
    "plugins/plugin_utils/test_ssh_host_key.py",
}
"""Test files whose processes are still to be moved to tests/integration, by path below tests/unit. Add none."""

_STARTING: tuple[tuple[Any, str], ...] = (
    (subprocess.Popen, "__init__"),
    *((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system")),
)


# Of a module, so that it holds for the fixtures of a module too.
@pytest.fixture(autouse=True, scope="module")
def no_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts a process."""

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        command = arguments[1] if len(arguments) > 1 else "a copy of itself"
        pytest.fail(f"a unit test starts a process, {command}: move it to tests/integration")

    file = request.path.relative_to(Path(__file__).parent).as_posix()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _STARTING if file not in STILL_START_PROCESSES else ():
            patch.setattr(owner, name, refuse)
        yield
