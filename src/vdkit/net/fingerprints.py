"""The certificate that a host presents, read without trusting it and without sending anything."""

from __future__ import annotations

from dataclasses import dataclass

from vdkit.errors import ProtocolError, TransportError
from vdkit.net.connect import connect, host_port, unbracket
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
    host: str, port: int = 443, *, greeting: bool | None = None, timeout: float = 10.0
) -> Fingerprints:
    """Thumbprints of what ``host:port`` presents.

    ``greeting``: whether the server first says a line in clear, as a data port does; None finds out: port 902
    does, others are tried both ways. ``timeout`` in seconds.
    """
    if greeting is not None:
        return _read(host, port, greeting, timeout)
    first = port == DATA_PORT
    try:
        return _read(host, port, first, timeout)
    except ProtocolError:
        return _read(host, port, not first, timeout)


def _read(host: str, port: int, greeting: bool, timeout: float) -> Fingerprints:
    deadline = Deadline.after(timeout)
    raw = SocketStream(connect(host, port, deadline), host_port(host, port))
    try:
        if greeting:
            raw.read_line(_MAX_LINE, deadline, "the greeting")
        stream = TlsStream(raw, client_context(), hostname=unbracket(host))
        stream.handshake(deadline)
        der = stream.peer_certificate()
        stream.close_notify(Deadline.after(1))
    finally:
        raw.close()
    if not der:
        raise TransportError(f"{raw.peer}: the server presented no certificate")
    return Fingerprints(unbracket(host), port, sha1_thumbprint(der), sha256_thumbprint(der), der)
