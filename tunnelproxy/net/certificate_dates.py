# SPDX-License-Identifier: Apache-2.0
"""Certificates that are not valid now: the dates of a peer's certificate, compared with this machine's clock.

Many devices have no clock that runs without power: they start in 1970, or at the date of their firmware, until NTP sets
the clock. OpenSSL then reports "certificate is not yet valid", and does not mention the clock.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import NamedTuple

__all__ = ["HAS_EXPIRED", "NOT_YET_VALID", "Validity", "date_text", "explain_dates", "is_of_dates", "read_validity"]

NOT_YET_VALID = 9
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID."""

HAS_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for."""

_SECONDS = 5.0


class Validity(NamedTuple):
    """From when to when a certificate is valid, in seconds since the epoch."""

    starts: float
    ends: float


def is_of_dates(error: ssl.SSLCertVerificationError) -> bool:
    """Whether a certificate was rejected for its dates, which may be the fault of this machine's clock."""
    return error.verify_code in (NOT_YET_VALID, HAS_EXPIRED)


def read_validity(sock: socket.socket, host: str, tls: ssl.SSLContext) -> Validity | None:
    """Repeat the TLS handshake without checking the dates; blocks for up to some seconds.

    Python does not get the certificate of a handshake that OpenSSL has rejected.

    Args:
        sock: a new connection to the peer; it is closed.
        host: the name that the certificate must have.
        tls: the context that rejected the certificate; its CA certificates are trusted here, too.

    Returns:
        the dates of the peer's certificate; None if they cannot be read.
    """
    try:
        with sock:
            sock.settimeout(_SECONDS)
            with _without_dates(tls).wrap_socket(sock, server_hostname=host) as wrapped:
                certificate = wrapped.getpeercert() or {}
        return Validity(
            ssl.cert_time_to_seconds(str(certificate["notBefore"])),
            ssl.cert_time_to_seconds(str(certificate["notAfter"])),
        )
    except (OSError, ValueError, KeyError):
        return None


def _without_dates(tls: ssl.SSLContext) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # CA certificates of a directory are loaded when they are looked up, as in the handshake that failed.
    context.load_verify_locations(cadata=b"".join(tls.get_ca_certs(binary_form=True)))
    context.verify_flags |= _NO_CHECK_TIME
    return context


def explain_dates(code: int, validity: Validity | None = None, now: float | None = None) -> str:
    """What is wrong with the dates of a certificate, and what to do: the end of "the certificate of X …".

    Args:
        code: :data:`NOT_YET_VALID` or :data:`HAS_EXPIRED`.
        validity: the dates of the peer's certificate. If they are fine, those of a CA certificate in its chain are not.
        now: the time of this machine's clock, in seconds since the epoch; None to read it.
    """
    now = time.time() if now is None else now
    clock = f"this machine's clock says {date_text(now)}"
    if code == NOT_YET_VALID:
        dates = f"it is valid from {date_text(validity.starts)}, and " if validity and now < validity.starts else ""
        return f"is not valid yet: {dates}{clock}: set the clock (NTP) if it is wrong"
    dates = f"it was valid until {date_text(validity.ends)}, and " if validity and now > validity.ends else ""
    return f"has expired: {dates}{clock}: renew the certificate, or set the clock (NTP) if it is wrong"


def date_text(seconds: float) -> str:
    """A time in seconds since the epoch, as messages show it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
