# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of libraries that are missing or too old."""

from __future__ import annotations

import re
import sys

import pytest

from peers.process import REPOSITORY
from tunnelproxy.cli.libraries import NEEDED, explain, is_of_library


def test_the_versions_are_those_of_the_project() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    project = text[: text.index("[dependency-groups]")]
    for package, version in NEEDED.items():
        assert set(re.findall(rf'"{package}>=([^";]+)', project)) == {version}


def test_what_is_missing_is_named_with_the_extra_that_brings_it() -> None:
    error = ModuleNotFoundError("No module named 'nothing'", name="nothing.at.all")
    said = explain(error, "the agent", "agent")
    assert said == (
        "the Python package nothing is missing, which the agent needs; install it with: pip install "
        "'iot-tunnelproxy[agent]'"
    )


@pytest.mark.parametrize(
    ("module", "package"),
    [("google.protobuf.message", "protobuf"), ("paho.mqtt.enums", "paho-mqtt"), ("websockets.client", "websockets")],
)
def test_what_is_new_enough_and_broken_is_told_with_what_python_says(module: str, package: str) -> None:
    said = explain(ImportError("cannot open shared object file", name=module), "the hub")
    assert re.match(rf"the Python package {package} [0-9.]+ cannot be used \(cannot open shared object file\)", said)
    assert said.endswith(f"{sys.executable} -m pip install --force-reinstall '{package}'")


def test_an_error_of_the_program_itself_is_none_of_a_library() -> None:
    assert not is_of_library(ImportError("cannot import name 'x'", name="tunnelproxy.hub"))
    assert is_of_library(ImportError("cannot import name 'x'", name="websockets.client"))
