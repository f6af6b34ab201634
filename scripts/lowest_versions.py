# SPDX-License-Identifier: GPL-3.0-or-later
"""Print pip constraints that pin every dependency in pyproject.toml to the lowest version that it allows.

Only direct dependencies are pinned.
"""

import re
import sys
from pathlib import Path

text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
project = text[: text.index("[dependency-groups]")]
lowest = sorted(set(re.findall(r'"([A-Za-z0-9-]+)>=([0-9.]+)', project)) - {("setuptools", "77")})
if not lowest:
    sys.exit("pyproject.toml has no dependency with a lower bound")
for name, version in lowest:
    print(f"{name}=={version}")
