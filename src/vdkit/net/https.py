"""A small HTTPS client over verified connections: ranges of a file, read and written.

It serves ``/folder`` of a host and the guest door of the simulated one. One connection, kept alive, used by
one caller at a time (a lock sees to it). HTTP itself is the standard library's.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import threading
from time import monotonic
from types import TracebackType
from typing import Any, Self

from vdkit.errors import (
    ConnectionLost,
    DeadlineExceeded,
    HostAccessDenied,
    HostError,
    LoginFailed,
    NotFound,
    ProtocolError,
    TransportError,
)
from vdkit.net.connect import (
    connect,
    host_port,
    map_socket_error,
    tls_reason,
    unbracket,
    what_answers,
    without_zone,
)
from vdkit.net.deadline import Deadline
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust

DEFAULT_TIMEOUT = 60.0
#: OpenSSL's reasons when the two sides have no version in common.
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")
#: Bytes per second at which an answer must come, and a request be taken, to be given more time than allowed.
_SLOWEST = 16 << 10
#: Seconds that a body may take however it flows.
_LONGEST_BODY = 900.0
#: Longest error text of a server that is shown.
MAX_ERROR_TEXT = 400


class _PatientSocket(ssl.SSLSocket):
    """Never waits past the end of the exchange that its connection has begun, in however small pieces what
    it waits for comes. The time-out of a plain socket begins anew with every piece.
    """

    _seconds = 0.0
    _until = 0.0
    _latest = 0.0
    _body = False

    def begin(self, seconds: float) -> None:
        """An exchange of one request and its answer."""
        self._seconds, self._until, self._body = seconds, monotonic() + seconds, False

    def begin_body(self) -> None:
        """The head of the answer has come: a body may take longer, if it does not drip."""
        self._body, self._latest = True, self._until + _LONGEST_BODY

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        self._allow()
        count = super().recv_into(*arguments, **named)
        if self._body:
            self._until = min(self._until + count / _SLOWEST, self._latest)
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        self._allow()
        count = super().send(data, flags)
        self._until += count / _SLOWEST
        return count

    def _allow(self) -> None:
        left = self._until - monotonic()
        if left <= 0:
            # What has come already must not keep a peer that sends for ever in business.
            raise TimeoutError("the time allowed for the exchange is over")
        self.settimeout(left)


class VerifiedConnection(http.client.HTTPSConnection):
    """The certificate is checked right after the handshake, before a byte of HTTP is sent.

    ``host`` is a name or an address of either family, brackets optional. ``timeout`` is in seconds: for
    connecting with the handshake, and then for a request and the head of its answer. A body of some size may
    take longer, up to a limit, as long as it flows.
    """

    def __init__(self, host: str, port: int, *, trust: Trust, timeout: float) -> None:
        self._verify_context = trust.context()
        self._verify_context.sslsocket_class = _PatientSocket
        super().__init__(unbracket(host), port, timeout=timeout, context=self._verify_context)
        self._trust = trust
        self._seconds = timeout

    def connect(self) -> None:
        """Raises TransportError and its kinds, with everything closed."""
        where = host_port(self.host, self.port)
        deadline = Deadline.after(self._seconds)
        plain = connect(self.host, self.port, deadline)
        try:
            plain.settimeout(max(deadline.remaining, 0.001))
            wrapped = self._verify_context.wrap_socket(plain, server_hostname=without_zone(self.host))
        except (OSError, ssl.SSLError) as error:
            plain.close()
            raise self._explained(error, where) from error
        try:
            self._trust.check(wrapped.getpeercert(binary_form=True), where)
        except BaseException:
            wrapped.close()
            raise
        self.sock = wrapped
        self._begin()

    def _begin(self) -> None:
        if isinstance(self.sock, _PatientSocket):
            self.sock.begin(self._seconds)

    def getresponse(self) -> http.client.HTTPResponse:
        # Before the response may have taken the socket over.
        sock = self.sock
        response = super().getresponse()
        if isinstance(sock, _PatientSocket):
            sock.begin_body()
        return response

    def putrequest(
        self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False
    ) -> None:
        """The header ``Host`` has no zone: it is the name of one of our links."""
        self._begin()
        zone = "%" in self.host and not skip_host
        super().putrequest(method, url, skip_host or zone, skip_accept_encoding)
        if zone:
            self.putheader("Host", host_port(without_zone(self.host), self.port))

    def _explained(self, error: OSError, where: str) -> TransportError:
        """Why there is no TLS session; asks what else it is that listens there."""
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(
                f"{where}: TCP port {self.port} takes connections, but no TLS handshake was done within "
                f"{self._seconds:g} seconds",
                remedy="check that the host answers there, and what the firewall does with TCP "
                f"{self.port} in between",
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
            reason = tls_reason(error)
            if reason in _OLD_TLS:
                return ProtocolError(
                    f"{where}: the host speaks no TLS that is allowed ({reason})",
                    remedy="a host older than TLS 1.2 must be named as one: --legacy-tls",
                )
            heard = what_answers(self.host, self.port)
            if heard:
                return ProtocolError(
                    f"{where}: what listens there does not speak TLS; it says {heard!r}",
                    remedy="check host and port: is it a proxy, or another service?",
                )
        return map_socket_error(error, where, "TLS handshake")


class HttpsFile:
    """One URL of a host whose bytes can be read and written by range, with basic authentication."""

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        *,
        user: str,
        password: Secret,
        trust: Trust,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._where = f"{host_port(host, port)}{path}"
        self._path = path
        self._connection = VerifiedConnection(host, port, trust=trust, timeout=timeout)
        token = base64.b64encode(f"{user}:{password.reveal()}".encode()).decode("ascii")
        self._headers = {"Authorization": f"Basic {token}"}
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return self._where

    def size(self) -> int:
        """Length of the whole object, in bytes."""
        response, _ = self._request("HEAD", {})
        length = response.getheader("Content-Length")
        if length is None or not length.isdigit():
            raise ProtocolError(f"{self._where}: the host did not say how long it is")
        return int(length)

    def read_range(self, offset: int, length: int) -> bytes:
        """Exactly the bytes ``[offset, offset + length)``."""
        response, body = self._request(
            "GET", {"Range": f"bytes={offset}-{offset + length - 1}"}, limit=length
        )
        if response.status != http.client.PARTIAL_CONTENT or len(body) != length:
            raise ProtocolError(
                f"{self._where}: asked for {length} bytes at {offset}, got status {response.status} "
                f"and {len(body)} bytes"
            )
        return body

    def write_range(self, offset: int, data: bytes | memoryview, total: int) -> None:
        """Replace the bytes at ``offset`` of an object of ``total`` bytes."""
        end = offset + len(data) - 1
        self._request("PUT", {"Content-Range": f"bytes {offset}-{end}/{total}"}, body=bytes(data))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(
        self, method: str, headers: dict[str, str], *, body: bytes | None = None, limit: int = 0
    ) -> tuple[http.client.HTTPResponse, bytes]:
        with self._lock:
            try:
                self._connection.request(method, self._path, body=body, headers={**self._headers, **headers})
                response = self._connection.getresponse()
                # One byte more than allowed shows a server that sends too much; an error text is cut.
                content = response.read(max(limit, MAX_ERROR_TEXT) + 1)
                if not response.isclosed():
                    self._connection.close()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if isinstance(error, http.client.HTTPException):
                    raise ConnectionLost(
                        f"{self._where}: {method}: {error or type(error).__name__}"
                    ) from error
                raise map_socket_error(error, self._where, method) from error
        self._check_status(method, response.status, content)
        return response, content

    def _check_status(self, method: str, status: int, content: bytes) -> None:
        if 200 <= status < 300:
            return
        # A HEAD is answered without a text.
        text = content[:MAX_ERROR_TEXT].decode("utf-8", "replace") or http.client.responses.get(status, "")
        match status:
            case 401:
                raise LoginFailed(f"{self._where}: user or password not accepted")
            case 403:
                raise HostAccessDenied(f"{self._where}: {method} is not allowed: {text}")
            case 404:
                raise NotFound(f"{self._where}: not found on the host")
            case _:
                raise HostError(f"{self._where}: {method} answered {status}: {text}")
