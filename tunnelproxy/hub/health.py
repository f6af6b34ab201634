# SPDX-License-Identifier: Apache-2.0
"""One HTTP GET to a device, over a stream of its tunnel: the device's health check.

Standard library only. :mod:`.client` and the connector import this on demand: ``http.client`` is slow to import.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .location import HubError
from .wire import OPEN_SECONDS, explain, open_stream

__all__ = ["Answer", "ask", "check"]

LONGEST_QUOTE = 200

_OVERRIDE = "(to connect anyway, set iotops_tunnel_health_check to false)"


@dataclass(frozen=True)
class Answer:
    """The response of the device's HTTP server.

    Attributes:
        latency_ms: milliseconds until its headers had arrived.
        content: the beginning of the body.
        quote: the body's first line, printable, for an error message; empty if the body is HTML.
    """

    status: int
    latency_ms: float
    content: bytes
    quote: str


class _StreamConnection(http.client.HTTPConnection):
    """HTTP over a stream of the hub, which uses no local port and no HTTP proxy, and is closed to other users."""

    def __init__(self, thing: str, service: str, account: str, timeout: float) -> None:
        super().__init__(thing, timeout=timeout)
        self._service = service
        self._account = account

    def connect(self) -> None:
        descriptor = open_stream(
            self.host,
            self._service,
            account=self._account,
            speaks_first=False,
            timeout=self.timeout or OPEN_SECONDS,
        )
        self.sock = socket.socket(fileno=descriptor)
        self.sock.settimeout(self.timeout)


def ask(
    thing: str,
    service: str,
    path: str,
    *,
    account: str,
    headers: Mapping[str, str] = MappingProxyType({}),
    content_limit: int = 0,
    timeout: float,
) -> Answer:
    """Send a GET to a thing's HTTP server. Redirects are not followed.

    Args:
        account: the thing's, as in a row of ``hub status``.
        content_limit: how many bytes of the body to wait for; 0 returns those that have arrived.
        timeout: seconds to wait for the tunnel, and then for each part of the answer.

    Raises:
        HubError: there was no response, or it was not HTTP; the text says why.
    """
    connection = _StreamConnection(thing, service, account, timeout)
    started = time.monotonic()
    try:
        connection.request("GET", path, headers={"Host": thing, "User-Agent": "iotops.tunnel", **headers})
        response = connection.getresponse()
        latency_ms = round((time.monotonic() - started) * 1000, 1)
        content = response.read(content_limit) if content_limit else response.read1(4 * LONGEST_QUOTE)
        return Answer(response.status, latency_ms, content, _quote(response, content))
    except socket.timeout:
        raise HubError(
            f"{thing} accepted the connection to {service} but did not answer {path} within {timeout:.0f} s: check how "
            "busy its HTTP server is, or raise the timeout",
            code="no-answer",
        ) from None
    except ConnectionError:
        raise explain(thing, service, refused=True, account=account) from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise HubError(
            f"{thing} answered on {service} with something that is not HTTP ({error}): check what it maps {service} to",
            code="not-http",
        ) from None
    finally:
        connection.close()


def check(thing: str, service: str, path: str, *, statuses: Collection[int], account: str, timeout: float) -> None:
    """Check that a device is healthy.

    Args:
        service: the service ID of its HTTP server.
        path: the path to request.
        statuses: the HTTP statuses of a healthy device.
        account: the thing's, as in a row of ``hub status``.
        timeout: as for :func:`ask`.

    Raises:
        HubError: it is not, or does not answer; the text quotes the device.
    """
    try:
        answer = ask(thing, service, path, account=account, timeout=timeout)
    except HubError as error:
        raise HubError(f"the health check of {thing} got no answer: {error} {_OVERRIDE}", code="unhealthy") from None
    if answer.status not in statuses:
        said = f": {answer.quote}" if answer.quote else ""
        raise HubError(
            f"{thing} is not healthy: {service} answers {path} with status {answer.status}{said} {_OVERRIDE}",
            code="unhealthy",
        )


def _quote(response: http.client.HTTPResponse, content: bytes) -> str:
    if "html" in (response.getheader("Content-Type") or ""):
        return ""
    lines = content[: 4 * LONGEST_QUOTE].decode("utf-8", "replace").strip().splitlines()
    # It is shown on a terminal, which must not interpret the device's control characters.
    line = "".join(each if each.isprintable() else " " for each in lines[0]).strip() if lines else ""
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"
