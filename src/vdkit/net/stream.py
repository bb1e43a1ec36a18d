"""Byte streams with deadlines.

One thread may send while another receives; two that send (or two that receive) must agree among themselves,
except that :meth:`Stream.send` keeps its parts together whoever calls it. Every error names the peer.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vdkit.errors import ConnectionLost, DeadlineExceeded, ProtocolError
from vdkit.net.deadline import Deadline

Readable = bytes | bytearray | memoryview
#: Called instead of waiting when the peer takes no more, so that the caller can meanwhile receive. The
#: argument is the deadline of the send; it returns once the socket may take more or something was received.
WhileBlocked = Callable[[Deadline], None]

#: Small reads are served from here, so that a head of a few bytes costs no system call of its own.
_STAGE = 4096
#: Buffers per sendmsg call, well below every system's IOV_MAX.
_MAX_PARTS = 64
#: Seconds that one system call may block.
_STEP = 1.0
_STEP_TIMEVAL = struct.pack("@ll", int(_STEP), 0)
_BLOCKED = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class Stream(ABC):
    """Bytes both ways, to and from ``peer`` (``host:port``)."""

    peer: str

    @abstractmethod
    def send(
        self, parts: Sequence[Readable], deadline: Deadline, blocked: WhileBlocked | None = None
    ) -> None:
        """Send all of every part, in order and without bytes of another thread in between."""

    @abstractmethod
    def recv_into(self, view: memoryview, deadline: Deadline) -> int:
        """Receive at least one byte; 0 at the end of the stream."""

    @abstractmethod
    def recv_exact(self, view: memoryview, deadline: Deadline) -> None:
        """Fill the view; the end of the stream is :class:`ConnectionLost`."""

    @abstractmethod
    def wait(self, deadline: Deadline, *, readable: bool, writable: bool) -> bool:
        """Wait for either; True if there is something to receive. Returns at the deadline too."""

    @abstractmethod
    def close(self) -> None:
        """Free the descriptor. Twice is fine."""

    @abstractmethod
    def abort(self) -> None:
        """Break the connection from any thread: calls in progress fail at once. The descriptor stays."""

    def read_line(self, limit: int, deadline: Deadline, what: str) -> bytes:
        """Bytes up to and including a LF, and not one byte more taken from the stream."""
        line = bytearray()
        byte = memoryview(bytearray(1))
        while not line.endswith(b"\n"):
            if len(line) >= limit:
                raise ProtocolError(f"{self.peer}: {what} is longer than {limit} bytes")
            self.recv_exact(byte, deadline)
            line += byte
        return bytes(line)

    def lost(self, reason: str = "the peer closed the connection") -> ConnectionLost:
        return ConnectionLost(f"{self.peer}: {reason}")


class SocketStream(Stream):
    """A stream in clear. Owns the socket.

    While a deadline is far away the system call itself blocks, in steps of a second, until all has come or
    gone: one call for a mebibyte. Only near the deadline is it a poll and a call that does not block.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _STEP_TIMEVAL)
        self._sock = sock
        self.peer = peer
        self._send_lock = threading.Lock()
        self._stage = memoryview(bytearray(_STAGE))
        self._low = self._high = 0
        self._input = select.poll()
        self._input.register(sock, select.POLLIN)
        self._output = select.poll()
        self._output.register(sock, select.POLLOUT)
        self._both = select.poll()
        self._both.register(sock, select.POLLIN | select.POLLOUT)

    # -- receiving -------------------------------------------------------------------------------

    def recv_into(self, view: memoryview, deadline: Deadline) -> int:
        if self._low < self._high:
            return self._take(view)
        return self._recv(view, deadline, 0)

    def recv_exact(self, view: memoryview, deadline: Deadline) -> None:
        filled, wanted = 0, len(view)
        low = self._low
        if self._high - low >= wanted:
            view[:] = self._stage[low : low + wanted]
            self._low = low + wanted
            return
        if low < self._high:
            filled = self._take(view)
        while filled < wanted:
            rest = view[filled:] if filled else view
            if len(rest) >= _STAGE:
                count = self._recv(rest, deadline, socket.MSG_WAITALL)
            else:
                # What comes behind is most often wanted next: taken along in one call.
                self._low, self._high = 0, self._recv(self._stage, deadline, 0)
                count = self._take(rest)
            if count == 0:
                raise self.lost()
            filled += count

    def _recv(self, view: memoryview, deadline: Deadline, flags: int) -> int:
        """At least a byte of the view (most often all with MSG_WAITALL), 0 at the end of the stream."""
        while True:
            near = deadline.remaining < _STEP
            if near and not self._poll(self._input, deadline):
                raise DeadlineExceeded(f"{self.peer}: nothing came within {deadline.seconds:g} seconds")
            try:
                return self._sock.recv_into(view, 0, socket.MSG_DONTWAIT if near else flags)
            except OSError as error:
                self._blocked_or_raise(error)

    def _take(self, view: memoryview) -> int:
        count = min(len(view), self._high - self._low)
        view[:count] = self._stage[self._low : self._low + count]
        self._low += count
        return count

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what is to be received: a layer above had taken too many."""
        kept = bytes(self._stage[self._low : self._high])
        stage = bytearray(data + kept)
        self._low, self._high = 0, len(stage)
        stage.extend(bytes(max(0, _STAGE - len(stage))))
        self._stage = memoryview(stage)

    # -- sending ---------------------------------------------------------------------------------

    def send(
        self, parts: Sequence[Readable], deadline: Deadline, blocked: WhileBlocked | None = None
    ) -> None:
        with self._send_lock:
            if len(parts) == 1 and blocked is None and deadline.remaining >= _STEP:
                # The most frequent case: one part, and the system call waits until all is taken.
                part = parts[0]
                try:
                    sent = self._sock.send(part)
                except OSError as error:
                    self._blocked_or_raise(error)
                    sent = 0
                if sent == len(part):
                    return
                parts = (memoryview(part)[sent:],)
            views = [memoryview(part) for part in parts if len(part)]
            while views:
                near = blocked is not None or deadline.remaining < _STEP
                try:
                    sent = self._sock.sendmsg(views[:_MAX_PARTS], (), socket.MSG_DONTWAIT if near else 0)
                except OSError as error:
                    self._blocked_or_raise(error)
                    if near:
                        self._wait_output(deadline, blocked)
                    continue
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]

    def _wait_output(self, deadline: Deadline, blocked: WhileBlocked | None) -> None:
        if deadline.expired:
            raise DeadlineExceeded(f"{self.peer}: the peer took nothing within {deadline.seconds:g} seconds")
        if blocked is None:
            self._poll(self._output, deadline)
        else:
            blocked(deadline)

    # -- both ------------------------------------------------------------------------------------

    def wait(self, deadline: Deadline, *, readable: bool, writable: bool) -> bool:
        if readable and self._low < self._high:
            return True
        poll = self._both if readable and writable else self._input if readable else self._output
        events = self._poll(poll, deadline)
        return any(mask & (select.POLLIN | select.POLLHUP | select.POLLERR) for _, mask in events)

    def _poll(self, poll: select.poll, deadline: Deadline) -> list[tuple[int, int]]:
        remaining = deadline.remaining
        # Rounded up: a poll that returns just before the deadline would only be repeated.
        return poll.poll(int(remaining * 1000) + 1 if remaining > 0 else 0)

    def _blocked_or_raise(self, error: OSError) -> None:
        if error.errno in _BLOCKED:
            return
        reason = error.strerror or str(error)
        raise self.lost(f"the connection broke: {reason}") from error

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def end_sending(self) -> None:
        """Tell the peer that no more will be sent; receiving goes on."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def reset_at_close(self) -> None:
        """Let :meth:`close` break the connection with a reset instead of ending it in order."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._sock.close()
