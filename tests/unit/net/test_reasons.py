# SPDX-License-Identifier: GPL-3.0-or-later
"""The words for what went wrong with a connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl

import pytest

from tunnelproxy.net.reasons import handshake_reason, reason


def of_openssl(name: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {name}] (_ssl.c:1006)")
    error.reason = name
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the host name is not known"),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            "the host name cannot be looked up (Temporary failure in name resolution): check the network, and the DNS "
            "server",
        ),
        (
            socket.gaierror(socket.EAI_SYSTEM, "Too many open files"),
            "the host name cannot be looked up (Too many open files)",
        ),
        (OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), "connection refused"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed ('192.0.2.1', 22)"), "No route to host"),
        (OSError("a text alone"), "a text alone"),
        (
            OSError("Multiple exceptions: [Errno 101] Connect call failed (…), [Errno 111] Connect call failed (…)"),
            "Network is unreachable; Connection refused",
        ),
        (ConnectionResetError(), "the other end closed the connection"),
        (asyncio.IncompleteReadError(b"", 4), "the other end closed the connection"),
        (asyncio.TimeoutError(), "no answer in time"),
        (TimeoutError(errno.ETIMEDOUT, ""), "Connection timed out"),
        (OSError(), "it failed without a reason (OSError)"),
        (ValueError(), "it failed without a reason (ValueError)"),
    ],
)
def test_the_cause_is_said(error: Exception, words: str) -> None:
    assert reason(error) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionResetError(), "closed the connection during the TLS handshake: check that this port is a TLS port"),
        (ConnectionAbortedError(errno.ECONNABORTED, "x"), "closed the connection during the TLS handshake"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "closed the connection during the TLS handshake"),
        (ssl.SSLZeroReturnError(), "closed the connection during the TLS handshake"),
        (of_openssl("WRONG_VERSION_NUMBER"), "what listens there does not speak TLS (WRONG_VERSION_NUMBER): check"),
        (of_openssl("TLSV1_ALERT_PROTOCOL_VERSION"), "the TLS handshake failed (TLSV1_ALERT_PROTOCOL_VERSION)"),
        (ssl.SSLError(), "the TLS handshake failed (SSLError)"),
        (asyncio.TimeoutError(), "no answer in time"),
    ],
)
def test_the_cause_of_a_failed_handshake_is_said(error: Exception, words: str) -> None:
    assert words in handshake_reason(error)


@pytest.mark.parametrize(
    "kind", [OSError, ConnectionError, ssl.SSLError, ssl.SSLEOFError, TimeoutError, EOFError, RuntimeError, ValueError]
)
@pytest.mark.parametrize("say", [reason, handshake_reason])
def test_no_error_is_without_words(kind: type[Exception], say: object) -> None:
    assert callable(say)
    assert say(kind()).strip()
