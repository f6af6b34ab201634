# SPDX-License-Identifier: Apache-2.0
"""Which MQTT broker brings the notifications, remembered for ``service add-thing``."""

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
    """Where a broker is.

    Attributes:
        encrypted: whether it speaks TLS.
        user: as whom the service joins it.
        ca: the authorities to trust, a file or an OpenSSL hashed directory; empty for the system's.
        embedded: whether the service runs it.
    """

    host: str
    port: int
    encrypted: bool = True
    user: str = ""
    ca: str = ""
    embedded: bool = False

    @property
    def url(self) -> str:
        """As ``--mqtt-broker`` takes it, without the user."""
        return f"{'mqtts' if self.encrypted else 'mqtt'}://{format_host_port(self.host, self.port)}"

    @classmethod
    def parse(cls, url: str, ca: str) -> BrokerAddress:
        """Read ``mqtts://USER@HOST:PORT``.

        Raises:
            ServiceError: it is something else.
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
                "--mqtt-broker: a password in the URL is there for every user to see; give --mqtt-password-file"
            )
        if ca and parts.scheme == "mqtt":
            raise ServiceError("--mqtt-ca has no use with mqtt://, which has no TLS; give mqtts://")
        encrypted = parts.scheme == "mqtts"
        return cls(parts.hostname, port or _PORTS[parts.scheme], encrypted, unquote(parts.username or ""), ca)

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS settings for it; None where it has no TLS.

        Raises:
            ServiceError: there is no authority in the file or directory.
        """
        if not self.encrypted:
            return None
        try:
            return tls_context(self.ca or None)
        except ConfigurationError as error:
            raise ServiceError(f"--mqtt-ca: there is no certificate to be read in {self.ca}") from error

    def write(self, path: Path) -> None:
        """Remember it."""
        replace_file(path, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> BrokerAddress | None:
        """The one that was remembered; None if there was none.

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
