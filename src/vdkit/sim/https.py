"""HTTP/1.1 over TLS as the simulated host serves it: keep-alive, chunked and counted bodies both ways.

Source: RFC 9112, as far as the field's clients use it. Every size that a client states is bounded before it
is believed; a request that breaks the rules gets one answer and the connection is closed.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from vdkit.errors import TransportError
from vdkit.net.deadline import Deadline
from vdkit.net.listener import Listener
from vdkit.net.stream import Readable, SocketStream, Stream
from vdkit.net.tls import TlsStream

#: Bytes of a line of the head, and lines.
MAX_LINE = 16 << 10
MAX_HEADERS = 100
#: Seconds without a request after which a kept connection is closed, and for any one message.
IDLE_SECONDS = 900.0
MESSAGE_SECONDS = 300.0
HANDSHAKE_SECONDS = 30.0
#: Bytes of a body that nobody read which are taken to keep the connection; with more it is closed.
_DRAIN = 1 << 20
_PIECE = 256 << 10
_REQUEST_LINE = re.compile(rb"^([A-Z]{1,16}) (\S{1,8192}) HTTP/1\.([01])\r?\n$")
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")


class Pieces(Protocol):
    """The body of a reply; ``close`` is called once it was sent, or could not be."""

    def __iter__(self) -> Iterator[Readable]: ...

    def close(self) -> None: ...


class BadHttp(Exception):
    """A request that cannot be answered in the normal way; the connection ends with this status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class _Input:
    """Buffered reading of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray(_PIECE)
        self._view = memoryview(self._buffer)
        self._low = self._high = 0
        self.deadline = Deadline.after(IDLE_SECONDS)

    def _fill(self) -> bool:
        if self._low == self._high:
            self._low = self._high = 0
        elif self._high == len(self._buffer):
            rest = bytes(self._view[self._low : self._high])
            self._view[: len(rest)] = rest
            self._low, self._high = 0, len(rest)
        count = self._stream.recv_into(self._view[self._high :], self.deadline)
        self._high += count
        return count > 0

    def line(self) -> bytes:
        """Up to and including a LF; empty at the end of the stream."""
        while True:
            end = self._buffer.find(b"\n", self._low, self._high)
            if end >= 0 and end < self._low + MAX_LINE:
                found = bytes(self._view[self._low : end + 1])
                self._low = end + 1
                return found
            if self._high - self._low >= MAX_LINE:
                raise BadHttp(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a line of the head is too long")
            if not self._fill():
                return b""

    def piece(self, limit: int) -> memoryview:
        """At least one byte and at most ``limit``; good until the next call."""
        if self._low == self._high and not self._fill():
            raise self._stream.lost("the client closed the connection inside a request")
        end = min(self._high, self._low + limit)
        found = self._view[self._low : end]
        self._low = end
        return found


@dataclass
class HttpRequest:
    """One request; the body is read by the handler, as a whole or in pieces."""

    method: str
    target: str
    headers: dict[str, str]
    peer: str
    #: The client's own idea of our address, from the ``Host`` header.
    host: str
    body: Body

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


class Body:
    """The body of a request: counted, chunked, or none."""

    def __init__(self, source: _Input, length: int | None, go_on: Callable[[], None] | None) -> None:
        """``length`` None means chunked; ``go_on`` sends the ``100 Continue`` that the client waits for."""
        self.length = length
        self._source = source
        self._go_on = go_on
        self._left = length or 0
        self._finished = length == 0

    def pieces(self) -> Iterator[memoryview]:
        """The bytes in order; each piece is good until the next is taken."""
        if self._finished:
            return
        if self._go_on is not None:
            self._go_on()
            self._go_on = None
        if self.length is None:
            yield from self._chunks()
        else:
            while self._left:
                piece = self._source.piece(self._left)
                self._left -= len(piece)
                yield piece
        self._finished = True

    def read(self, limit: int) -> bytes:
        """All of it. Raises BadHttp above ``limit`` bytes."""
        if self.length is not None and self.length > limit:
            raise BadHttp(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit} bytes")
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > limit:
                raise BadHttp(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limit} bytes")
        return bytes(found)

    def drained(self) -> bool:
        """Take what the handler left, if it is not much; True if the connection can go on."""
        if self._finished:
            return True
        if self._go_on is not None or self.length is None or self._left > _DRAIN:
            return False
        for _ in self.pieces():
            pass
        return True

    def _chunks(self) -> Iterator[memoryview]:
        while True:
            if self._left == 0:
                size = self._source.line().partition(b";")[0].strip()
                if not re.fullmatch(rb"[0-9A-Fa-f]{1,12}", size):
                    raise BadHttp(HTTPStatus.BAD_REQUEST, "a chunk without a size")
                self._left = int(size, 16)
                if self._left == 0:
                    self._trailer()
                    return
            piece = self._source.piece(self._left)
            self._left -= len(piece)
            yield piece
            if self._left == 0 and self._source.line().strip():
                raise BadHttp(HTTPStatus.BAD_REQUEST, "a chunk longer than its size")

    def _trailer(self) -> None:
        for _ in range(MAX_HEADERS):
            if not self._source.line().strip():
                return
        raise BadHttp(HTTPStatus.BAD_REQUEST, "the trailer is too long")


@dataclass
class HttpResponse:
    """``pieces`` is the body, ``length`` its size in bytes (that of the bytes if the body is bytes)."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    pieces: Pieces | None = None
    length: int | None = None
    close: bool = False


