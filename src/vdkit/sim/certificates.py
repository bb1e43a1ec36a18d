"""Self-signed certificates for the simulated host, like those that hosts make for themselves."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from vdkit.net.tls import server_context
from vdkit.net.trust import sha1_thumbprint, sha256_thumbprint

_KEY_BITS = 2048
#: A day back: the clocks of two machines differ.
_FROM_DAY, _TO_DAY = -1, 3650
#: What a host names in the certificate that it makes at its first start.
_DEFAULT_NAMES = ("localhost", "localhost.localdomain")
_DEFAULT_ADDRESSES = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key (PEM), and the certificate's DER form. ``repr`` shows the thumbprint."""

    pem: str
    key_pem: str
    der: bytes

    @property
    def sha1(self) -> str:
        return sha1_thumbprint(self.der)

    @property
    def sha256(self) -> str:
        return sha256_thumbprint(self.der)

    def __repr__(self) -> str:
        return f"Certificate({self.sha256})"

    def save(self, folder: Path, name: str = "host") -> Path:
        """One PEM file with key and certificate, readable by the owner only; its path."""
        path = folder / f"{name}.pem"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(self.key_pem + self.pem)
        return path


def make_certificate(
    common_name: str = "localhost",
    *,
    names: tuple[str, ...] = _DEFAULT_NAMES,
    addresses: tuple[str, ...] = _DEFAULT_ADDRESSES,
    from_day: int = _FROM_DAY,
    to_day: int = _TO_DAY,
) -> Certificate:
    """A new self-signed RSA certificate (hosts speak ECDHE-RSA), usable as its own CA file.

    It is valid between two days counted from today, which may both be past.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=from_day))
        .not_valid_after(now + datetime.timedelta(days=to_day))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode("ascii"),
        der=certificate.public_bytes(serialization.Encoding.DER),
    )


def context_of(certificate: Certificate) -> ssl.SSLContext:
    """A server context with this certificate. The ssl module loads it from a file, which is gone at once."""
    with tempfile.TemporaryDirectory() as folder:
        return server_context(str(certificate.save(Path(folder))))
