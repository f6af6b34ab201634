# SPDX-License-Identifier: Apache-2.0
"""One HTTP GET to a device, over a stream of its tunnel: how a device says whether it is well.

Standard library only. :mod:`.client` imports this when it is needed: ``http.client`` takes longer than all the rest.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import client

__all__ = ["Answer", "ask", "check"]

LONGEST_QUOTE = 200

_NEVERTHELESS = "(to go in nevertheless, set iotops_tunnel_health_check to false)"


@dataclass(frozen=True)
class Answer:
    """What the device's HTTP server said.

    Attributes:
        latency_ms: milliseconds until its headers had come.
        content: the beginning of the body.
        quote: the body's first line, fit for an error message; empty where it is HTML.
    """

    status: int
    latency_ms: float
    content: bytes
    quote: str


class _OverStream(http.client.HTTPConnection):
    """A connection that neither a local port, an HTTP proxy nor another user of this machine comes into."""

    def __init__(self, thing: str, service: str, account: str, timeout: float) -> None:
        super().__init__(thing, timeout=timeout)
        self._service = service
        self._account = account

    def connect(self) -> None:
        descriptor = client.open_stream(
            self.host,
            self._service,
            account=self._account,
            speaks_first=False,
            timeout=self.timeout or client.OPEN_SECONDS,
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
    """Ask a thing's HTTP server. A redirect is an answer like any other.

    Args:
        account: the thing's, as a row of ``hub status`` has it.
        content_limit: how many bytes of the body to wait for; 0 takes what has come.
        timeout: seconds to wait for the tunnel, and then for each part of the answer.

    Raises:
        HubError: there was no answer, or none in HTTP; the text says why.
    """
    connection = _OverStream(thing, service, account, timeout)
    started = time.monotonic()
    try:
        connection.request("GET", path, headers={"Host": thing, "User-Agent": "iotops.tunnel", **headers})
        response = connection.getresponse()
        latency_ms = round((time.monotonic() - started) * 1000, 1)
        content = response.read(content_limit) if content_limit else response.read1(4 * LONGEST_QUOTE)
        return Answer(response.status, latency_ms, content, _quote(response, content))
    except socket.timeout:
        raise client.HubError(
            f"{thing} took the connection to {service} but did not answer {path} within {timeout:.0f} s: see how busy "
            "its HTTP server is, or raise the time-out",
            code="no-answer",
        ) from None
    except ConnectionError:
        raise client.explain(thing, service, refused=True, account=account) from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise client.HubError(
            f"{thing} answered {service} with something that is not HTTP ({error}): see what it maps {service} to",
            code="not-http",
        ) from None
    finally:
        connection.close()


def check(thing: str, health_check: client.HealthCheck, *, account: str, timeout: float) -> None:
    """Raise HubError, with what the device answered, if it is not well."""
    service, path = health_check.service, health_check.path
    try:
        answer = ask(thing, service, path, account=account, timeout=timeout)
    except client.HubError as error:
        sentence = f"the health check of {thing} got no answer: {error} {_NEVERTHELESS}"
        raise client.HubError(sentence, code="unhealthy") from None
    if answer.status not in health_check.statuses:
        said = f": {answer.quote}" if answer.quote else ""
        sentence = f"{thing} is not well: {service} answers {path} with status {answer.status}{said} {_NEVERTHELESS}"
        raise client.HubError(sentence, code="unhealthy")


def _quote(response: http.client.HTTPResponse, content: bytes) -> str:
    if "html" in (response.getheader("Content-Type") or ""):
        return ""
    lines = content[: 4 * LONGEST_QUOTE].decode("utf-8", "replace").strip().splitlines()
    # It goes to a terminal, which may not obey the device.
    line = "".join(each if each.isprintable() else " " for each in lines[0]).strip() if lines else ""
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"
