# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of certificates that are not valid now."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest

from peers.certificate import make_server_certificate
from tunnelproxy.net.certificate_dates import (
    HAS_EXPIRED,
    NOT_YET_VALID,
    Validity,
    explain_dates,
    is_of_dates,
    read_validity,
)


def seconds(*date: int) -> float:
    return datetime(*date, tzinfo=timezone.utc).timestamp()  # type: ignore[misc, arg-type]


def refused(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    return error


DATES = Validity(seconds(2026, 11, 1), seconds(2027, 11, 1))


@pytest.mark.parametrize(
    ("code", "validity", "now", "words"),
    [
        (
            NOT_YET_VALID,
            DATES,
            0.0,
            "is not valid yet: it is valid from 2026-11-01 00:00 UTC, and this machine's clock says 1970-01-01 00:00 "
            "UTC: set the clock (NTP) if it is wrong",
        ),
        (
            HAS_EXPIRED,
            DATES,
            seconds(2038, 1, 19, 3, 14),
            "has expired: it was valid until 2027-11-01 00:00 UTC, and this machine's clock says 2038-01-19 03:14 UTC: "
            "renew the certificate, or set the clock (NTP) if it is wrong",
        ),
        # The dates of one of its authorities are meant.
        (
            HAS_EXPIRED,
            DATES,
            seconds(2027, 1, 1),
            "has expired: this machine's clock says 2027-01-01 00:00 UTC: renew the certificate, or set the clock "
            "(NTP) if it is wrong",
        ),
        (
            NOT_YET_VALID,
            None,
            0.0,
            "is not valid yet: this machine's clock says 1970-01-01 00:00 UTC: set the clock (NTP) if it is wrong",
        ),
    ],
)
def test_the_dates_stand_beside_what_the_clock_says(
    code: int, validity: Validity | None, now: float, words: str
) -> None:
    assert explain_dates(code, validity, now) == words


def test_other_faults_of_a_certificate_are_not_of_its_dates() -> None:
    assert is_of_dates(refused(HAS_EXPIRED))
    assert not is_of_dates(refused(18))


@contextmanager
def server(certificate: Path) -> Iterator[socket.socket]:
    """A TLS server in a thread, for one connection; gives that connection, before its handshake."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with suppress(OSError), accepted, tls.wrap_socket(accepted, server_side=True) as connection:
                connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield socket.create_connection(listener.getsockname())
        thread.join()


def test_the_dates_of_an_expired_certificate_are_read(tmp_path: Path) -> None:
    file = make_server_certificate(tmp_path / "server.pem", -3, -1)
    with server(file) as connection:
        found = read_validity(connection, "127.0.0.1", ssl.create_default_context(cafile=str(file)))
    assert found is not None
    assert round(found.ends - found.starts) == 2 * 86400
    assert found.ends < time.time()


def test_the_dates_of_a_certificate_that_is_rejected_for_more_are_not_read(tmp_path: Path) -> None:
    file = make_server_certificate(tmp_path / "server.pem", -3, -1)
    with server(file) as connection:
        assert read_validity(connection, "another.name", ssl.create_default_context(cafile=str(file))) is None
