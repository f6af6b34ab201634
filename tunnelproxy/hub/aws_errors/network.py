# SPDX-License-Identifier: Apache-2.0
"""Servers that cannot be reached, are not trusted, or do not answer."""

from __future__ import annotations

import re

from botocore.session import Session

from ...net.certificate_dates import HAS_EXPIRED, NOT_YET_VALID, explain_dates
from .case import Case, Failure, origin
from .configuration import bad_region

__all__ = ["no_answer", "not_reached", "not_trusted", "proxy_not_reached"]


# urllib3 2 says "Failed to resolve"; urllib3 1 quotes getaddrinfo's message, of which only the number is not localized.
_NAME_NOT_KNOWN = re.compile(r"resolve|\[Errno -[2-5]\]")
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OF_DATES = (("certificate has expired", HAS_EXPIRED), ("not yet valid", NOT_YET_VALID))
_CERTIFICATE_FAULTS = (
    ("doesn't match", "the certificate of {service} is for another name: check {setting}"),
    ("mismatch", "the certificate of {service} is for another name: check {setting}"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the certificate of {service} is not trusted here: set AWS_CA_BUNDLE to its authority's certificate",
    ),
)


def not_reached(case: Case) -> Failure:
    """A server cannot be reached, or its name does not resolve."""
    reason = case.words(_reason(case.kwargs.get("error")) or case.error)
    if case.in_credentials:
        return Failure(
            "control-api",
            f"{case.service}, where the profile {case.caller.profile} gets its credentials, cannot be reached "
            f"({reason}): check this machine's network",
        )
    if case.endpoint_setting:
        check = f"check that the service runs there, {case.endpoint_setting}, and this machine's network"
    elif _NAME_NOT_KNOWN.search(str(case.kwargs.get("error"))) and _is_unknown(case.region):
        return bad_region(case)
    else:
        check = "check this machine's network and AWS_REGION"
    return Failure("control-api", f"{case.service} cannot be reached ({reason}): {check}")


def _is_unknown(region: str) -> bool:
    """Whether no region of AWS has this name, as far as botocore knows."""
    session = Session()
    known = {
        name
        for partition in session.get_available_partitions()
        for service in ("iot", "ec2")
        for name in session.get_available_regions(service, partition)
    }
    return bool(region) and region not in known


def proxy_not_reached(case: Case) -> Failure:
    """``ProxyConnectionError``: an HTTP proxy refuses the connection or cannot be reached."""
    error = case.kwargs.get("error")
    proxy = origin(str(case.kwargs.get("proxy_url")))
    scheme = "http" if case.endpoint.startswith("http:") else "https"
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    name = next((name for name in names if case.caller.environment.get(name)), names[0])
    return Failure(
        "control-api",
        f"the HTTP proxy {proxy} does not connect to {case.service} ({case.words(_reason(error) or error)}): "
        f"check {name} and no_proxy",
    )


def not_trusted(case: Case) -> Failure:
    """``SSLError``: the certificate cannot be verified, or the TLS handshake fails."""
    cause = case.kwargs.get("error")
    said, reason = str(cause), case.words(_reason(cause))
    if isinstance(_innermost(cause), _FILE_ERRORS) or "[X509" in said or "PEM" in said:
        return _bad_bundle(case, reason)
    setting = case.endpoint_setting or "AWS_REGION"
    for words, code in _OF_DATES:
        if words in said:
            return Failure("not-trusted", f"the certificate of {case.service} {explain_dates(code, now=case.now)}")
    for words, sentence in _CERTIFICATE_FAULTS:
        if words in said:
            return Failure("not-trusted", sentence.format(service=case.service, setting=setting))
    return Failure(
        "control-api", f"the TLS handshake with {case.service} failed ({reason}): check {setting} and the HTTP proxy"
    )


def no_answer(case: Case) -> Failure:
    """A server accepted the connection, but did not answer as it should."""
    said = case.words(_reason(case.kwargs.get("error")) or case.error)
    check = f"check {case.endpoint_setting}" if case.endpoint_setting else "check this machine's network"
    return Failure("control-api", f"{case.service} did not answer properly ({said}): {check}, or try again later")


def _bad_bundle(case: Case, reason: str) -> Failure:
    environment = case.caller.environment
    bundle = (
        environment.get("AWS_CA_BUNDLE") or case.caller.setting("ca_bundle") or environment.get("REQUESTS_CA_BUNDLE")
    )
    return Failure(
        "bad-input",
        f"the CA bundle {bundle or 'of botocore'} cannot be used ({reason}): set AWS_CA_BUNDLE to a file of PEM "
        "certificates",
    )


def _innermost(error: object) -> object:
    """The error that urllib3's errors wrap."""
    while isinstance(error, BaseException):
        wrapped = [each for each in (*error.args, getattr(error, "reason", None)) if isinstance(each, BaseException)]
        if not wrapped:
            break
        error = wrapped[0]
    return error


def _reason(error: object) -> str:
    """The operating system's message if there is one, else that of the innermost error."""
    inner = _innermost(error)
    seen: list[object] = []
    cause = inner
    while isinstance(cause, BaseException) and cause not in seen:
        if getattr(cause, "strerror", None):
            return str(cause.strerror)  # type: ignore[attr-defined]
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    # "AWSHTTPConnection(host='HOST', port=443): Read timed out."
    return str(inner).rpartition("): ")[2]
