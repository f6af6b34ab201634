# SPDX-License-Identifier: Apache-2.0
"""The settings of ``--settings-json`` and ``--export-default-settings``.

Names, nesting and meaning are those of the reference: docs/CONFIGURATION.md and src/ProxySettings.cpp of
aws-samples/aws-iot-securetunneling-localproxy. Values may be strings, as the reference writes them, or plain JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple

from ..errors import ConfigurationError, Objection, refuse
from ..net.endpoint import Endpoint
from ..net.route import PING_SECONDS
from ..proxy.destination import CONNECT_ATTEMPTS, CONNECT_PAUSE_SECONDS
from ..proxy.reconnect import RETRY_FOREVER, RetryPolicy
from ..proxy.tunnel_end import MAX_CONNECTIONS

__all__ = ["ProxySettings", "export_defaults", "read_settings"]

log = logging.getLogger(__name__)

_ROOT = "tunneling.proxy."
_REGIONS = "region_endpoint_overrides"


@dataclass(frozen=True)
class ProxySettings:
    """Fine-grained settings of a proxy.

    Attributes:
        bind_address: where a source listens without ``-b``.
        endpoint_format: the host of a region's data plane, with ``%s`` for the region; None for AWS.
        region_endpoints: the data plane's host for certain regions; overrides the format.
        connect_attempts: how often a destination tries to connect to a service's address; None to retry forever.
        connect_pause: seconds between two of these attempts.
        max_connections: concurrent connections of each service.
        ping_seconds: time between two pings.
        retry_policy: how to retry connecting to the data plane.
    """

    bind_address: str = "localhost"
    endpoint_format: str | None = None
    region_endpoints: Mapping[str, str] = field(default_factory=dict)
    connect_attempts: int | None = CONNECT_ATTEMPTS
    connect_pause: float = CONNECT_PAUSE_SECONDS
    max_connections: int = MAX_CONNECTIONS
    ping_seconds: float = PING_SECONDS
    retry_policy: RetryPolicy = RETRY_FOREVER

    def endpoint_of(self, region: str) -> Endpoint:
        """The data plane of a region."""
        if region in self.region_endpoints:
            return Endpoint.parse(self.region_endpoints[region])
        if self.endpoint_format is not None:
            return Endpoint.parse(self.endpoint_format.replace("%s", region))
        return Endpoint.of_region(region)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _count_or_ever(text: str) -> int | None:
    return None if int(text) == -1 else _count(text)


def _seconds(text: str) -> float:
    return _count(text) / 1000


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _word(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError
    return text


def _host_format(text: str) -> str:
    if text.count("%") != 1 or "%s" not in text:
        raise ValueError
    return text


class _Kind(NamedTuple):
    read: Callable[[str], Any]
    words: str


_COUNT = _Kind(_count, "a whole number from 1")
_COUNT_OR_EVER = _Kind(_count_or_ever, "a whole number from 1, or -1 for no end")
_MILLISECONDS = _Kind(_seconds, "a whole number of milliseconds from 1")
_FLAG = _Kind(_flag, "true or false")
_WORD = _Kind(_word, "the address of a host")
_HOST_FORMAT = _Kind(_host_format, "a host's name with %s for the region, as in data.tunneling.iot.%s.amazonaws.com")

_KINDS = {
    "default_bind_address": _WORD,
    "endpoint_format": _HOST_FORMAT,
    "tcp.connection_retry_count": _COUNT_OR_EVER,
    "tcp.connection_retry_delay_ms": _MILLISECONDS,
    "tcp.max_active_connections": _COUNT,
    "websocket.ping_period_ms": _MILLISECONDS,
    "websocket.retry_delay_ms": _MILLISECONDS,
    "websocket.connect_retry_count": _COUNT_OR_EVER,
    "websocket.reconnect_on_data_error": _FLAG,
}

_WITHOUT_MEANING = frozenset(
    {
        # Sizes that the protocol fixes.
        "message.data_length_size",
        "message.data_frame_max_size",
        "message.max_payload_size",
        "message.max_size",
        # Negotiated; --protocol-version forces one.
        "websocket.subprotocol",
        # Memory is bounded by other means.
        "websocket.max_frame_size",
        "websocket.read_buffer_size",
        "websocket.write_buffer_size",
        "tcp.read_buffer_size",
        "tcp.write_buffer_size",
    }
)


def read_settings(path: Path, amiss: Objection = refuse) -> ProxySettings:
    """Read the file of ``--settings-json``; missing settings keep their defaults.

    Args:
        amiss: what to do about an unknown setting, or an invalid value.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--settings-json: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"--settings-json: {path} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        amiss(f"--settings-json: {path} is not a JSON object", "the defaults are used")
        return ProxySettings()
    found: dict[str, Any] = {}
    regions: dict[str, str] = {}
    ignored = []
    for name, text in _leaves(tree).items():
        key = name[len(_ROOT) :] if name.startswith(_ROOT) else ""
        if key in _WITHOUT_MEANING:
            ignored.append(key)
        elif key not in _KINDS and not key.startswith(f"{_REGIONS}."):
            amiss(
                f"--settings-json: {path}: there is no setting {name}; --export-default-settings writes all that exist",
                "it is ignored",
            )
        else:
            kind = _KINDS.get(key, _WORD)
            try:
                value = kind.read(text)
            except (ValueError, KeyError):
                amiss(f"--settings-json: {path}: {name} is '{text}', but should be {kind.words}", "the default is used")
            else:
                (found if key in _KINDS else regions)[key.removeprefix(f"{_REGIONS}.")] = value
    if ignored:
        log.info("%s: these settings of the reference are ignored: %s", path, ", ".join(ignored))
    return _settings(found, regions)


