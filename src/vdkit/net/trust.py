"""Whom we trust: a pinned certificate, or an authority and a host name. Never nobody.

Thumbprints are hashes of the DER form of the leaf certificate, written as upper-case hexadecimal digits with
colons between the bytes, the way hosts and their tickets show them.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from dataclasses import dataclass, field
from typing import Final

from vdkit.errors import TrustError, UsageError

_SHA1_DIGITS = 40
_SHA256_DIGITS = 64
_HEX = frozenset("0123456789ABCDEF")
#: Forward secrecy and AES-GCM first: what hosts speak, and several times the speed of the CBC suites.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!eNULL"
#: For a host that was named as a legacy one: what ESXi 5 and 6.0 offer, SHA-1 signatures and short keys too.
LEGACY_CIPHERS = "ECDHE+AES:DHE+AES:kRSA+AES:kRSA+3DES:!aNULL:!eNULL:@SECLEVEL=0"
#: OpenSSL's option for servers without secure renegotiation; Python names it from 3.12 on.
_OP_LEGACY_SERVER_CONNECT = 0x4
#: In place of a file of authorities: those that this system trusts.
SYSTEM_AUTHORITIES: Final = "system"


def normalise_thumbprint(text: str) -> str:
    """``text`` as upper-case hexadecimal digits with colons: 59 characters for SHA-1, 95 for SHA-256.

    Any case, with or without colons or blanks, an optional ``sha1:`` or ``sha256:`` in front.
    """
    digits = text.strip().upper()
    for prefix in ("SHA1:", "SHA-1:", "SHA256:", "SHA-256:"):
        digits = digits.removeprefix(prefix)
    digits = "".join(c for c in digits if c not in ": \t-")
    if len(digits) not in (_SHA1_DIGITS, _SHA256_DIGITS) or not _HEX.issuperset(digits):
        raise UsageError(
            "a certificate thumbprint must be 40 (SHA-1) or 64 (SHA-256) hexadecimal digits, "
            f"this one has {len(digits)} characters",
            remedy="take it from `vdkit fingerprint HOST`",
        )
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))


def sha1_thumbprint(data: bytes) -> str:
    """SHA-1 of a certificate's DER form. Tickets carry this one; it is only ever compared, never signed."""
    return normalise_thumbprint(hashlib.sha1(data, usedforsecurity=False).hexdigest())


def sha256_thumbprint(data: bytes) -> str:
    return normalise_thumbprint(hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Trust:
    """What a server's leaf certificate must satisfy. Everything that is given must hold.

    ``sha256``, ``sha1``: thumbprints. ``certificate``: a PEM certificate, byte for byte. With one of these
    pins neither names nor dates are looked at. ``ca_file``: PEM file of authorities, or ``system``; the
    certificate must then be issued by one of them for the host's name, and be valid today.

    ``legacy_tls`` lets TLS 1.0 and 1.1 and weak signatures pass, for this host only; never SSLv3.
    ``source`` says in an error where the pin was read ("known_hosts, line 3").
    """

    sha256: str | None = None
    sha1: str | None = None
    ca_file: str | None = None
    certificate: str | None = None
    legacy_tls: bool = False
    source: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not (self.sha256 or self.sha1 or self.ca_file or self.certificate):
            raise UsageError(
                "a server's certificate must be pinned by its thumbprint or checked against a CA file",
                remedy="take the thumbprint from `vdkit fingerprint HOST`, compare it on the host's console",
            )
        for name, digits in (("sha256", _SHA256_DIGITS), ("sha1", _SHA1_DIGITS)):
            value = getattr(self, name)
            if not value:
                continue
            normal = normalise_thumbprint(value)
            if len(normal.replace(":", "")) != digits:
                raise UsageError(f"an {name} thumbprint must have {digits} hexadecimal digits")
            object.__setattr__(self, name, normal)
        if self.certificate:
            pem_to_der(self.certificate)

    @classmethod
    def of_thumbprint(cls, text: str, *, source: str | None = None) -> Trust:
        """A pin by SHA-1 or SHA-256, told apart by the length."""
        normal = normalise_thumbprint(text)
        if len(normal.replace(":", "")) == _SHA1_DIGITS:
            return cls(sha1=normal, source=source)
        return cls(sha256=normal, source=source)

    @property
    def pinned(self) -> bool:
        """True if a thumbprint or a certificate is given, so that :meth:`check` has something to compare."""
        return bool(self.sha256 or self.sha1 or self.certificate)

    def context(self) -> ssl.SSLContext:
        """A client context, TLS 1.2 or later unless legacy. After the handshake :meth:`check` MUST be
        called.
        """
        context = client_context(legacy=self.legacy_tls)
        if not self.ca_file:
            return context
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
        if self.ca_file == SYSTEM_AUTHORITIES:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            return context
        try:
            context.load_verify_locations(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{self.ca_file}: cannot be read as a PEM file of authorities: {error}"
            ) from error
        return context

    def check(self, leaf: bytes | None, where: str) -> None:
        """Compare the leaf certificate (DER) that ``where`` presented with the pins; raises TrustError."""
        if not leaf:
            raise TrustError(f"{where}: the server presented no certificate")
        if self.sha256:
            _compare("SHA-256", self.sha256, sha256_thumbprint(leaf), where, self.source)
        if self.sha1:
            _compare("SHA-1", self.sha1, sha1_thumbprint(leaf), where, self.source)
        if self.certificate and not hmac.compare_digest(pem_to_der(self.certificate), leaf):
            expected = sha256_thumbprint(pem_to_der(self.certificate))
            _compare("SHA-256", expected, sha256_thumbprint(leaf), where, self.source)


def client_context(*, legacy: bool = False) -> ssl.SSLContext:
    """A context that verifies nothing yet: only for handshakes whose leaf is compared right after them.

    ``legacy``: TLS 1.0 and 1.1 too, with the ciphers and signatures of their time, as far as this OpenSSL
    still has them. SSLv3 never.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if not legacy:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        return context
    context.set_ciphers(f"{CIPHERS}:{LEGACY_CIPHERS}")
    # The lowest that OpenSSL has; a context of Python's refuses SSLv3 from the start, and goes on doing so.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    if not context.options & ssl.OP_NO_SSLv3:
        raise UsageError("this Python lets SSLv3 pass, so that a legacy host cannot be talked to safely")
    context.options |= _OP_LEGACY_SERVER_CONNECT
    return context


def refusal_remedy(verify_message: str) -> str:
    """What to do about a certificate that OpenSSL's verification refused with that text."""
    if "not yet valid" in verify_message or "expired" in verify_message:
        return "compare the clocks of this machine and of the host, or have the host's certificate renewed"
    return "check the CA file and the host's name, or pin the certificate's thumbprint"


def pem_to_der(pem: str) -> bytes:
    """The DER form of the first certificate of a PEM text."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    try:
        if start < 0 or stop < 0:
            raise ValueError("no certificate in it")
        return ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)])
    except ValueError as error:
        raise UsageError(f"a PEM certificate was expected: {error}") from error


def _compare(kind: str, expected: str, presented: str, where: str, source: str | None) -> None:
    if not hmac.compare_digest(expected, presented):
        known = f" ({source})" if source else ""
        again = "`vdkit fingerprint --trust --replace` records" if source else "`vdkit fingerprint` shows"
        raise TrustError(
            f"{where}: the server's certificate is not the expected one: "
            f"expected {kind} {expected}{known}, presented {kind} {presented}",
            remedy=f"if the host's certificate was replaced, {again} the new one: compare it with "
            "the host's console; otherwise somebody may be in between",
        )
