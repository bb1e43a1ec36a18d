"""Making TCP connections. Every failure is an error of its own, naming host and port."""

from __future__ import annotations

import errno
import socket
import ssl

from vdkit.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    DeadlineExceeded,
    HostNotFound,
    ProtocolError,
    TransportError,
    TrustError,
)
from vdkit.net.deadline import Deadline
from vdkit.net.trust import refusal_remedy

#: Seconds in which a TCP connection must be made.
DEFAULT_TIMEOUT = 10.0
#: What a server that is no host may say: seconds it gets, and bytes of it that are shown.
_PROBE_SECONDS = 2.0
_PROBE_BYTES = 100


def host_port(host: str, port: int) -> str:
    """``host:port`` for messages and URLs; an IPv6 literal goes into brackets."""
    bare = unbracket(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def unbracket(host: str) -> str:
    """An IPv6 literal without the brackets that URLs put around it."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def without_zone(host: str) -> str:
    """An address without brackets and the zone of a link-local one (``fe80::1%eth0``).

    The zone is only ours: it says which of our links to take, and no host is asked for by it.
    """
    bare = unbracket(host)
    return bare.partition("%")[0] if ":" in bare else bare


def connect(
    host: str, port: int, deadline: Deadline | None = None, *, timeout: float = DEFAULT_TIMEOUT
) -> socket.socket:
    """A connected TCP socket. ``host`` is a name or an IPv4 or IPv6 literal, with or without brackets.

    All addresses of a name are tried in the resolver's order, by ``deadline`` (or within ``timeout``
    seconds), each with its part of what is left: one behind a firewall that drops must not use up the time
    of those after it. The time that the system's resolver takes is bounded by its own settings. The socket
    is left with the allowed seconds as its timeout.
    """
    where = host_port(host, port)
    deadline = deadline or Deadline.after(timeout)
    failure: Exception | None = None
    found = _resolve(host, port, where)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        try:
            sock = _connect_one(family, kind, protocol, address, deadline.remaining / (len(found) - number))
        except OSError as error:
            failure = error
        else:
            sock.settimeout(deadline.seconds)
            return sock
    assert failure is not None
    raise _explain(failure, where, port, deadline) from failure


def _resolve(
    host: str, port: int, where: str
) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(unbracket(host), port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError, ValueError) as error:
        raise HostNotFound(
            f"{where}: the host name does not resolve",
            remedy="check the name of the host and the name server of this machine",
        ) from error
    if not found:
        raise HostNotFound(f"{where}: the host name has no address")
    return list(found)


def _connect_one(
    family: int, kind: int, protocol: int, address: tuple[object, ...], seconds: float
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        # A timeout of 0 would mean "do not wait" and fail with EINPROGRESS instead of a time-out.
        sock.settimeout(max(seconds, 0.001))
        sock.connect(address)
        tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """No delays for small requests, and a probe of peers that vanish without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _explain(error: Exception, where: str, port: int, deadline: Deadline) -> Exception:
    remedy = f"check that the firewall lets TCP {port} to that host through"
    if isinstance(error, TimeoutError):
        # A firewall that drops looks like this, and so does a host that is down.
        return DeadlineExceeded(
            f"{where}: no connection to TCP port {port} within {deadline.seconds:g} seconds", remedy=remedy
        )
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ECONNREFUSED:
        return ConnectionRefused(f"{where}: the connection to TCP port {port} was refused", remedy=remedy)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ConnectFailed(f"{where}: no connection to TCP port {port}: {reason}", remedy=remedy)


def what_answers(host: str, port: int) -> str:
    """The first words of a server that does not speak TLS: a banner, or what it makes of an HTTP request.

    Only for a message about a connection that has failed already; empty if it says nothing readable.
    """
    try:
        with connect(host, port, timeout=_PROBE_SECONDS) as sock:
            sock.settimeout(_PROBE_SECONDS / 2)
            try:
                said = sock.recv(_PROBE_BYTES)
            except TimeoutError:
                sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                said = sock.recv(_PROBE_BYTES)
    except (OSError, TransportError):
        return ""
    line = said.split(b"\n", 1)[0].strip().decode("ascii", "replace")
    return line if line.isprintable() and "\ufffd" not in line else ""


def tls_reason(error: ssl.SSLError) -> str:
    """OpenSSL's short reason; errors that Python itself raises have none."""
    return getattr(error, "reason", None) or "unknown reason"


def map_socket_error(error: OSError, where: str, what: str) -> TransportError:
    """The error for an ``OSError`` (TLS included) of a connected socket; ``what`` says the act."""
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{where}: {what}: nothing came in the time allowed")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TrustError(
            f"{where}: {what}: the server's certificate is not trusted: {error.verify_message}",
            remedy=refusal_remedy(error.verify_message),
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConnectionLost(f"{where}: {what}: the peer closed the connection")
    if isinstance(error, ssl.SSLError):
        return ProtocolError(f"{where}: {what}: TLS failed: {tls_reason(error)}")
    reason = error.strerror or str(error)
    return ConnectionLost(f"{where}: {what}: the connection broke: {reason}")
