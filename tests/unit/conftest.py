# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests share."""

from __future__ import annotations

import pytest

from tunnelproxy.service.state.certificates import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(folder / "keys", folder / "ca")
    made.ensure("localhost")
    return made
