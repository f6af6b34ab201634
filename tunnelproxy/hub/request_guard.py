# SPDX-License-Identifier: Apache-2.0
"""Decides which requests may reach a device's web server through its port on the loopback.

That port is for browsers, and any web page can make a browser send requests to it: with a form, with an image, or by
resolving its own host name to 127.0.0.1 (DNS rebinding). Cookies depend only on the host name, not on the port, so each
device has its own name below ``.localhost``, which browsers resolve to the loopback (RFC 6761, section 6.3). A guard
checks the head of each request of one connection, without I/O:

- With the device's own name as host, it accepts requests of the device's own pages, and a user's navigation (a GET).
- With ``127.0.0.1`` or ``localhost``, it accepts programs other than browsers. A page that rebinds a name sends that
  name as host.
- It answers everything else itself and closes the connection. Nothing of it reaches the device.

Only host names count, not ports, so the port may be forwarded to another one (``ssh -L``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import h11

from ..protocol.framing import Bytes

__all__ = ["HEAD_LIMIT", "DevicePage", "RequestGuard"]

log = logging.getLogger(__name__)

HEAD_LIMIT = 64 * 1024
"""The largest head of a request, in bytes."""

_PIECE = 16 * 1024
"""Bytes passed to h11 at a time, as it copies what follows a request: 100 MB in chunks take 60 ms; in 4 kB, 170 ms."""

_TLS_HANDSHAKE = 0x16
_VERSIONS = (b"1.0", b"1.1")
_LONGEST_QUOTE = 80
_LOOPBACK = frozenset(("127.0.0.1", "localhost", "[::1]", ""))
"""Hosts that programs send; HTTP/1.0 needs none."""

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+?)\.?(?::(?P<port>[0-9]{1,5}))?\Z")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


@dataclass(frozen=True)
class DevicePage:
    """The web server that a port leads to.

    Attributes:
        thing: the device.
        service: the service ID, such as ``HTTP1``.
        host: the device's name for browsers.
        port: on the loopback.
    """

    thing: str
    service: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The address to open in a browser, with a trailing slash."""
        scheme = "https" if self.service.upper().startswith("HTTPS") else "http"
        return f"{scheme}://{self.host}:{self.port}/"


