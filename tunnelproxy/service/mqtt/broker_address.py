# SPDX-License-Identifier: Apache-2.0
"""The address of the MQTT broker; saved in the state directory for ``service add-thing``."""

from __future__ import annotations

import json
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError
from ...files import replace_file
from ...names import format_host_port
from ...net.endpoint import tls_context
from ..errors import ServiceError

__all__ = ["BrokerAddress"]

_PORTS = {"mqtts": 8883, "mqtt": 1883}


@dataclass(frozen=True)
class BrokerAddress:
    """The address of a broker, and how the service connects to it.

    Attributes:
        encrypted: whether it uses TLS.
        user: the service's user name there; empty for none.
        ca: the certificate authorities, a file or an OpenSSL hashed directory; empty for the system's.
        embedded: whether the service runs the broker.
    """

    host: str
    port: int
    encrypted: bool = True
    user: str = ""
    ca: str = ""
    embedded: bool = False

    @property
    def url(self) -> str:
        """The URL for ``--mqtt-broker``, without the user."""
        return f"{'mqtts' if self.encrypted else 'mqtt'}://{format_host_port(self.host, self.port)}"

    @classmethod
    def parse(cls, url: str, ca: str) -> BrokerAddress:
        """Parse ``mqtts://USER@HOST:PORT``.

        Raises:
            ServiceError: the URL does not have this form.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/"):
            raise ServiceError(f"--mqtt-broker: '{_without_password(url)}' is not like mqtts://USER@HOST:8883")
        if parts.password is not None:
            raise ServiceError(
                "--mqtt-broker: a password in the URL is visible to every user; use --mqtt-password-file"
            )
        if ca and parts.scheme == "mqtt":
            raise ServiceError("--mqtt-ca has no effect with mqtt://, which does not use TLS; use mqtts://")
        encrypted = parts.scheme == "mqtts"
        return cls(parts.hostname, port or _PORTS[parts.scheme], encrypted, unquote(parts.username or ""), ca)

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for connections to the broker; None if it does not use TLS.

        Raises:
            ServiceError: there are no certificate authorities in the file or directory.
        """
        if not self.encrypted:
            return None
        try:
            return tls_context(self.ca or None)
        except ConfigurationError as error:
            raise ServiceError(f"--mqtt-ca: cannot read a certificate from {self.ca}") from error

    def write(self, path: Path) -> None:
        """Write it to a file."""
        replace_file(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> BrokerAddress | None:
        """Read the address from a file; None if there is no file.

        Raises:
            ServiceError: the file is damaged.
        """
        try:
            return cls(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ServiceError(f"{path} is damaged; remove it, and start the service again") from error


def _without_password(url: str) -> str:
    return url.rpartition("@")[2] if "@" in url else url
