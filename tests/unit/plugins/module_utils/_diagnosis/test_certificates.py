# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading certificates without a library, compared with what the library cryptography says of the same ones."""

from __future__ import annotations

import importlib
from datetime import timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from peers.certificate import make_certificate


@pytest.fixture(scope="module")
def module():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.certificates")


def der_of(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(("name", "days"), [("sensor-7", 30), ("Zürich ⚙", 365 * 60), ('"><script>', -400)])
def test_names_and_dates_are_those_that_cryptography_reads(module, tmp_path, name, days):
    der = der_of(make_certificate(tmp_path / "cert.pem", name, days))
    certificate = x509.load_der_x509_certificate(der)
    assert module.read_certificate(der) == {
        "subject": name,
        "issuer": name,
        "not_before": certificate.not_valid_before_utc.astimezone(timezone.utc).timestamp(),
        "not_after": certificate.not_valid_after_utc.astimezone(timezone.utc).timestamp(),
    }


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_the_authorities_of_this_machine_are_read_as_cryptography_reads_them(module):
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if not bundle.exists():
        pytest.skip("needs the package ca-certificates")
    for certificate in x509.load_pem_x509_certificates(bundle.read_bytes()):
        read = module.read_certificate(certificate.public_bytes(Encoding.DER))
        assert read["not_after"] == certificate.not_valid_after_utc.timestamp()
        assert read["not_before"] == certificate.not_valid_before_utc.timestamp()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return der_of(make_certificate(tmp_path_factory.mktemp("der") / "cert.pem", "x", 1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_certificate_is_an_error_and_nothing_worse(module, whole, data):
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for position in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
        if damaged:
            damaged[position] = data.draw(st.integers(0, 255))
    try:
        read = module.read_certificate(bytes(damaged))
    except ValueError:
        return
    assert isinstance(read["not_after"], int)


def test_a_chain_has_a_row_for_each_and_what_is_missing_is_listed(module, tmp_path):
    first, second = (make_certificate(tmp_path / f"{days}.pem", f"c{days}", days) for days in (5, -5))
    chain = tmp_path / "chain.pem"
    chain.write_text(first.read_text() + second.read_text())
    later = make_certificate(tmp_path / "later.pem", "later", 20, starts=10)
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")

    facts = module.certificates([str(chain), str(later), f"{tmp_path}/k*.pem", "/nowhere/*.pem"])
    assert [(row["subject"], round(row["days_left"])) for row in facts["certificates"]] == [
        ("c-5", -5),
        ("c5", 5),
        ("later", 20),
    ]
    assert facts["certificates"][2]["days_until_valid"] == 10
    assert facts["absent"] == ["/nowhere/*.pem"]
    assert facts["skipped"] == [f"{tmp_path}/key.pem contains no PEM certificate"]
