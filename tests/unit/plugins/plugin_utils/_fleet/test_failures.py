# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a task failed, in one line."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="module")
def failures():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.failures")


DESERIALIZATION = "Module result deserialization failed: No start of json char found"
"""Of ansible-core 2.19 and later; seen with an interpreter that exits without running the module."""
MODULE_FAILURE = "MODULE FAILURE: No start of json char found\nSee stdout/stderr for the exact error"
ANOTHER = "; if the device's Python does not work, set ansible_python_interpreter to another one"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "no such\n  package"}, "no such package"),
        ({"msg": "Task failed: there is no tunnel"}, "there is no tunnel"),
        ({"msg": "non-zero return code", "rc": 3, "stderr": "one\ntwo\n"}, "exit status 3: two"),
        ({"msg": "non-zero return code", "rc": 3, "stdout": "one\r\n"}, "exit status 3: one"),
        ({"rc": 1, "stderr": "Shared connection to pump-1 closed.\r\n", "stdout": "why\r\n"}, "exit status 1: why"),
        ({"rc": 1}, "exit status 1"),
        (
            {"msg": DESERIALIZATION, "rc": 1, "module_stderr": "Fatal\nNo module named 'x'\n", "module_stdout": ""},
            f"the module ended without a result, with exit status 1 (No module named 'x'){ANOTHER}",
        ),
        (
            {
                "msg": MODULE_FAILURE,
                "rc": 139,
                "module_stderr": "Shared connection to pump closed.\r\n",
                "module_stdout": "Segmentation fault\r\n",
            },
            f"the module ended without a result, with exit status 139 (Segmentation fault){ANOTHER}",
        ),
        (
            {"msg": DESERIALIZATION, "rc": 1, "module_stderr": "", "module_stdout": ""},
            f"the module ended without a result, with exit status 1{ANOTHER}",
        ),
        ({"msg": "Assertion failed", "assertion": "a == b"}, "Assertion failed (a == b)"),
        ({"msg": {"a": 1}}, "{'a': 1}"),
        ({"censored": "hidden", "msg": "secret"}, "the reason is hidden by no_log"),
        ({"_ansible_no_log": True, "msg": "secret"}, "the reason is hidden by no_log"),
        ({}, "it gave no reason"),
        ({"msg": "a\x1b[2J\u202eb\ud800c"}, "a [2J b c"),
    ],
)
def test_a_result_has_a_reason_in_one_harmless_line(failures, result, reason):
    assert failures.reason_of(result) == reason


def test_a_long_reason_is_cut(failures):
    assert len(failures.reason_of({"msg": "x" * 5000})) == failures.LONGEST_REASON


def test_reasons_that_differ_in_names_alone_are_one_group(failures):
    tunnel = "b2de92a3-b8ff-46c0-b0f2-afa28b00cec{}"
    groups = failures.grouped(
        [
            failures.Failure("a", "thing-a", "Ping", f"the device thing-a is away ({tunnel.format(1)})"),
            failures.Failure("b.c", "b.c", "Ping", f"the device b.c is away ({tunnel.format(2)})"),
            failures.Failure("c", "c", "Ping", "the disc of c is full"),
            failures.Failure("d", "d", "Copy", "the disc of d is full"),
        ]
    )
    assert [(group.reason, group.hosts) for group in groups] == [
        ("the device HOST is away (…) (at: Ping)", ("a", "b.c")),
        ("the disc of c is full (at: Ping)", ("c",)),
        ("the disc of d is full (at: Copy)", ("d",)),
    ]
