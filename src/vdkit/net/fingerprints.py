"""The certificate that a host presents, read without trusting it and without sending anything.

Source of facts: our NFC specification (section 3) for the greeting of a data port.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from vdkit.errors import ProtocolError, TransportError
from vdkit.net.connect import connect, host_port, unbracket, without_zone
from vdkit.net.deadline import Deadline
from vdkit.net.stream import SocketStream
from vdkit.net.tls import TlsStream
from vdkit.net.trust import client_context, sha1_thumbprint, sha256_thumbprint

#: A port where the server says a line in clear before TLS begins.
DATA_PORT = 902
_MAX_LINE = 4096


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Thumbprints of the leaf certificate; ``der`` is the certificate itself."""

    host: str
    port: int
    sha1: str
    sha256: str
    der: bytes


def fingerprints(
    host: str,
    port: int = 443,
    *,
    greeting: bool | None = None,
    timeout: float = 10.0,
    legacy_tls: bool = False,
) -> Fingerprints:
    """Thumbprints of what ``host:port`` presents.

    ``greeting``: whether the server first says a line in clear, as a data port does; None finds out: port 902
    does, others are tried both ways. ``timeout`` in seconds. ``legacy_tls`` as in :class:`Trust`.
    """
    context = client_context(legacy=legacy_tls)
    if greeting is not None:
        return _read(host, port, context, greeting, timeout)
    first = port == DATA_PORT
    try:
        return _read(host, port, context, first, timeout)
    except ProtocolError:
        return _read(host, port, context, not first, timeout)


def _read(host: str, port: int, context: ssl.SSLContext, greeting: bool, timeout: float) -> Fingerprints:
    deadline = Deadline.after(timeout)
    raw = SocketStream(connect(host, port, deadline), host_port(host, port))
    try:
        if greeting:
            raw.read_line(_MAX_LINE, deadline, "the greeting")
        stream = TlsStream(raw, context, hostname=without_zone(host))
        stream.handshake(deadline)
        der = stream.peer_certificate()
        stream.close_notify(Deadline.after(1))
    finally:
        raw.close()
    if not der:
        raise TransportError(f"{raw.peer}: the server presented no certificate")
    return Fingerprints(unbracket(host), port, sha1_thumbprint(der), sha256_thumbprint(der), der)
