"""A TCP relay for tests and measurements: a delay per direction, and cuts after a number of bytes."""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

from vdkit.errors import TransportError, UsageError
from vdkit.net.connect import connect, tune, unbracket
from vdkit.net.deadline import Deadline

#: Bytes taken at a time.
_PIECE = 512 << 10
#: Bytes on their way in one direction: more than any window, so that only the delay is felt.
_ON_THE_WAY = 64 << 20
_CONNECT_SECONDS = 10.0
#: Closing with this sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float, cut: int | None) -> None:
        self.source = source
        self.target = target
        self.delay = delay
        #: Bytes that may still pass.
        self.left = cut
        self.pieces: collections.deque[tuple[float, memoryview]] = collections.deque()
        self.held = 0
        self.ended = False
        self.blocked = False
        self.passed = 0

    def take(self) -> None:
        """Receive a piece; it is due after the delay."""
        try:
            data = self.source.recv(_PIECE)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
            return
        self.held += len(data)
        self.pieces.append((time.monotonic() + self.delay, memoryview(data)))

    def pass_on(self) -> bool:
        """Send what is due; False when the connection is to be cut here."""
        self.blocked = False
        now = time.monotonic()
        while self.pieces and self.pieces[0][0] <= now:
            due, view = self.pieces.popleft()
            if self.left is not None:
                view = view[: self.left]
            try:
                sent = self.target.send(view) if view else 0
            except BlockingIOError:
                sent = 0
                self.blocked = True
            self.held -= sent
            self.passed += sent
            if self.left is not None:
                self.left -= sent
                if self.left == 0:
                    return False
            if sent < len(view):
                self.pieces.appendleft((due, view[sent:]))
                self.blocked = True
                return True
        if self.ended and not self.pieces:
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)
        return True

    @property
    def wants_input(self) -> bool:
        return not self.ended and self.held < _ON_THE_WAY

    @property
    def finished(self) -> bool:
        return self.ended and not self.pieces


class Relay:
    """Listens on ``listen`` and passes connections on to ``host:port``, from one thread.

    ``to_server`` and ``to_client``: seconds that each byte is held back. ``cut_to_server`` and
    ``cut_to_client``: bytes per connection after which it is broken, with a reset if ``reset`` is set.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        to_server: float = 0.0,
        to_client: float = 0.0,
        cut_to_server: int | None = None,
        cut_to_client: int | None = None,
        reset: bool = False,
        listen: str = "127.0.0.1",
    ) -> None:
        for cut in (cut_to_server, cut_to_client):
            if cut is not None and cut < 1:
                raise UsageError("a cut needs at least one byte to come first")
        self._upstream = (host, port)
        self._delays = (to_server, to_client)
        self._cuts = (cut_to_server, cut_to_client)
        self._reset = reset
        self._selector = selectors.DefaultSelector()
        self._pairs: list[tuple[_Pipe, _Pipe]] = []
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._wake_read, self._wake_write = socket.socketpair()
        self.host = unbracket(listen)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listening = socket.create_server((self.host, 0), family=family, backlog=64)
        self.port: int = self._listening.getsockname()[1]
        #: Bytes passed on so far, of connections that have ended.
        self.passed_to_server = 0
        self.passed_to_client = 0

    def start(self) -> Self:
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopping = True
        self._wake_write.send(b"x")
        if self._thread is not None:
            self._thread.join()
        for pair in list(self._pairs):
            self._drop(pair, reset=False)
        self._selector.close()
        for sock in (self._listening, self._wake_read, self._wake_write):
            sock.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping:
            ready = {key.fd for key, mask in self._selector.select(self._until_due())}
            if self._listening.fileno() in ready:
                self._accept()
            for pair in list(self._pairs):
                self._serve(pair, ready)

    def _until_due(self) -> float | None:
        due = [pipe.pieces[0][0] for pair in self._pairs for pipe in pair if pipe.pieces and not pipe.blocked]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        try:
            server = connect(*self._upstream, Deadline.after(_CONNECT_SECONDS))
        except TransportError:
            client.close()
            return
        tune(client)
        client.setblocking(False)
        server.setblocking(False)
        pair = (
            _Pipe(client, server, self._delays[0], self._cuts[0]),
            _Pipe(server, client, self._delays[1], self._cuts[1]),
        )
        self._pairs.append(pair)
        for sock in (client, server):
            self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, pair: tuple[_Pipe, _Pipe], ready: set[int]) -> None:
        try:
            for pipe in pair:
                if pipe.source.fileno() in ready and pipe.wants_input:
                    pipe.take()
                if not pipe.pass_on():
                    self._drop(pair, reset=self._reset)
                    return
        except OSError:
            self._drop(pair, reset=True)
            return
        if all(pipe.finished for pipe in pair):
            self._drop(pair, reset=False)
            return
        there, back = pair
        self._interest(there.source, there.wants_input, back.blocked)
        self._interest(back.source, back.wants_input, there.blocked)

    def _interest(self, sock: socket.socket, read: bool, write: bool) -> None:
        mask = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        key = self._selector.get_map().get(sock)
        if key is None:
            if mask:
                self._selector.register(sock, mask)
        elif not mask:
            self._selector.unregister(sock)
        elif key.events != mask:
            self._selector.modify(sock, mask)

    def _drop(self, pair: tuple[_Pipe, _Pipe], *, reset: bool) -> None:
        self._pairs.remove(pair)
        self.passed_to_server += pair[0].passed
        self.passed_to_client += pair[1].passed
        for pipe in pair:
            sock = pipe.source
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
