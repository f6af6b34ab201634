# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines that are drawn again below what else is printed, on a terminal that is emulated."""

from __future__ import annotations

import fcntl
import importlib
import os
import struct
import termios

import pyte
import pytest


@pytest.fixture(scope="module")
def live_display():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.live_display")


class Screen:
    """A pty whose output an emulator shows."""

    def __init__(self, columns: int, rows: int) -> None:
        self.master, self.slave = os.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def print(self, text: str) -> None:
        os.write(self.slave, text.encode())

    def lines(self) -> list[str]:
        os.write(self.slave, b"\0")  # a mark, which shows nothing
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self.master, 65536)
        self._stream.feed(data)
        return [line.rstrip() for line in self._screen.display if line.strip()]


@pytest.fixture
def screen():
    made = Screen(20, 8)
    yield made
    os.close(made.master)
    os.close(made.slave)


@pytest.fixture
def block(live_display, screen):
    return live_display.LiveDisplay(screen.slave, lambda: None)


def test_lines_take_the_place_of_those_before(screen, block):
    screen.print("first\r\n")
    block.draw(["a", "b"])
    assert screen.lines() == ["first", "a", "b"]
    block.draw(["c"])
    assert screen.lines() == ["first", "c"]
    block.draw([])
    assert screen.lines() == ["first"]


def test_what_is_printed_while_suspended_stays_above(screen, block):
    block.draw(["a", "b"])
    with block.suspended(), block.suspended():
        screen.print("said\r\n")
    assert screen.lines() == ["said", "a", "b"]


def test_a_line_that_does_not_fit_is_cut_by_columns(screen, block):
    block.draw(["日本" * 10, "\x1b[31m" + "x" * 40 + "\x1b[0m"])
    wide, coloured = screen.lines()
    # The emulator leaves the second column of a wide character empty.
    assert wide.replace(" ", "") == "日本日本日本日本日…"
    assert coloured == "x" * 18 + "…"


def test_no_more_lines_than_the_terminal_has(screen, block):
    screen.resize(20, 5)
    block.draw([str(number) for number in range(9)])
    assert screen.lines() == ["0", "1", "2"]
    block.draw([])
    assert screen.lines() == []


@pytest.mark.parametrize("size", [(8, 24), (80, 3)])
def test_a_tiny_terminal_gets_none(screen, block, size):
    screen.resize(*size)
    block.draw(["a"])
    assert screen.lines() == []


def test_a_terminal_that_is_gone_spoils_nothing(live_display):
    master, slave = os.openpty()
    block = live_display.LiveDisplay(slave, lambda: None)
    os.close(slave)
    os.close(master)
    block.draw(["a"])
    block.draw(["b"])
