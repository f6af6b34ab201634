# SPDX-License-Identifier: Apache-2.0
"""Where the tunneling service's data plane is, and how its certificate is checked."""

from __future__ import annotations

import os
import re
import ssl
from typing import NamedTuple

from ..errors import ConfigurationError, Objection, refuse
from ..names import REGION, format_host_port, split_host_port

__all__ = ["Endpoint", "load_authorities", "tls_context"]

_HOST = re.compile(r"[A-Za-z0-9._-]+\Z|\[[0-9A-Fa-f:.]+\]\Z")


class Endpoint(NamedTuple):
    """Host and port of a data plane."""

    host: str
    port: int = 443

    def __str__(self) -> str:
        return format_host_port(self.host, self.port)

    @classmethod
    def of_region(cls, region: str) -> Endpoint:
        """The endpoint of AWS in a region.

        Source: https://docs.aws.amazon.com/general/latest/gr/iot-core.html, "AWS IoT secure tunneling endpoints".
        """
        if not REGION.match(region):
            raise ConfigurationError(f"'{region}' is not an AWS region: give one like us-east-1 with -r/--region")
        suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return cls(f"data.tunneling.iot.{region}.{suffix}")

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``HOST`` or ``HOST:PORT``; an IPv6 address stands in brackets."""
        host, port = split_host_port(text)
        if not _HOST.match(host) or not (port is None or (port.isdigit() and 0 < int(port) < 65536)):
            raise ConfigurationError(f"'{text}' is not an endpoint: give HOST or HOST:PORT with -e/--proxy-endpoint")
        return cls(host.strip("[]"), int(port) if port else cls._field_defaults["port"])


def tls_context(
    capath: str | None, *, verify: bool = True, system_too: bool = False, amiss: Objection = refuse
) -> ssl.SSLContext:
    """Make the TLS settings for a data plane, or for a web proxy on the way.

    Args:
        capath: an OpenSSL hashed directory or a PEM file with the authorities to trust, instead of the system's.
        verify: whether to check the certificate at all.
        system_too: whether to trust the system's authorities beside those of ``capath``.
        amiss: what to do if the authorities cannot be read; nobody is trusted then.
    """
    trusts_system = capath is None or system_too
    context = ssl.create_default_context() if trusts_system else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if capath is not None:
        try:
            load_authorities(context, capath)
        except ConfigurationError as error:
            amiss(str(error), "they are read again before each attempt to connect" if verify else "none are needed")
    return context


def load_authorities(context: ssl.SSLContext, capath: str) -> None:
    """Have TLS trust the authorities of an OpenSSL hashed directory or a PEM file too.

    Raises:
        ConfigurationError: they cannot be read.
    """
    try:
        if os.path.isdir(capath):
            context.load_verify_locations(capath=capath)
        else:
            context.load_verify_locations(cafile=capath)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"cannot read certificate authorities from '{capath}' ({_reason(error)}): give an OpenSSL hashed "
            "directory or a PEM file with -c/--capath"
        ) from error


def _reason(error: OSError) -> str:
    return "no certificate in it" if isinstance(error, ssl.SSLError) else (error.strerror or "unreadable")
