# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of a tunnel, compared with stunnel, ``ssh -L`` and plain ssh: ``make bench``."""

import sys
from pathlib import Path

# The real services, servers and fleets are those that the tests use.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
