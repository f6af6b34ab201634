# SPDX-License-Identifier: GPL-3.0-or-later
"""Bootstrap pip in an environment without it, from this Python and the package index that pip is configured for.

ansible-test runs such a program as get-pip.py, which it downloads from a server of its own unless the file is in its
cache already; scripts/ansible-sanity puts this one there. The arguments are pip's: requirements and options.
"""

import subprocess
import sys


def main():
    """Install what is asked for, with the pip that comes with this Python."""
    requirements = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
    subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *requirements], check=True)  # noqa: S603  as the caller asks


if __name__ == "__main__":
    main()
