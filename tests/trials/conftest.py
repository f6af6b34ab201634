# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that last for minutes, or need thousands of sockets: only ``make test-faults`` runs these tests."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TEST_FAULTS") == "1" else ["test_*.py"]
