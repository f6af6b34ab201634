# SPDX-License-Identifier: Apache-2.0
"""Keeps the server certificate valid while the service runs.

A certificate that the service issues itself is renewed before it expires; files of the operator's are reloaded when
they change. Existing connections are not affected. If the operator has to act, the log contains a warning well in
advance.
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
"""Seconds between two checks of the files and of the clock, which can be set at any time. A check takes 20 µs."""

_REPEAT_AFTER = dt.timedelta(days=1)
_WARN_BEFORE = dt.timedelta(days=14)
# Every client and device will need another one.
_WARN_OF_AUTHORITY_BEFORE = dt.timedelta(days=90)
# The service renews its own certificate 30 days before it expires.
_RENEWAL_PERIOD = dt.timedelta(hours=1)

log = logging.getLogger(__name__)


class ServerCertificate:
    """The TLS context of all ports, and the certificate in it.

    Args:
        certificate: the operator's certificate, or those that the service issues.
        name: the name by which clients reach the service.
        clock: returns the time, with its time zone.

    Attributes:
        context: the TLS context.

    Raises:
        ServiceError: the certificate cannot be used, or has expired.
        OSError: a certificate that the service issues cannot be written.
    """

    def __init__(
        self, certificate: Certificates | ProvidedCertificate, name: str, *, clock: Callable[[], dt.datetime] = now
    ) -> None:
        self.certificate = certificate
        self._name = name
        self._clock = clock
        if isinstance(certificate, Certificates) and name in ("0.0.0.0", "::"):  # noqa: S104  nothing is bound to it
            log.warning("clients cannot reach a service at %s; set --public-name", name)
        self._ensure()
        self.context = server_context(certificate)
        self._expires = self._read_expiry()
        self._loaded = self._file_versions()
        self._next_renewal = clock() + _RENEWAL_PERIOD
        self._said: dict[str, dt.datetime] = {}
        if self._expires["server"] <= clock():
            raise ServiceError(f"{self._sentence('server', self._expires['server'])}: replace it, and its key")

    @property
    def expires(self) -> dict[str, dt.datetime]:
        """When the certificates expire: ``server``, and ``authority`` if the service issues its own."""
        return self._expires

    async def run(self) -> None:
        """Check the certificate until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(CHECK_SECONDS)

    def check(self) -> None:
        """Renew the certificate if it is due, load files that have changed, and warn before a certificate expires."""
        # If the service issues its own, warn about the authority: the certificate is renewed as long as that is valid.
        which = "authority" if "authority" in self._expires else "server"
        has_expired = self._expires[which] <= self._clock()
        if self._file_versions() != self._loaded or (self._clock() >= self._next_renewal and not has_expired):
            self._renew()
        self._warn(which, self._expires[which])

    def renew(self) -> None:
        """Reload the certificate now; first renew it if it is about to expire."""
        self._said.clear()
        self._renew(always=True)

    def _renew(self, *, always: bool = False) -> None:
        try:
            self._ensure()
            versions = self._file_versions()
            if always or versions != self._loaded:
                reload(self.context, self.certificate)
                self._expires = self._read_expiry()
                log.info("certificate reloaded; it expires on %s", f"{self._expires['server']:%Y-%m-%d}")
        except (ServiceError, OSError) as error:
            # Retried at each check: the files may be half of a pair, or the disk may be full.
            self._say(logging.ERROR, f"{error}; still using the previous certificate")
            return
        self._loaded = versions
        self._next_renewal = self._clock() + _RENEWAL_PERIOD

    def _ensure(self) -> None:
        if isinstance(self.certificate, Certificates):
            self.certificate.ensure(self._name)

    def _read_expiry(self) -> dict[str, dt.datetime]:
        found = {"server": not_after(self.certificate.server_chain)}
        if isinstance(self.certificate, Certificates):
            found["authority"] = not_after(self.certificate.authority)
        return found

    def _file_versions(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(self._versions())

    def _versions(self) -> Iterator[tuple[int, int, int] | None]:
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
                "move the directories keys and ca out of the state directory, restart the service, and give the new "
                "ca.pem to every client and device"
            )
        else:
            remedy = "replace it; the service loads the new one automatically"
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
        """Log a sentence, but not again within a day."""
        moment = self._clock()
        if moment - self._said.get(sentence, dt.datetime.min.replace(tzinfo=dt.timezone.utc)) >= _REPEAT_AFTER:
            self._said = {text: said for text, said in self._said.items() if moment - said < _REPEAT_AFTER}
            self._said[sentence] = moment
            log.log(level, "%s", sentence)
