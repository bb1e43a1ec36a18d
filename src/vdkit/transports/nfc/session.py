"""A disk session: requests in flight on one stream, from any number of threads.

There is no thread of its own. Whoever waits for a reply becomes the receiver, hands out what comes to
whomever it belongs to, and passes the role on when its own replies are complete. A sender from whom the host
takes no more receives meanwhile, so that the two can never wait for each other.

The first error ends the session: what follows on the stream could no longer be trusted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from vdkit.errors import Closed, ConnectionLost, ProtocolError, TransportError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, Stream
from vdkit.transports.nfc.host_errors import host_error, in_phase
from vdkit.transports.nfc.operations import Batch, Exchange, Operation
from vdkit.transports.nfc.target import MAX_IN_FLIGHT, Timeouts
from vdkit.wire.nfc import records
from vdkit.wire.nfc.limits import MAX_PAYLOAD
from vdkit.wire.nfc.records import Opcode

#: Seconds after which a blocked sender looks whether the receiver's role has become free.
_TICK = 0.02
#: Refused requests whose usual second reply may still come.
_MAX_TWINS = 16
#: Seconds that a host that has closed is listened to, for an ERROR it may have sent before.
_LAST_WORDS = 1.0
#: Bytes left in flight at which the window is filled up again.
_REFILL_BYTES = MAX_IN_FLIGHT * 3 // 4


class Session:
    """``where`` (``host:port``) and ``path`` are for messages. Owns the stream."""

    def __init__(self, stream: Stream, where: str, path: str, *, window: int, timeouts: Timeouts) -> None:
        self._stream = stream
        self._where = where
        self._path = path
        self._window = window
        self._refill = window - max(1, window // 4)
        self._timeouts = timeouts
        self._send_mutex = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._operations: dict[int, Operation] = {}
        self._twins: deque[tuple[int, Operation]] = deque(maxlen=_MAX_TWINS)
        self._in_flight = 0
        self._waiting = 0
        self._sequence = 0
        self._receiving = False
        self._failure: TransportError | None = None
        self._closed = False
        self._head = memoryview(bytearray(records.HEADER_SIZE))
        self._payload = memoryview(bytearray(MAX_PAYLOAD))

    # -- calls -----------------------------------------------------------------------------------

    def exchange(self, operation: Exchange) -> Exchange:
        """Send one request and wait for its reply. A refusal that is not fatal is left in the operation."""
        self.run(iter((operation,)))
        return operation

    def run(self, operations: Iterator[Operation]) -> None:
        """Carry out the operations, as many in flight as the window allows, and return when all are done."""
        batch = Batch()
        upcoming = next(operations, None)
        try:
            while upcoming is not None or batch.pending:
                if upcoming is not None:
                    upcoming = self._send_some(batch, upcoming, operations)
                self._wait(batch, hungry=upcoming is not None)
        except TransportError as error:
            self._fail(error)
            self._settle()
            told = self._raised()
            if error.message == told.message:
                raise
            raise told from error
        except BaseException as error:
            self._fail(error)
            self._settle()
            raise

    @property
    def failure(self) -> TransportError | None:
        """The error that ended the session, if one did."""
        return self._failure

    def close(self) -> None:
        with self._changed:
            self._closed = True
        self._stream.close()

    def await_twin(self, seconds: float) -> None:
        """Wait a little for the second reply that hosts send after they refused an OPEN."""
        deadline = Deadline.after(seconds)
        while self._twins and not deadline.expired:
            self._receive(deadline)

    # -- sending ---------------------------------------------------------------------------------

    def _send_some(
        self, batch: Batch, upcoming: Operation, operations: Iterator[Operation]
    ) -> Operation | None:
        """Send what the window has room for; the first operation that it has none for is returned."""
        following: Operation | None = upcoming
        with self._send_mutex:
            heads: list[Readable] = []
            while following is not None:
                sequence = self._admit(batch, following)
                if sequence is None:
                    break
                if following.carries_data:
                    self._transmit(following.parts(sequence))
                else:
                    heads += following.parts(sequence)
                following = next(operations, None)
            if heads:
                self._transmit(heads)
        return following

    def _transmit(self, parts: list[Readable]) -> None:
        deadline = Deadline.after(self._timeouts.write)
        try:
            self._stream.send(parts, deadline, self._receive_while_blocked)
        except ConnectionLost:
            # The host may have said why before it closed: that is the better error.
            if self._take_role():
                try:
                    self._drain()
                finally:
                    self._leave_role()
            raise

    def _drain(self) -> None:
        deadline = Deadline.after(_LAST_WORDS)
        while self._failure is None:
            self._receive(deadline)

    def _admit(self, batch: Batch, operation: Operation) -> int | None:
        """Register an operation and give it its sequence, or None if the window is full."""
        with self._changed:
            self._check()
            full = len(self._operations) >= self._window or self._in_flight + operation.cost > MAX_IN_FLIGHT
            if self._operations and full:
                return None
            sequence = self._sequence
            self._sequence = (sequence + 1) & 0xFFFFFFFF
            operation.batch = batch
            self._operations[sequence] = operation
            self._in_flight += operation.cost
            batch.pending += 1
            return sequence

    def _receive_while_blocked(self, deadline: Deadline) -> None:
        if not self._take_role():
            tick = Deadline.after(min(_TICK, deadline.remaining))
            self._stream.wait(tick, readable=False, writable=True)
            return
        try:
            if self._stream.wait(deadline, readable=True, writable=True):
                self._receive(Deadline.after(self._timeouts.read))
        finally:
            self._leave_role()

    # -- receiving -------------------------------------------------------------------------------

    def _wait(self, batch: Batch, *, hungry: bool) -> None:
        """Return when all of this batch is done, or a ``hungry`` caller has room to send more."""
        with self._changed:
            while self._receiving:
                if self._satisfied(batch, hungry):
                    return
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            if self._satisfied(batch, hungry):
                return
            self._receiving = True
        try:
            while not self._satisfied(batch, hungry):
                self._receive(self._patience())
        finally:
            self._leave_role()

    def _satisfied(self, batch: Batch, hungry: bool) -> bool:
        self._check()
        return self._roomy() if hungry else batch.pending == 0

    def _roomy(self) -> bool:
        """The window is filled up when a part of it has become free: a few requests cost one call."""
        return len(self._operations) <= self._refill and self._in_flight <= _REFILL_BYTES

    def _patience(self) -> Deadline:
        """A host may work on a write for longer than on a read: the oldest request decides."""
        with self._changed:  # others send meanwhile, and a dictionary that grows cannot be walked
            oldest = next(iter(self._operations.values()), None)
        return Deadline.after(oldest.seconds if oldest else self._timeouts.read)

    def _take_role(self) -> bool:
        with self._changed:
            if self._receiving or self._failure is not None:
                return False
            self._receiving = True
            return True

    def _leave_role(self) -> None:
        with self._changed:
            self._receiving = False
            self._changed.notify_all()

    def _receive(self, deadline: Deadline) -> bool:
        """Take one record; True if it completed an operation. Only ever one thread is in here."""
        operation: Operation | None = None
        try:
            self._stream.recv_exact(self._head, deadline)
            header = records.parse_header(self._head)
            operation = self._operations.get(header.sequence)
            payload = self._payload[: header.length]
            if header.length:
                self._stream.recv_exact(payload, deadline)
            if operation is None:
                self._drop_twin(header, payload, deadline)
                return False
            if header.opcode == Opcode.ERROR:
                self._refuse(operation, header.sequence, payload, deadline)
            elif header.opcode != operation.opcode:
                raise ProtocolError(f"a record of opcode {header.opcode} answers one of {operation.opcode:d}")
            elif not operation.receive(self._stream, payload, deadline):
                return False
            self._complete(header.sequence, operation)
            return True
        except TransportError as error:
            self._fail(error, operation)
            raise self._raised() from error
        except BaseException as error:
            # Given up in the middle of a record: what follows can no longer be told apart.
            self._fail(error, operation)
            raise

    def _refuse(self, operation: Operation, sequence: int, payload: memoryview, deadline: Deadline) -> None:
        code, length = records.decode_error(payload)
        text = bytearray(length)
        self._stream.recv_exact(memoryview(text), deadline)
        refused = host_error(self._where, code, text.decode("utf-8", "replace"))
        if operation.fatal:
            raise refused
        operation.refused = refused
        self._twins.append((sequence, operation))

    def _drop_twin(self, header: records.Header, payload: memoryview, deadline: Deadline) -> None:
        """A host may send the normal reply after an ERROR, with nothing in it: read it and forget it."""
        for twin in self._twins:
            sequence, operation = twin
            if sequence == header.sequence and operation.opcode == header.opcode:
                self._twins.remove(twin)
                operation.receive(self._stream, payload, deadline)
                return
        raise ProtocolError(
            f"a record of opcode {header.opcode} answers no request (sequence {header.sequence})"
        )

    def _complete(self, sequence: int, operation: Operation) -> None:
        with self._changed:
            if self._operations.pop(sequence, None) is None:
                return  # the session has failed meanwhile
            self._in_flight -= operation.cost
            operation.batch.pending -= 1
            if self._waiting and (operation.batch.pending == 0 or self._roomy()):
                self._changed.notify_all()

    # -- failing ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait for the receiver to give up: it must not fill a buffer of a call that has returned."""
        with self._changed:
            while self._receiving:
                self._changed.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._raised()
        if self._closed:
            raise Closed(f"{self._where} {self._path}: closed")

    def _raised(self) -> TransportError:
        """A fresh copy of the failure: one exception raised in several threads would mix its tracebacks."""
        failure = self._failure
        assert failure is not None
        return type(failure)(failure.message, remedy=failure.remedy)

    def _fail(self, error: BaseException, operation: Operation | None = None) -> None:
        with self._changed:
            if self._failure is None:
                oldest = operation or next(iter(self._operations.values()), None)
                phase = oldest.phase if oldest else "between requests"
                self._failure = self._explain(error, f"while {phase} (disk {self._path})")
            self._operations.clear()
            self._changed.notify_all()
        self._stream.abort()

    def _explain(self, error: BaseException, phase: str) -> TransportError:
        if isinstance(error, TransportError):
            return in_phase(error, self._where, phase)
        interrupted = ConnectionLost(f"{self._where}: given up after {type(error).__name__}")
        return in_phase(interrupted, self._where, phase)