Handler = Callable[[HttpRequest], HttpResponse]


class HttpsServer:
    """Serves ``handler`` on one address; a thread for each connection, all joined by :meth:`stop`."""

    def __init__(self, handler: Handler, context: ssl.SSLContext, host: str, port: int) -> None:
        self._handler = handler
        self._context = context
        self._listener = Listener(self._connection, host, port, name="sim-https")

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def connections(self) -> int:
        return self._listener.connections

    def start(self) -> None:
        self._listener.start()

    def stop(self) -> None:
        self._listener.stop()

    def break_connections(self) -> None:
        """Break every open connection; new ones are served."""
        self._listener.break_connections()

    def _connection(self, raw: SocketStream) -> None:
        stream = TlsStream(raw, self._context, server=True)
        stream.handshake(Deadline.after(HANDSHAKE_SECONDS))
        source = _Input(stream)
        try:
            while self._one(stream, source):
                pass
        except BadHttp as error:
            self._refuse(stream, error)
        stream.close_notify(Deadline.after(1))

    def _one(self, stream: TlsStream, source: _Input) -> bool:
        """Serve one request; True if another may follow."""
        source.deadline = Deadline.after(IDLE_SECONDS)
        found = _read_head(stream, source)
        if found is None:
            return False
        request, keep = found
        response = self._handler(request)
        try:
            keep = keep and not response.close and request.body.drained()
            _send(stream, response, head_only=request.method == "HEAD", keep=keep)
        finally:
            if response.pieces is not None:
                response.pieces.close()
        return keep

    def _refuse(self, stream: TlsStream, error: BadHttp) -> None:
        response = HttpResponse(error.status, [("Content-Type", "text/plain")], f"{error.reason}\n".encode())
        try:
            _send(stream, response, head_only=False, keep=False)
        except TransportError:
            return


def _read_head(stream: TlsStream, source: _Input) -> tuple[HttpRequest, bool] | None:
    line = source.line()
    while line in (b"\r\n", b"\n"):
        line = source.line()
    if not line:
        return None
    source.deadline = Deadline.after(MESSAGE_SECONDS)
    found = _REQUEST_LINE.match(line)
    if found is None:
        raise BadHttp(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request line")
    headers = _read_headers(source)
    connection = headers.get("connection", "").lower()
    keep = "close" not in connection and (found[3] == b"1" or "keep-alive" in connection)
    go_on = None
    if headers.get("expect", "").lower() == "100-continue":

        def go_on() -> None:
            stream.send((b"HTTP/1.1 100 Continue\r\n\r\n",), Deadline.after(MESSAGE_SECONDS))

    body = Body(source, _body_length(headers), go_on)
    host = headers.get("host", "")
    target = found[2].decode("ascii", "replace")
    request = HttpRequest(found[1].decode(), target, headers, stream.peer, host, body)
    return request, keep


def _read_headers(source: _Input) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = source.line()
        if line in (b"\r\n", b"\n"):
            return headers
        before, colon, after = line.partition(b":")
        if not colon or not line.endswith(b"\n") or _HEADER_NAME.fullmatch(before) is None:
            raise BadHttp(HTTPStatus.BAD_REQUEST, "a header line that is none")
        name = before.decode().lower()
        if name in headers and name in ("content-length", "transfer-encoding", "host"):
            raise BadHttp(HTTPStatus.BAD_REQUEST, f"{name} is given twice")
        value = after.strip(b" \t\r\n").decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raise BadHttp(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header lines")


def _body_length(headers: dict[str, str]) -> int | None:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise BadHttp(HTTPStatus.NOT_IMPLEMENTED, "a body is either counted or chunked")
        return None
    if length is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise BadHttp(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    return int(length)


def _send(stream: TlsStream, response: HttpResponse, *, head_only: bool, keep: bool) -> None:
    status = HTTPStatus(response.status)
    length = response.length if response.length is not None else len(response.body)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"Connection: {'keep-alive' if keep else 'close'}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    deadline = Deadline.after(MESSAGE_SECONDS)
    if head_only:
        stream.send((head,), deadline)
    elif response.pieces is None:
        stream.send((head + response.body,), deadline)
    else:
        stream.send((head,), deadline)
        for piece in response.pieces:
            stream.send((piece,), Deadline.after(MESSAGE_SECONDS))
