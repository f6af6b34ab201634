# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests share, and a check that they stay unit tests: they start no processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from tunnelproxy.service.state.certificates import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(folder / "keys", folder / "ca")
    made.ensure("localhost")
    return made


_STARTING: tuple[tuple[Any, str], ...] = (
    (subprocess.Popen, "__init__"),
    *((os, name) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system")),
)


# Of a module, so that it holds for the fixtures of a module too.
@pytest.fixture(autouse=True, scope="module")
def no_processes() -> Iterator[None]:
    """Fail a test that starts a process."""

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        command = arguments[1] if len(arguments) > 1 else "a copy of itself"
        pytest.fail(f"a unit test starts a process, {command}: move it to tests/integration")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _STARTING:
            patch.setattr(owner, name, refuse)
        yield
