# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m fuzz [options of libFuzzer] FOLDER …``: fuzz until the time is over or something is found.

The first folder receives what is found to reach new code; the seeds are written there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tunnelproxy.protocol"]):
    from .seeds import write_seeds
    from .targets import one_input

folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
if not folders:
    sys.exit("give a folder for the corpus")
write_seeds(Path(folders[0]))
atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
