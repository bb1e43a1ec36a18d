"""TLS over a :class:`~vdkit.net.stream.SocketStream`, which it can leave again without a word.

OpenSSL works on memory only (``SSLContext.wrap_bio``), never on the socket. So no close_notify is sent by
accident when a session is left, bytes that belong to the next phase can be handed back, and one thread can
send while another receives: the ``SSLObject`` is guarded by a lock, the socket is used outside it.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import cast

from vdkit.errors import ConnectionLost, ProtocolError, TransportError, TrustError
from vdkit.net.connect import tls_reason
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, SocketStream, Stream, WhileBlocked
from vdkit.net.trust import CIPHERS, refusal_remedy

#: Bytes taken from the socket at a time, into a kept buffer.
_RAW = 256 << 10
#: Bytes encrypted at a time: bounds the copy that waits to be sent.
_SLICE = 256 << 10


def server_context(certificate_file: str, key_file: str | None = None) -> ssl.SSLContext:
    """A server's context that behaves like a host: TLS 1.2 and no session tickets.

    Tickets of TLS 1.3 arrive after the handshake and would be taken for the next phase's bytes by a client
    that has left the session.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(certificate_file, key_file)
    return context


class TlsStream(Stream):
    """One TLS session. Owns the stream below until :meth:`abandon`."""

    def __init__(
        self, raw: SocketStream, context: ssl.SSLContext, *, server: bool = False, hostname: str | None = None
    ) -> None:
        self.peer = raw.peer
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=None if server else hostname
        )
        # The stubs say that read returns bytes; with a buffer it returns a count.
        self._read = cast(Callable[[int, memoryview], int], self._tls.read)
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._buffer = memoryview(bytearray(_RAW))

    def handshake(self, deadline: Deadline) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                self._feed(deadline, "the peer closed the connection in the TLS handshake")
                continue
            except ssl.SSLCertVerificationError as error:
                self._send_alert()
                raise TrustError(
                    f"{self.peer}: the server's certificate is not trusted: {error.verify_message}",
                    remedy=refusal_remedy(error.verify_message),
                ) from error
            except ssl.SSLError as error:
                self._send_alert()
                raise self._broken(error, "the TLS handshake failed") from error
            self._flush(deadline)
            return

    def peer_certificate(self) -> bytes | None:
        """The peer's leaf certificate in DER form."""
        return self._tls.getpeercert(binary_form=True)

    @property
    def version(self) -> str:
        return self._tls.version() or ""

    @property
    def cipher(self) -> str:
        found = self._tls.cipher()
        return found[0] if found else ""

    def abandon(self) -> SocketStream:
        """Leave the session without a close_notify; what follows on the connection is in clear again."""
        left = self._incoming.read()
        if left:
            self._raw.unread(left)
        return self._raw

    # -- receiving -------------------------------------------------------------------------------

    def recv_into(self, view: memoryview, deadline: Deadline) -> int:
        """At most one TLS record per call."""
        while True:
            count = self._decrypt(view)
            if count is not None:
                return count
            if not self._feed(deadline, None):
                return 0

    def recv_exact(self, view: memoryview, deadline: Deadline) -> None:
        filled, wanted = 0, len(view)
        while filled < wanted:
            count = self._decrypt_all(view[filled:] if filled else view)
            filled += count
            if filled < wanted:
                self._feed(deadline, "the peer closed the connection")

    def _decrypt(self, view: memoryview) -> int | None:
        """Bytes of the next record, 0 at the end, None if more must be received first."""
        with self._lock:
            try:
                return self._read(len(view), view)
            except ssl.SSLWantReadError:
                return None
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0
            except ssl.SSLError as error:
                raise self._broken(error, "TLS broke") from error

    def _decrypt_all(self, view: memoryview) -> int:
        """Fill as much of the view as has been received."""
        filled, wanted = 0, len(view)
        with self._lock:
            try:
                while filled < wanted:
                    count = self._read(wanted - filled, view[filled:])
                    if count == 0:
                        raise self.lost()
                    filled += count
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                raise self.lost() from None
            except ssl.SSLError as error:
                raise self._broken(error, "TLS broke") from error
        return filled

    def _feed(self, deadline: Deadline, at_end: str | None) -> int:
        count = self._raw.recv_into(self._buffer, deadline)
        if count == 0:
            if at_end is not None:
                raise self.lost(at_end)
            return 0
        with self._lock:
            self._incoming.write(self._buffer[:count])
        return count

    # -- sending ---------------------------------------------------------------------------------

    def send(
        self, parts: Sequence[Readable], deadline: Deadline, blocked: WhileBlocked | None = None
    ) -> None:
        """Each part begins a TLS record of its own: some peers read one message per record."""
        with self._send_lock:
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), _SLICE):
                    with self._lock:
                        self._encrypt(view[start : start + _SLICE])
                    if self._outgoing.pending >= _SLICE:
                        self._flush(deadline, blocked)
            self._flush(deadline, blocked)

    def _encrypt(self, view: memoryview) -> None:
        try:
            # Memory takes everything, so a write is never partial.
            self._tls.write(view)
        except ssl.SSLError as error:
            raise self._broken(error, "TLS broke") from error

    def _flush(self, deadline: Deadline, blocked: WhileBlocked | None = None) -> None:
        with self._lock:
            sealed = self._outgoing.read()
        if sealed:
            self._raw.send((sealed,), deadline, blocked)

    def _send_alert(self) -> None:
        with contextlib.suppress(TransportError):
            self._flush(Deadline.after(1))

    def close_notify(self, deadline: Deadline) -> None:
        """Say that no more will be sent, and do not wait for the answer. The peer may be gone already."""
        with self._send_lock, contextlib.suppress(TransportError, ssl.SSLError, OSError):
            with self._lock, contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._flush(deadline)

    # -- both ------------------------------------------------------------------------------------

    def wait(self, deadline: Deadline, *, readable: bool, writable: bool) -> bool:
        with self._lock:
            ready = readable and bool(self._tls.pending() or self._incoming.pending)
        return ready or self._raw.wait(deadline, readable=readable, writable=writable)

    def abort(self) -> None:
        self._raw.abort()

    def close(self) -> None:
        self._raw.close()

    def _broken(self, error: ssl.SSLError, what: str) -> TransportError:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return ConnectionLost(f"{self.peer}: {what}: the peer closed the connection")
        return ProtocolError(f"{self.peer}: {what}: {tls_reason(error)}")
