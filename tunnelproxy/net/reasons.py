# SPDX-License-Identifier: Apache-2.0
"""Why a connection failed, in words for the operator. No error is without words, even if Python gives it none."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl

__all__ = ["handshake_reason", "reason"]

_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's errors for an answer that is not TLS."""

_NUMBER = re.compile(r"\[Errno (\d+)\]")


def reason(error: BaseException) -> str:
    """Why a host could not be reached, or a connection broke; never empty."""
    if isinstance(error, ssl.SSLError):
        return handshake_reason(error)
    return _of_known(error) or _of_system(error) or str(error) or f"it failed without a reason ({type(error).__name__})"


def handshake_reason(error: BaseException) -> str:
    """Why a TLS handshake failed; never empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified ({error.verify_message.rstrip('.')})"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, EOFError, ConnectionError)):
        return (
            "the other end closed the connection during the TLS handshake: check that this port is a TLS port, and "
            "that no firewall on the way blocks TLS"
        )
    if isinstance(error, ssl.SSLError):
        said = getattr(error, "reason", None) or error.strerror or type(error).__name__
        no_tls = f"what listens there does not speak TLS ({said}): check the port"
        return no_tls if said in _NO_TLS else f"the TLS handshake failed ({said})"
    return reason(error)


def _of_known(error: BaseException) -> str:
    """The words for an error for which the system has poor words or none; else empty."""
    if isinstance(error, socket.gaierror):
        return _of_name(error)
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, EOFError) or (isinstance(error, ConnectionError) and not str(error)):
        return "the other end closed the connection"
    silent = isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not str(error)
    return "no answer in time" if silent else ""


def _of_name(error: socket.gaierror) -> str:
    """The words for a name that could not be looked up. Without a network, the name may still be right."""
    if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL):
        return f"the host name cannot be looked up ({error.strerror}): check the network, and the DNS server"
    if error.errno in (socket.EAI_SYSTEM, socket.EAI_MEMORY):
        return f"the host name cannot be looked up ({error.strerror})"
    return "the host name is not known"


def _of_system(error: BaseException) -> str:
    """The system's words for an error, or for the different errors of several addresses; else empty."""
    if not isinstance(error, OSError):
        return ""
    # Not the text of the error: event loops add the address to it.
    numbers = [error.errno] if error.errno in errno.errorcode else map(int, _NUMBER.findall(str(error)))
    return "; ".join(dict.fromkeys(os.strerror(number) for number in numbers if number is not None))
