# SPDX-License-Identifier: Apache-2.0
"""The options of ``tunnelproxy service run`` for a service in production."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..log_file import LogFile
from ..names import REGION
from .parser import seconds

if TYPE_CHECKING:
    from ..service.limits import Limits
    from ..service.state.certificates import ProvidedCertificate

__all__ = ["add_options", "log_file", "settings"]

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
# One read takes up to 256 KiB, and must pass within the time that clients wait for the answer to a ping.
_MIN_BANDWIDTH = 16 * 1024


def add_options(parser: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    """Add the options.

    Args:
        parser: the parser of ``service run``.
        port: parses a port number.
    """
    parser.add_argument(
        "--public-name",
        metavar="NAME",
        help="name or address by which clients reach the service, for its certificate and for service env "
        "(default: that of --host)",
    )
    parser.add_argument(
        "--region",
        type=_region,
        metavar="NAME",
        help="region of a new service, in its ARNs and clients' signatures; fixed at the first start "
        "(default: us-east-1)",
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="your own certificate, with its chain, in PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key of --certificate, in PEM")
    parser.add_argument(
        "--audit-log", type=Path, metavar="FILE", help="the audit log (default: audit.log in the state directory)"
    )
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="where to write the log, instead of to standard error"
    )
    parser.add_argument(
        "--log-size",
        type=_size,
        default=100_000_000,
        metavar="BYTES",
        help="size at which the log file and the audit log are rotated to FILE.1, such as 500K or 1G; 0 for never "
        "(default: 100M)",
    )
    parser.add_argument(
        "--log-files", type=_count, default=5, metavar="N", help="rotated files to keep of each (default: %(default)s)"
    )
    parser.add_argument("--metrics-port", type=port, metavar="N", help="serve metrics for Prometheus on this port")
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="HOST", help="address for --metrics-port (default: %(default)s)"
    )
    limits = parser.add_argument_group("limits", "0 means no limit")
    limits.add_argument(
        "--max-tunnels", type=_count, default=10_000, metavar="N", help="open tunnels (default: %(default)s)"
    )
    limits.add_argument(
        "--max-services", type=_count, default=3, metavar="N", help="services of one tunnel (default: %(default)s)"
    )
    limits.add_argument(
        "--bandwidth-per-tunnel",
        type=_bandwidth,
        default=0,
        metavar="BYTES",
        help="bytes per second, both directions together, such as 800K or 2M (default: no limit; AWS: 800K)",
    )
    limits.add_argument(
        "--connections-per-address",
        type=_count,
        default=5_000,
        metavar="N",
        help="connections of one client address (of IPv6, of one /64) to each port (default: %(default)s)",
    )
    limits.add_argument(
        "--max-half-open",
        type=_count,
        default=256,
        metavar="N",
        help="connections to each port that have not finished their handshake (default: %(default)s)",
    )
    limits.add_argument(
        "--handshake-time",
        type=seconds(0.1, 3600),
        default=10.0,
        metavar="SECONDS",
        help="how long a handshake may take (default: %(default)s)",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the options, as members of ``service.server.ServiceSettings``."""
    return {
        "public_name": arguments.public_name,
        "region": arguments.region,
        "certificate": _certificate(arguments),
        "audit_log": arguments.audit_log,
        "audit_size": arguments.log_size,
        "audit_files": arguments.log_files,
        "metrics_port": arguments.metrics_port,
        "metrics_host": arguments.metrics_host,
        "limits": _limits(arguments),
    }


def log_file(arguments: argparse.Namespace) -> LogFile | None:
    """The log file that the options name; None for standard error."""
    from ..service.errors import ServiceError

    path = arguments.log_file
    if path is None:
        return None
    handler = LogFile(path, size=arguments.log_size, kept=arguments.log_files, report=_report)
    try:
        handler.open()
    except OSError as error:
        raise ServiceError(f"cannot write the log {path}: {error.strerror}; give --log-file another file") from error
    return handler


def _report(_level: int, sentence: str) -> None:
    print(f"tunnelproxy: {sentence}", file=sys.stderr, flush=True)


def _certificate(arguments: argparse.Namespace) -> ProvidedCertificate | None:
    from ..service.errors import ServiceError
    from ..service.state.certificates import ProvidedCertificate

    if (arguments.certificate is None) != (arguments.key is None):
        raise ServiceError("--certificate and --key belong together; give both or neither")
    return None if arguments.certificate is None else ProvidedCertificate(arguments.certificate, arguments.key)


def _limits(arguments: argparse.Namespace) -> Limits:
    from ..service.limits import Limits

    return Limits(
        tunnels=arguments.max_tunnels,
        services=arguments.max_services,
        bandwidth=arguments.bandwidth_per_tunnel,
        connections_per_address=arguments.connections_per_address,
        half_open=arguments.max_half_open,
        handshake_seconds=arguments.handshake_time,
    )


def _region(text: str) -> str:
    if not REGION.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of an AWS region, as in eu-central-1")
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; 0 stands for no limit")
    return int(text)


def _bandwidth(text: str) -> int:
    rate = _bytes(text)
    if rate is None or 0 < rate < _MIN_BANDWIDTH:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes per second, as in 800K, of at least {_MIN_BANDWIDTH}; 0 is no limit"
        )
    return rate


def _size(text: str) -> int:
    size = _bytes(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, as in 100M; 0 is no limit")
    return size


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"([0-9]+)([KMG]?)", text.upper())
    return int(found[1]) * _UNITS[found[2]] if found else None
