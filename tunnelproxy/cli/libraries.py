# SPDX-License-Identifier: Apache-2.0
"""The error for a library that is missing or too old; Linux distributions often ship old ones."""

from __future__ import annotations

import re
import sys

__all__ = ["NEEDED", "explain", "is_of_library"]

NEEDED = {
    "aiohappyeyeballs": "2.4",
    "aiohttp": "3.9.5",
    "boto3": "1.34",
    "botocore": "1.34",
    "cryptography": "42",
    "h11": "0.16",
    "paho-mqtt": "2.1",
    "prometheus-client": "0.20",
    "protobuf": "4.25",
    "PyYAML": "6",
    "websockets": "14",
}
"""The oldest supported version of each library, as in pyproject.toml."""

_MODULES = {
    "google": "protobuf",
    "paho": "paho-mqtt",
    "prometheus_client": "prometheus-client",
    "yaml": "PyYAML",
}
"""Packages whose module has a different name."""


def explain(error: ImportError, who: str, extra: str = "") -> str:
    """Why a library cannot be imported, and the command that fixes it.

    Args:
        who: the program or command that needs it.
        extra: the extra of ``iot-tunnelproxy`` that installs it; empty for libraries that every command needs.
    """
    module = error.name or str(error)
    package = _package_of(module)
    found = _version_of(package)
    needed = NEEDED.get(package, "")
    if found and needed and _release(found) < _release(needed):
        return (
            f"the Python package {package} {found} is too old, {who} needs {needed} or newer: "
            f"{sys.executable} -m pip install --upgrade '{package}>={needed}'"
        )
    if isinstance(error, ModuleNotFoundError) and not found:
        extras = f"[{extra}]" if extra else ""
        return (
            f"the Python package {package} is missing, which {who} needs; install it with: "
            f"pip install 'iot-tunnelproxy{extras}'"
        )
    return (
        f"the Python package {package}{found and f' {found}'} cannot be used ({error}): install it again with: "
        f"{sys.executable} -m pip install --force-reinstall '{package}'"
    )


def is_of_library(error: ImportError) -> bool:
    """Whether a library is at fault rather than this program."""
    return _package_of(error.name or "") in NEEDED


def _package_of(module: str) -> str:
    for start, package in _MODULES.items():
        if module == start or module.startswith(f"{start}."):
            return package
    return module.partition(".")[0]


def _version_of(package: str) -> str:
    """The installed version of a package; empty if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