def _settings(found: Mapping[str, Any], regions: Mapping[str, str]) -> ProxySettings:
    default = ProxySettings()
    return ProxySettings(
        bind_address=found.get("default_bind_address", default.bind_address),
        endpoint_format=found.get("endpoint_format", default.endpoint_format),
        region_endpoints=regions,
        connect_attempts=found.get("tcp.connection_retry_count", default.connect_attempts),
        connect_pause=found.get("tcp.connection_retry_delay_ms", default.connect_pause),
        max_connections=found.get("tcp.max_active_connections", default.max_connections),
        ping_seconds=found.get("websocket.ping_period_ms", default.ping_seconds),
        retry_policy=RetryPolicy(
            first_delay=found.get("websocket.retry_delay_ms", default.retry_policy.first_delay),
            attempts=found.get("websocket.connect_retry_count", default.retry_policy.attempts),
            reconnect=found.get("websocket.reconnect_on_data_error", default.retry_policy.reconnect),
        ),
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values in nested objects, as strings, by their dotted names."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        dotted = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict):
            found.update(_leaves(value, dotted))
        else:
            found[dotted] = value if isinstance(value, str) else json.dumps(value)
    return found


def export_defaults(path: Path) -> None:
    """Write the supported settings, with their defaults, in the format of the reference.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    default = ProxySettings()
    values = {
        "default_bind_address": default.bind_address,
        "endpoint_format": Endpoint.of_region("us-east-1").host.replace("us-east-1", "%s"),
        f"{_REGIONS}.cn-north-1": Endpoint.of_region("cn-north-1").host,
        f"{_REGIONS}.cn-northwest-1": Endpoint.of_region("cn-northwest-1").host,
        "tcp.connection_retry_count": default.connect_attempts or -1,
        "tcp.connection_retry_delay_ms": round(default.connect_pause * 1000),
        "tcp.max_active_connections": default.max_connections,
        "websocket.ping_period_ms": round(default.ping_seconds * 1000),
        "websocket.retry_delay_ms": round(default.retry_policy.first_delay * 1000),
        "websocket.connect_retry_count": default.retry_policy.attempts or -1,
        "websocket.reconnect_on_data_error": str(default.retry_policy.reconnect).lower(),
    }
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = f"{_ROOT}{name}".split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = str(value)
    try:
        path.write_text(json.dumps(tree, indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--export-default-settings: cannot write {path}: {error.strerror}") from error
