# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate of a service that is never restarted, by a clock that the test moves."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.certificates import Certificates, ProvidedCertificate, not_after, now
from tunnelproxy.service.state.server_certificate import ServerCertificate

DAY = dt.timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.time = now()

    def __call__(self) -> dt.datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(tmp_path: Path, clock: Clock) -> Certificates:
    return Certificates(tmp_path / "keys", tmp_path / "ca", clock)


class Service:
    """What a service does with its certificate."""

    def __init__(self, certificate: Certificates | ProvidedCertificate, clock: Clock) -> None:
        self.identity = ServerCertificate(certificate, "127.0.0.1", clock=clock)

    def look(self) -> None:
        self.identity.check()

    @property
    def served(self) -> bytes:
        return served(self.identity.context)


def served(server: ssl.SSLContext) -> bytes:
    """The certificate that a client is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[int] = set()
    while len(done) < 2:
        for number, side in enumerate((ours, theirs)):
            try:
                side.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    found = ours.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_the_services_own_certificate_is_renewed_before_it_expires(made: Certificates, clock: Clock) -> None:
    service = Service(made, clock)
    before, authority = service.served, made.authority.read_bytes()
    clock.time += 300 * DAY
    service.look()
    assert service.served == before
    clock.time += 70 * DAY
    service.look()
    assert service.served != before
    assert service.identity.expires["server"] > clock.time + 390 * DAY
    assert made.authority.read_bytes() == authority


def test_that_is_tried_again_until_it_can_be_written(
    made: Certificates, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(made, clock)
    before = service.served
    clock.time += 390 * DAY
    # A name that is taken by a folder: as good as a full disk, for this.
    partial = made.keys / "server-key.pem.partial"
    partial.mkdir()
    for _ in range(3):
        service.look()
    assert service.served == before
    assert ["still using the previous" in record.getMessage() for record in caplog.records].count(True) == 1
    partial.rmdir()
    service.look()
    assert service.served != before


def own_of(folder: Path) -> tuple[Certificates, ProvidedCertificate]:
    certificates = Certificates(folder / "keys", folder / "ca")
    folder.mkdir()
    certificates.ensure("127.0.0.1")
    return certificates, ProvidedCertificate(certificates.server_chain, certificates.server_key)


def test_files_of_the_operators_are_read_again_when_they_change(tmp_path: Path, clock: Clock) -> None:
    _, own = own_of(tmp_path / "own")
    renewed, _ = own_of(tmp_path / "renewed")
    service = Service(own, clock)
    before = service.served
    own.server_chain.write_bytes(renewed.server_chain.read_bytes())
    # Half of a pair.
    service.look()
    assert service.served == before
    own.server_key.write_bytes(renewed.server_key.read_bytes())
    service.look()
    assert service.served != before


def test_it_warns_two_weeks_before_once_a_day(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    _, own = own_of(tmp_path / "own")
    service = Service(own, clock)
    clock.time = not_after(own.server_chain) - 15 * DAY
    service.look()
    assert warnings(caplog) == []
    clock.time += 2 * DAY
    for _ in range(5):
        service.look()
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].startswith(f"the certificate {own.server_chain} expires on ")
    clock.time += DAY
    service.look()
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize("which", ["authority", "server"])
def test_an_expired_certificate_is_reported_while_the_service_runs(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    made = Certificates(tmp_path / "keys", tmp_path / "ca", clock)
    made.ensure("127.0.0.1")
    certificate = made if which == "authority" else ProvidedCertificate(made.server_chain, made.server_key)
    service = Service(certificate, clock)
    clock.time = service.identity.expires[which] + DAY
    service.look()
    (said,) = warnings(caplog)
    assert "has expired on" in said
    assert "no client accepts it" in said
    assert "this machine's clock says" in said


def test_a_service_warns_of_its_authority_a_quarter_before(
    made: Certificates, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(made, clock)
    clock.time = not_after(made.authority) - 89 * DAY
    service.look()
    (said,) = warnings(caplog)
    assert "give the new ca.pem to every client and device" in said


def test_no_certificate_outlives_its_authority(made: Certificates, clock: Clock) -> None:
    made.ensure("127.0.0.1")
    ends = not_after(made.authority)
    clock.time = ends - 20 * DAY
    made.ensure("127.0.0.1")
    assert not_after(made.server_chain) == ends
    before = made.server_chain.read_bytes()
    made.ensure("127.0.0.1")
    assert made.server_chain.read_bytes() == before


def an_expired_authority(folder: Path, clock: Clock) -> Certificates:
    made = Certificates(folder / "keys", folder / "ca", clock)
    made.ensure("127.0.0.1")
    clock.time = not_after(made.authority) + DAY
    return made


def an_expired_certificate(folder: Path, clock: Clock) -> ProvidedCertificate:
    _, own = own_of(folder / "own")
    clock.time = not_after(own.server_chain) + DAY
    return own


def an_authority_of_the_future(folder: Path, clock: Clock) -> Certificates:
    made = Certificates(folder / "keys", folder / "ca", clock)
    made.ensure("127.0.0.1")
    clock.time = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    return made


@pytest.mark.parametrize(
    ("unfit", "words"),
    [
        (an_expired_authority, "has expired on .*, start the service again, and give every client and device"),
        (an_expired_certificate, "has expired on .*: replace it, and its key"),
        (an_authority_of_the_future, "clock says 1970-01-01: set the clock"),
    ],
)
def test_with_what_nobody_accepts_no_service_starts(
    tmp_path: Path, clock: Clock, unfit: Callable[[Path, Clock], Certificates | ProvidedCertificate], words: str
) -> None:
    certificate = unfit(tmp_path, clock)
    with pytest.raises(ServiceError, match=words):
        ServerCertificate(certificate, "127.0.0.1", clock=clock)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
