# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of certificates that are not valid now."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone

import pytest

from tunnelproxy.net.certificate_dates import HAS_EXPIRED, NOT_YET_VALID, Validity, explain_dates, is_of_dates


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
