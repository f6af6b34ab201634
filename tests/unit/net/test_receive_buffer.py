# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import threading

import pytest

from tunnelproxy.net import receive_buffer


def test_what_was_read_is_where_it_was_put() -> None:
    receive_buffer.whole()[:5] = b"hello"
    assert bytes(receive_buffer.received(5)) == b"hello"


def test_the_rest_of_an_earlier_read_comes_first() -> None:
    room = receive_buffer.behind(b"earlier ")
    assert len(room) == len(receive_buffer.whole()) - 8
    room[:5] = b"later"
    assert bytes(receive_buffer.received(13)) == b"earlier later"


def test_nothing_is_copied() -> None:
    receive_buffer.whole()[0] = 1
    received = receive_buffer.received(1)
    receive_buffer.whole()[0] = 2
    assert received[0] == 2


def test_threads_that_read_one_after_the_other_share_the_buffer() -> None:
    found: list[bytes] = []

    def read() -> None:
        receive_buffer.whole()[:5] = b"there"
        found.append(bytes(receive_buffer.received(5)))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    receive_buffer.whole()[:5] = b"again"
    assert [*found, bytes(receive_buffer.received(5))] == [b"there", b"again"]


def test_a_thread_that_reads_at_the_same_time_is_an_error() -> None:
    receive_buffer.whole()
    thread = threading.Thread(target=receive_buffer.whole)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="two event loops of one process"):
        receive_buffer.received(1)
