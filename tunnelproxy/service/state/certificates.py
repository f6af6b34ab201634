# SPDX-License-Identifier: Apache-2.0
"""The service's certificate authority, and the server certificate that it issues.

Both are created on the first start (ECDSA P-256). They have the extensions that RFC 5280 requires, because OpenSSL with
``X509_V_FLAG_X509_STRICT``, the default in Python 3.13, rejects certificates without them.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...files import replace_file
from ..errors import ServiceError
from .subject_hash import subject_hash

__all__ = ["Certificates", "ProvidedCertificate", "not_after", "now", "reload", "server_context"]

_CA_LIFETIME = dt.timedelta(days=3650)
_SERVER_LIFETIME = dt.timedelta(days=397)
_RENEW_BEFORE = dt.timedelta(days=30)
# Clients whose clock is slow by less than this accept a certificate that was just issued.
_CLOCK_TOLERANCE = dt.timedelta(hours=1)


def now() -> dt.datetime:
    """The current time, in UTC."""
    return dt.datetime.now(dt.timezone.utc)


@dataclass(frozen=True)
class ProvidedCertificate:
    """The operator's own server certificate: the chain, server certificate first, and the key, both in PEM."""

    server_chain: Path
    server_key: Path


@dataclass(frozen=True)
class Certificates:
    """The certificates that the service issues itself.

    Attributes:
        keys: the directory with the files that only the service reads.
        ca: the directory for clients: ``ca.pem``, and a copy under the name that OpenSSL looks for.
        clock: returns the time, with its time zone.
    """

    keys: Path
    ca: Path
    clock: Callable[[], dt.datetime] = field(default=now, repr=False, compare=False)

    @property
    def server_chain(self) -> Path:
        """The server certificate, in PEM."""
        return self.keys / "server.pem"

    @property
    def server_key(self) -> Path:
        """The key of the server certificate, in PEM."""
        return self.keys / "server-key.pem"

    @property
    def _ca_key(self) -> Path:
        return self.keys / "ca-key.pem"

    @property
    def authority(self) -> Path:
        """The certificate of the authority, in PEM."""
        return self.ca / "ca.pem"

    def ensure(self, host: str) -> None:
        """Create missing certificates: the authority once, the server's also for a new host, or before it expires.

        Args:
            host: the name or address by which clients reach the service, in addition to the loopback ones.

        Raises:
            ServiceError: a file is damaged, or the authority has expired.
            OSError: a file cannot be written.
        """
        self.keys.mkdir(mode=0o700, exist_ok=True)
        self.ca.mkdir(mode=0o700, exist_ok=True)
        try:
            if not (self._ca_key.exists() and self.authority.exists()):
                self._create_authority()
            self._check_authority()
            if not self._server_certificate_serves(host):
                self._issue_server_certificate(host)
        except (ValueError, x509.ExtensionNotFound) as error:
            raise ServiceError(
                f"a certificate or key in {self.keys} or {self.ca} is damaged; restore it, or remove both directories "
                "to get a new authority, and give its ca.pem to every client"
            ) from error

    def _check_authority(self) -> None:
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        moment = self.clock()
        if authority.not_valid_after_utc <= moment:
            raise ServiceError(
                f"the service's certificate authority {self.authority} has expired on "
                f"{authority.not_valid_after_utc:%Y-%m-%d} (this machine's clock says {moment:%Y-%m-%d}), so that no "
                f"client accepts its certificates: move {self.keys} and {self.ca} away, start the service again, and "
                f"give every client and device the new {self.authority.name}"
            )
        if authority.not_valid_before_utc > moment:
            raise ServiceError(
                f"the service's certificate authority {self.authority} is not valid before "
                f"{authority.not_valid_before_utc:%Y-%m-%d}, and this machine's clock says {moment:%Y-%m-%d}: "
                "set the clock"
            )

    def _create_authority(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # A unique name, so that one directory can contain the authorities of several services.
        name = _name(f"iotops tunneling service CA {secrets.token_hex(4)}")
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), self.clock(), self.clock() + _CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        for old in self.ca.glob("*.0"):
            old.unlink()
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        replace_file(self._ca_key, _key_pem(key))
        replace_file(self.ca / f"{subject_hash(name)}.0", pem)
        replace_file(self.authority, pem)

    def _server_certificate_serves(self, host: str) -> bool:
        if not (self.server_chain.exists() and self.server_key.exists()):
            return False
        certificate = x509.load_pem_x509_certificate(self.server_chain.read_bytes())
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        moment = self.clock()
        lasts = min(moment + _RENEW_BEFORE, authority.not_valid_after_utc)
        return (
            _subject_key(authority).digest
            == certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            and all(name in names for name in _server_names(host))
            and certificate.not_valid_before_utc <= moment
            and certificate.not_valid_after_utc >= lasts
        )

    def _issue_server_certificate(self, host: str) -> None:
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        authority_key = serialization.load_pem_private_key(self._ca_key.read_bytes(), password=None)
        if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            # Not created by this service; ensure() reports it like a damaged one.
            raise ValueError("not an EC key")  # noqa: TRY004
        key = ec.generate_private_key(ec.SECP256R1())
        ends = min(self.clock() + _SERVER_LIFETIME, authority.not_valid_after_utc)
        certificate = (
            _builder(_name("iotops tunneling service"), authority.subject, key.public_key(), self.clock(), ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(_server_names(host)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_subject_key(authority)), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        replace_file(self.server_key, _key_pem(key))
        replace_file(self.server_chain, certificate.public_bytes(serialization.Encoding.PEM))


def not_after(path: Path) -> dt.datetime:
    """When the first certificate in a file expires.

    Raises:
        ServiceError: the file cannot be read, or contains no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise ServiceError(f"cannot use the certificate {path}: {error}") from error


def server_context(certificates: Certificates | ProvidedCertificate) -> ssl.SSLContext:
    """A TLS context with the certificate, for TLS 1.2 and newer.

    Raises:
        ServiceError: a file cannot be read, or the key does not match the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Connections are long-lived or few, so resuming sessions saves nothing; and tickets, which follow the handshake,
    # can race with the first write of clients that read in another thread (websockets.sync on Python 3.11: 6 of 770
    # handshakes hung with tickets, none of 1,800 without).
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificates.server_chain, certificates.server_key, password=_refuse_password)
    except (OSError, ServiceError) as error:
        # OpenSSL names neither file.
        raise ServiceError(
            f"cannot use the certificate {certificates.server_chain} with the key {certificates.server_key}: {error}"
        ) from error
    return context


def reload(context: ssl.SSLContext, certificates: Certificates | ProvidedCertificate) -> None:
    """Load the files into a context again; existing connections are not affected.

    Raises:
        ServiceError: the files cannot be used, and the context keeps its certificate.
    """
    # A context that fails to load is left with half of a pair: try with another one first.
    server_context(certificates)
    context.load_cert_chain(certificates.server_chain, certificates.server_key)


def _refuse_password() -> str:
    # Without this callback, OpenSSL would prompt on the terminal.
    raise ServiceError("the key is encrypted; remove its passphrase")


def _server_names(host: str) -> list[x509.DNSName | x509.IPAddress]:
    names: list[x509.DNSName | x509.IPAddress] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    given: x509.DNSName | x509.IPAddress
    try:
        given = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        given = x509.DNSName(host)
    return names if given in names else [given, *names]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, moment: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _CLOCK_TOLERANCE)
        .not_valid_after(ends)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject_key(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
