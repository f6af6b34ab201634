# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether sudo on a device requires a terminal: what is asked, and for how long the answer is remembered."""

from __future__ import annotations

import importlib
import os
import time

import pytest


class Device:
    """Counts what it is asked, and answers with sudo's words."""

    def __init__(self, stderr):
        self.asked = []
        self._stderr = stderr

    def run(self, command):
        self.asked.append(command)
        return self._stderr


def required(folder, device, name="me@gw", user="root"):
    module = importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils._pipelining")
    return module.sudo_requires_tty(str(folder / "cp"), name, "sudo", user, device.run)


@pytest.mark.parametrize(
    ("stderr", "requires"),
    [
        (b"sudo: sorry, you must have a tty to run sudo\n", True),
        (b"", False),
        (b"sudo: a password is required\n", False),
        (b"sh: sudo: not found\n", False),
    ],
)
def test_the_device_is_asked_once_for_each_user(tmp_path, stderr, requires):
    device = Device(stderr)
    assert [required(tmp_path, device) for _ in range(3)] == [requires] * 3
    assert device.asked == ["LC_ALL=C sudo -n -u root true </dev/null"]
    required(tmp_path, device, user="the; worker")
    required(tmp_path, device, name="me@other")
    assert device.asked[1:] == [
        "LC_ALL=C sudo -n -u 'the; worker' true </dev/null",
        "LC_ALL=C sudo -n -u root true </dev/null",
    ]


def test_the_answer_is_forgotten_after_an_hour_and_only_its_owner_can_change_it(tmp_path):
    device = Device(b"")
    required(tmp_path, device)
    (file,) = (tmp_path / "cp").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    before = time.time() - 3601
    os.utime(file, (before, before))
    required(tmp_path, device)
    assert len(device.asked) == 2
