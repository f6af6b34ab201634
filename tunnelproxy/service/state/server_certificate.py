# SPDX-License-Identifier: Apache-2.0
"""Keeps the certificate that the service shows a valid one, for as long as the service runs.

One of the service's own authority is made anew before it expires; files of the operator's are read again when they
change. Connections that are there keep what they have. What the service cannot do itself it says, well before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterator

from ..errors import ServiceError
from .certificates import Certificates, ProvidedCertificate, not_after, now, reload, server_context

__all__ = ["ServerCertificate"]

CHECK_SECONDS = 5.0
"""Seconds between two looks at the files and the clock, which may be set meanwhile; one takes some 20 µs."""

_SAY_AGAIN = dt.timedelta(days=1)
_WARN_BEFORE = dt.timedelta(days=14)
# Every client and device must be given another one.
_WARN_OF_AUTHORITY_BEFORE = dt.timedelta(days=90)
# The service's own is made anew with 30 days left.
_LOOK_AGAIN = dt.timedelta(hours=1)

_log = logging.getLogger(__name__)


class ServerCertificate:
    """The TLS context of all ports, and the certificate in it.

    Args:
        certificate: the operator's own, or the service's.
        name: by what clients reach the service.
        clock: gives the time, with its zone.

    Attributes:
        context: to serve TLS with.

    Raises:
        ServiceError: the certificate is not fit for use, or has expired.
        OSError: the service's own cannot be made.
    """

    def __init__(
        self, certificate: Certificates | ProvidedCertificate, name: str, *, clock: Callable[[], dt.datetime] = now
    ) -> None:
        self.certificate = certificate
        self._name = name
        self._clock = clock
        if isinstance(certificate, Certificates) and name in ("0.0.0.0", "::"):  # noqa: S104  nothing is bound to it
            _log.warning("clients cannot reach a service at %s; give --public-name", name)
        self._ensure()
        self.context = server_context(certificate)
        self._expires = self._read_expiry()
        self._seen = self._look_of_files()
        self._look_again = clock() + _LOOK_AGAIN
        self._said: dict[str, dt.datetime] = {}
        if self._expires["server"] <= clock():
            raise ServiceError(
                f"{self._sentence('server', self._expires['server'])}: put a new one in its place, with its key"
            )

    @property
    def expires(self) -> dict[str, dt.datetime]:
        """When they expire: ``server``, and ``authority`` where it is the service's own."""
        return self._expires

    async def run(self) -> None:
        """Look after the certificate until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(CHECK_SECONDS)

    def check(self) -> None:
        """Renew the certificate if it is time, use files that have changed, and warn of what expires soon."""
        # Of the service's own, the authority: the certificate is made anew while that is valid.
        which = "authority" if "authority" in self._expires else "server"
        has_expired = self._expires[which] <= self._clock()
        if self._look_of_files() != self._seen or (self._clock() >= self._look_again and not has_expired):
            self._renew()
        self._warn(which, self._expires[which])

    def renew(self) -> None:
        """Read the certificate again at once, or make the service's own anew when it is about to expire."""
        self._said.clear()
        self._renew(always=True)

    def _renew(self, *, always: bool = False) -> None:
        try:
            self._ensure()
            look = self._look_of_files()
            if always or look != self._seen:
                reload(self.context, self.certificate)
                self._expires = self._read_expiry()
                _log.info("certificate read again; it expires on %s", f"{self._expires['server']:%Y-%m-%d}")
        except (ServiceError, OSError) as error:
            # The files are tried at each look: they may be half of a pair, or the disk full.
            self._say(logging.ERROR, f"{error}; going on with the certificate from before")
            return
        self._seen = look
        self._look_again = self._clock() + _LOOK_AGAIN

    def _ensure(self) -> None:
        if isinstance(self.certificate, Certificates):
            self.certificate.ensure(self._name)

    def _read_expiry(self) -> dict[str, dt.datetime]:
        found = {"server": not_after(self.certificate.server_chain)}
        if isinstance(self.certificate, Certificates):
            found["authority"] = not_after(self.certificate.authority)
        return found

    def _look_of_files(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(self._looks())

    def _looks(self) -> Iterator[tuple[int, int, int] | None]:
        for path in (self.certificate.server_chain, self.certificate.server_key):
            try:
                found = path.stat()
            except OSError:
                yield None
            else:
                yield found.st_mtime_ns, found.st_size, found.st_ino

    def _warn(self, which: str, ends: dt.datetime) -> None:
        left = ends - self._clock()
        if left > (_WARN_OF_AUTHORITY_BEFORE if which == "authority" else _WARN_BEFORE):
            return
        level = logging.WARNING if left > dt.timedelta() else logging.ERROR
        if which == "authority":
            remedy = (
                "move the directories keys and ca of the state directory away, start the service again, and give "
                "every client and device the new ca.pem"
            )
        else:
            remedy = "replace it; the service reads the new one by itself"
        self._say(level, f"{self._sentence(which, ends)}: {remedy}")

    def _sentence(self, which: str, ends: dt.datetime) -> str:
        certificate = self.certificate
        if which == "authority" and isinstance(certificate, Certificates):
            what = f"the service's certificate authority {certificate.authority}"
        else:
            what = f"the certificate {certificate.server_chain}"
        moment = self._clock()
        if ends <= moment:
            return (
                f"{what} has expired on {ends:%Y-%m-%d} (this machine's clock says {moment:%Y-%m-%d}), so that no "
                "client accepts it"
            )
        return f"{what} expires on {ends:%Y-%m-%d}"

    def _say(self, level: int, sentence: str) -> None:
        """Once a day, not at each look."""
        moment = self._clock()
        if moment - self._said.get(sentence, dt.datetime.min.replace(tzinfo=dt.timezone.utc)) >= _SAY_AGAIN:
            self._said = {text: said for text, said in self._said.items() if moment - said < _SAY_AGAIN}
            self._said[sentence] = moment
            _log.log(level, "%s", sentence)
