# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes scripts/*.py importable."""

from __future__ import annotations

import sys

from peers.process import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
