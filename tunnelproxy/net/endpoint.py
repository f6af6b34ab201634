# SPDX-License-Identifier: Apache-2.0
"""Where the tunneling service's data plane is, and how TLS verifies certificates: the only client context is here."""

from __future__ import annotations

import os
import re
import ssl
from typing import NamedTuple

from ..errors import ConfigurationError, Objection, refuse
from ..names import REGION, format_host_port, split_host_port
from .reasons import reason

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
    """Make the TLS settings of a client: for a data plane, an HTTP proxy in front of it, or an MQTT broker.

    Args:
        capath: an OpenSSL hashed directory or a PEM file with the CA certificates to trust, instead of the system's.
        verify: whether to verify the server's certificate.
        system_too: whether to trust the system's CA certificates as well as those of ``capath``.
        amiss: what to do if the CA certificates cannot be read; no certificate is trusted then.

    Raises:
        ConfigurationError: they cannot be read, and ``amiss`` is :func:`~..errors.refuse`.
    """
    # Not create_default_context(): from Python 3.13 it rejects a company's CA certificate for details of RFC 5280 that
    # it accepts with ``capath``.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if capath is None or system_too:
        context.load_default_certs()
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
    """Trust the CA certificates of an OpenSSL hashed directory or a PEM file, too.

    Raises:
        ConfigurationError: they cannot be read.
    """
    try:
        if os.path.isdir(capath):
            context.load_verify_locations(capath=capath)
        else:
            context.load_verify_locations(cafile=capath)
    except OSError as error:
        why = "no certificate in it" if isinstance(error, ssl.SSLError) else reason(error)
        raise ConfigurationError(
            f"cannot read certificate authorities from '{capath}' ({why}): give an OpenSSL hashed "
            "directory or a PEM file with -c/--capath"
        ) from error
