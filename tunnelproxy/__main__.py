# SPDX-License-Identifier: Apache-2.0
"""``python -m tunnelproxy``, and ``python path/to/tunnelproxy`` if only the collection is installed."""

import os
import sys

if not __package__:
    # Run by path: Python has put this folder first, where its modules would hide others. Its parent belongs there.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tunnelproxy.cli.main import run

if __name__ == "__main__":
    run()
