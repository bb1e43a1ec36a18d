"""An accept loop whose threads end with it."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vdkit.errors import ConnectFailed, TransportError, UsageError
from vdkit.net.connect import host_port, tune, unbracket
from vdkit.net.stream import SocketStream

_log = logging.getLogger(__name__)
_BACKLOG = 128

Handler = Callable[[SocketStream], None]


class Listener:
    """Listens on one address; ``handler`` runs in a thread of its own for each connection.

    The handler owns its stream while it runs; the listener closes it afterwards. :meth:`stop` breaks the
    connections that are still open and returns when every thread has ended.
    """

    def __init__(
        self, handler: Handler, host: str = "127.0.0.1", port: int = 0, *, name: str = "listener"
    ) -> None:
        self._handler = handler
        self._name = name
        self._host = unbracket(host)
        self._port = port
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._accepter: threading.Thread | None = None
        self._open: dict[threading.Thread, SocketStream] = {}
        self._stopping = False

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        """The port listened on: the one that the system chose if 0 was asked for."""
        return self._port

    @property
    def address(self) -> str:
        return host_port(self._host, self._port)

    def start(self) -> Self:
        if self._socket is not None or self._stopping:
            raise UsageError(f"{self._name}: a listener is started once")
        try:
            family, _, _, _, where = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.create_server(where[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConnectFailed(
                f"{self.address}: cannot listen there: {reason}", remedy="choose another address or port"
            ) from error
        self._port = self._socket.getsockname()[1]
        self._accepter = threading.Thread(
            target=self._accept, args=(self._socket,), name=f"{self._name}-accept"
        )
        self._accepter.start()
        return self

    def stop(self) -> None:
        """Twice is fine; must not be called from a handler."""
        with self._lock:
            self._stopping = True
            listening, accepter = self._socket, self._accepter
        if listening is not None:
            # Wakes the thread that is blocked in accept, which closing the descriptor would not.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        if accepter is not None:
            accepter.join()
        if listening is not None:
            listening.close()
        self.break_connections()
        while True:
            with self._lock:
                threads = list(self._open)
            if not threads:
                return
            for thread in threads:
                thread.join()
                with self._lock:
                    self._open.pop(thread, None)

    def break_connections(self) -> None:
        """Break every open connection; the listener goes on."""
        with self._lock:
            for stream in self._open.values():
                stream.abort()

    @property
    def connections(self) -> int:
        """Connections being served now."""
        with self._lock:
            return sum(thread.is_alive() for thread in self._open)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, peer = listening.accept()
            except OSError as error:
                if self._stopping:
                    return
                _log.warning("%s: accept failed: %s", self.address, error.strerror)
                continue
            tune(sock)
            self._serve(sock, host_port(peer[0], peer[1]))

    def _serve(self, sock: socket.socket, peer: str) -> None:
        stream = SocketStream(sock, peer)
        thread = threading.Thread(target=self._run, args=(stream,), name=f"{self._name}-{peer}")
        with self._lock:
            if self._stopping:
                stream.close()
                return
            for ended in [t for t in self._open if not t.is_alive() and t.ident is not None]:
                del self._open[ended]
            self._open[thread] = stream
            thread.start()

    def _run(self, stream: SocketStream) -> None:
        try:
            self._handler(stream)
        except TransportError as error:
            _log.info("%s: connection ended: %s", self._name, error)
        except Exception:  # noqa: BLE001  the thread's last frame: logged, and others are still served
            _log.exception("%s: %s: the handler failed", self._name, stream.peer)
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)
                stream.close()