class RequestGuard:
    """Decides which of the client's bytes are forwarded to the device, for one connection.

    TLS passes: its content is encrypted, and an attacker who rebinds a name has no certificate for the device's name.
    Data after a request to upgrade (WebSocket) passes, too.

    Args:
        page: the web server that the connection leads to.
    """

    def __init__(self, page: DevicePage) -> None:
        self.answer: bytes | None = None
        """The response in place of the device's, after a request was refused: nothing more is forwarded."""
        self.refusal = ""
        """The reason, for the log."""
        self._page = page
        self._begun = False
        self._passes_all = False
        self._head = bytearray()
        self._parser: h11.Connection | None = None
        self._chunks: h11.Connection | None = None
        """Finds the end of a chunked body while one is being received."""
        self._left = 0
        """Remaining bytes of the body, if its length is known."""

    def receive(self, data: Bytes) -> Bytes:
        """Take data from the client, and return the data to forward to the device.

        Args:
            data: not empty. An incomplete head is kept until the rest arrives; nothing is modified.
        """
        if self.answer is not None:
            return b""
        if not self._begun:
            self._begun = True
            self._passes_all = data[0] == _TLS_HANDSHAKE
        if self._passes_all:
            return data
        if len(data) <= self._left:
            # The body of an upload is not copied.
            self._left -= len(data)
            return data
        passed: list[Bytes] = []
        rest = memoryview(data)
        while rest and self.answer is None:
            rest = self._take(rest, passed)
        return b"".join(passed)

    def _take(self, data: memoryview, passed: list[Bytes]) -> memoryview:
        """Take the next part of the data, append what to forward to ``passed``, and return the rest."""
        if self._passes_all:
            passed.append(data)
            return data[:0]
        if self._left:
            size = min(self._left, len(data))
            self._left -= size
            passed.append(data[:size])
            return data[size:]
        piece = bytes(data[:_PIECE])
        unused = self._take_head(piece, passed) if self._chunks is None else self._take_chunks(piece, passed)
        return data[len(piece) - unused :]

    def _take_head(self, piece: bytes, passed: list[Bytes]) -> int:
        """Take bytes of a head, and return how many follow it."""
        if self._parser is None:
            self._parser = _new_parser()
        self._head += piece
        self._parser.receive_data(piece)
        try:
            request = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            self._refuse_malformed(str(error))
            return 0
        unused = len(self._parser.trailing_data[0]) if isinstance(request, h11.Request) else 0
        head = bytes(self._head[: len(self._head) - unused])
        if len(head) > HEAD_LIMIT:
            self._refuse(431, "Request Header Fields Too Large", f"its head is longer than {HEAD_LIMIT} bytes")
        elif isinstance(request, h11.Request):
            self._parser, self._head = None, bytearray()
            self._decide(_RequestHead.of(request))
            if self.answer is None:
                passed.append(head)
                self._expect_body(dict(request.headers))
        return unused

    def _take_chunks(self, piece: bytes, passed: list[Bytes]) -> int:
        """Take bytes of a chunked body, and return how many follow it."""
        assert self._chunks is not None  # noqa: S101 - for mypy
        self._chunks.receive_data(piece)
        unused = 0
        try:
            while (event := self._chunks.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.EndOfMessage):
                    unused = len(self._chunks.trailing_data[0])
                    self._chunks = None
                    break
        except h11.RemoteProtocolError as error:
            self._refuse_malformed(str(error))
            return 0
        passed.append(piece[: len(piece) - unused])
        return unused

    def _expect_body(self, headers: Mapping[bytes, bytes]) -> None:
        """Find out where the next request begins. h11 has checked that these headers are well-formed."""
        if b"upgrade" in headers:
            self._passes_all = True
        elif b"transfer-encoding" in headers:
            # After a head, h11 is given the buffered part of the body again: it has no other interface.
            self._chunks = _new_parser()
            self._chunks.receive_data(b"POST / HTTP/1.1\r\nHost: any\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._chunks.next_event()
        else:
            self._left = int(headers.get(b"content-length", b"0"))

    def _decide(self, head: _RequestHead) -> None:
        """Refuse a request that its head does not permit."""
        if head.version not in _VERSIONS:
            self._refuse_malformed(f"HTTP/{head.version.decode()}")
        elif head.has_two_lengths:
            self._refuse_malformed("both Content-Length and Transfer-Encoding")
        elif head.names == {self._page.host}:
            other = head.other_page()
            if other:
                self._refuse(403, "Forbidden", f"it comes from {other}", head.method)
        elif head.names <= _LOOPBACK and not head.by_browser:
            pass
        elif head.names <= _LOOPBACK and head.navigates and head.target.startswith("/"):
            self._redirect(head)
        else:
            is_loopback = head.names <= _LOOPBACK
            why = "it has headers that browsers send" if is_loopback else "any web page could use that name"
            words = f"its host is {_quoted(head.host)}, and {why}"
            self._refuse(421, "Misdirected Request", words, head.method)

    def _refuse_malformed(self, words: str) -> None:
        self._refuse(400, "Bad Request", f"it is not an HTTP/1.1 request ({_quoted(words)})")

    def _refuse(self, status: int, reason: str, why: str, method: str = "") -> None:
        page = self._page
        text = (
            f"This request was not forwarded to {page.thing}: {why}.\n\n"
            f"In a browser, open {page.url}\n"
            f"Other programs can also use 127.0.0.1, if they send no Cookie, Origin or Sec-Fetch-* header.\n\n"
            f"iotops_tunnel_ports={page.service}={page.port},any-host turns this check off: then any web page that you "
            "open can send requests to the device.\n"
        )
        self._end(f"{status} {reason}", {"Content-Type": "text/plain; charset=utf-8"}, text, method)
        about = {"thing": page.thing, "service": page.service}
        log.info("%s of %s: refused a request: %s", page.service, page.thing, why, extra=about)

    def _redirect(self, head: _RequestHead) -> None:
        port = head.host.rpartition(":")[2]
        location = f"http://{self._page.host}{f':{port}' if port.isdigit() else ''}{head.target}"
        self._end("307 Temporary Redirect", {"Location": location}, "", head.method)

    def _end(self, status: str, headers: Mapping[str, str], text: str, method: str) -> None:
        body = text.encode()
        lines = [
            f"HTTP/1.1 {status}",
            *(f"{name}: {value}" for name, value in headers.items()),
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        self.answer = "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body)


@dataclass(frozen=True)
class _RequestHead:
    """The head of a request.

    Attributes:
        host: the header, in lower case.
        names: all host names in it, without ports; an empty name if there is none.
        site: the relation to the page that caused the request, according to the browser (Fetch Metadata).
        by_browser: whether it has a header that only browsers add automatically.
    """

    method: str
    target: str
    version: bytes
    host: str
    names: frozenset[str]
    origin: str | None
    site: str
    mode: str
    destination: str
    by_browser: bool
    has_two_lengths: bool

    @classmethod
    def of(cls, request: h11.Request) -> _RequestHead:
        headers = {name: value.decode("latin-1").lower() for name, value in request.headers}
        target, host = request.target.decode("latin-1"), headers.get(b"host", "")
        absolute = _ABSOLUTE.match(target)
        named = [absolute[1].lower()] if absolute else [target.lower()] if request.method == b"CONNECT" else []
        return cls(
            method=request.method.decode("latin-1"),
            target=target,
            version=request.http_version,
            host=host,
            names=frozenset(map(_name, [host, *named])),
            origin=headers.get(b"origin"),
            site=headers.get(b"sec-fetch-site", ""),
            mode=headers.get(b"sec-fetch-mode", ""),
            destination=headers.get(b"sec-fetch-dest", ""),
            by_browser=any(name in (b"cookie", b"origin") or name.startswith(b"sec-fetch-") for name in headers),
            has_two_lengths=b"content-length" in headers and b"transfer-encoding" in headers,
        )

    @property
    def navigates(self) -> bool:
        """Whether a user opens the page by its address, a bookmark, or a link."""
        shown = self.destination in ("document", "")  # and not within another page
        return self.method in ("GET", "HEAD") and self.mode == "navigate" and shown

    def other_page(self) -> str:
        """The web page that made a browser send the request; empty if it was the device's own, or none."""
        if self.site in ("cross-site", "same-site") and not self.navigates:
            return f"another web page, {_quoted(self.origin)}" if self.origin else "another web page"
        if self.origin is None or self.origin == f"http://{self.host}":
            return ""
        # A page may hide its origin even from its own server (Referrer-Policy: no-referrer).
        if self.origin == "null" and self.site == "same-origin":
            return ""
        return f"another web page, {_quoted(self.origin)}"


def _new_parser() -> h11.Connection:
    # The guard checks the size itself: h11 checks only incomplete heads.
    return h11.Connection(h11.SERVER, max_incomplete_event_size=2 * HEAD_LIMIT)


def _name(authority: str) -> str:
    """The host of ``HOST:PORT``; a name that no host has if it is malformed."""
    found = _AUTHORITY.match(authority)
    return found["name"] if found else "?" if authority else ""


def _quoted(text: str) -> str:
    """A client's text, made printable on a terminal."""
    words = "".join(each if each.isascii() and each.isprintable() else "?" for each in text)
    return f"'{words[:_LONGEST_QUOTE]}'"
