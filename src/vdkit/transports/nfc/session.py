"""A disk session: requests in flight on one stream, from any number of threads.

There is no thread of its own. Whoever waits for a reply becomes the receiver, hands out what comes to
whomever it belongs to, and passes the role on when its own replies are complete. A sender from whom the host
takes no more receives meanwhile, so that the two can never wait for each other.

A host that refuses a request (an ERROR record) ends only the call that made it; the session goes on. Every
other error ends the session: what follows on the stream could no longer be trusted. So does a request that
is the oldest in flight and gets nothing for as long as it allows, whatever comes for others.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from threading import get_ident
from typing import TYPE_CHECKING

from vdkit.errors import (
    Closed,
    ConnectionLost,
    DeadlineExceeded,
    HostOutOfMemory,
    ProtocolError,
    TransportError,
)
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, Stream
from vdkit.transports.nfc.host_errors import host_error, in_phase
from vdkit.transports.nfc.operations import Batch, Exchange, Leftover, Operation
from vdkit.transports.nfc.target import LAST_WORDS, MAX_IN_FLIGHT, Timeouts
from vdkit.wire.nfc import records
from vdkit.wire.nfc.limits import MAX_PAYLOAD
from vdkit.wire.nfc.records import Opcode

if TYPE_CHECKING:
    from vdkit.net.budget import Lease

#: Seconds after which a blocked sender looks whether the receiver's role has become free.
_TICK = 0.02
#: Refused requests for which something may still come.
_MAX_LEFTOVERS = 1024
#: A part cut off a request is a multiple of this, the largest sector.
_CUT = 4096
#: Of the silence that a request allows, what one wait may count at most: a stopped process is no stuck host.
_COUNTED = 0.25


class Session:
    """``where`` (``host:port``) and ``path`` are for messages. Owns the stream and the lease.

    ``lease`` holds the host's memory that requests in flight take: each is taken before it is sent and given
    back once it has been answered, refused or given up.
    """

    def __init__(
        self,
        stream: Stream,
        where: str,
        path: str,
        *,
        window: int,
        timeouts: Timeouts,
        lease: Lease | None = None,
    ) -> None:
        self._stream = stream
        self._where = where
        self._path = path
        self._window = window
        self._refill = window - max(1, window // 4)
        self._timeouts = timeouts
        self._lease = lease
        self._send_mutex = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._operations: dict[int, Operation] = {}
        self._leftovers: OrderedDict[int, Leftover] = OrderedDict()
        self._in_flight = 0
        self._starved = False
        self._waiting = 0
        self._sequence = 0
        #: The thread that receives, 0 for none.
        self._receiver = 0
        self._oldest = -1
        self._stalled = self._seen = 0.0
        self._failure: TransportError | None = None
        self._closed = False
        self._head = memoryview(bytearray(records.HEADER_SIZE))
        self._payload = memoryview(bytearray(MAX_PAYLOAD))
        self.limit_in_flight(MAX_IN_FLIGHT)

    def limit_in_flight(self, count: int) -> None:
        """At most so many bytes asked for and not come; a single request may be larger."""
        self._limit = count
        #: Bytes left in flight at which the window is filled up again.
        self._refill_bytes = count * 3 // 4

    # -- calls -----------------------------------------------------------------------------------

    def exchange(self, operation: Exchange) -> Exchange:
        """Send one request and wait for its reply. A refusal that is not fatal is left in the operation."""
        self.run(Batch(iter((operation,))))
        return operation

    def run(self, batch: Batch) -> None:
        """Carry out the operations, as many in flight as the window allows, and return when all are done.

        Returns early, with nothing in flight, once the host has refused one of them (``batch.refused``).
        """
        try:
            while (sending := batch.upcoming is not None and not batch.refused) or batch.pending:
                if sending:
                    self._send_some(batch)
                self._wait(batch, hungry=batch.upcoming is not None and not batch.refused)
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
            lease, self._lease = self._lease, None
            self._give_all(lease)
            self._closed = True
            self._changed.notify_all()
        self._stream.close()
        if lease is not None:
            lease.close()

    def await_twin(self, seconds: float) -> None:
        """Wait a little for the second reply that hosts send after they refused an OPEN."""
        deadline = Deadline.after(seconds)
        last = next(reversed(self._leftovers), None)
        while last in self._leftovers and not deadline.expired:
            self._receive(deadline)

    # -- sending ---------------------------------------------------------------------------------

    def _send_some(self, batch: Batch) -> None:
        """Send what the window has room for."""
        with self._send_mutex:
            heads: list[Readable] = []
            while not batch.refused and (sequence := self._admit(batch)) is not None:
                operation = batch.upcoming
                assert operation is not None
                # Passed on only now: an error leaves it in one place, with what is in flight.
                batch.advance()
                if operation.carries_data:
                    self._transmit(operation.parts(sequence))
                else:
                    heads += operation.parts(sequence)
            if heads:
                self._transmit(heads)

    def _transmit(self, parts: list[Readable]) -> None:
        deadline = Deadline.after(self._timeouts.write)
        try:
            self._stream.send(parts, deadline, self._receive_while_blocked)
        except ConnectionLost:
            self._hear_last_words()
            raise

    def _hear_last_words(self) -> None:
        """The host may have said why before it closed: that is the better error, whoever receives it."""
        deadline = Deadline.after(LAST_WORDS)
        with self._changed:
            while self._receiver and self._failure is None and not deadline.expired:
                self._changed.wait(deadline.remaining)
        if not self._take_role():
            return
        try:
            while self._failure is None:
                self._receive(deadline)
        finally:
            self._leave_role()

    def _admit(self, batch: Batch) -> int | None:
        """Register the upcoming operation and give it its sequence, or None if there is no room for it."""
        if batch.upcoming is None:
            return None
        with self._changed:
            self._check()
            operation = batch.upcoming
            full = len(self._operations) >= self._window or self._in_flight + operation.cost > self._limit
            if self._operations and full:
                return None
            if self._lease is not None and operation.cost and not self._borrow(batch, self._lease):
                return None
            sequence = self._sequence
            self._sequence = (sequence + 1) & 0xFFFFFFFF
            operation.batch = batch
            self._operations[sequence] = operation
            self._in_flight += operation.cost
            batch.pending[sequence] = operation
            return sequence

    def _borrow(self, batch: Batch, lease: Lease) -> bool:
        """Take the host's memory for the upcoming operation, of which less may be left than there was."""
        operation = batch.upcoming
        assert operation is not None
        if not lease.take(operation.cost):
            if self._in_flight:
                # What comes back with the next reply may be enough.
                self._starved = True
                return False
            # With nothing in flight the lease always grants its floor.
            floor = max(_CUT, lease.floor // _CUT * _CUT)
            if operation.cost > floor:
                batch.cut(floor)
            if not lease.take(operation.cost):
                operation.refused = HostOutOfMemory(
                    f"{self._where}: no memory of the host is left for a request of {operation.cost} bytes",
                    remedy="open fewer disks of this host at once",
                )
                batch.refused.append(operation)
                batch.advance()
                return False
        operation.lent = operation.cost
        return True

    def _give_back(self, operation: Operation, lease: Lease | None) -> None:
        if operation.lent and lease is not None:
            lease.give(operation.lent)
            self._starved = False
        operation.lent = 0

    def _give_all(self, lease: Lease | None) -> None:
        for operation in self._operations.values():
            self._give_back(operation, lease)
        self._operations.clear()
        self._in_flight = 0

    def _receive_while_blocked(self, deadline: Deadline) -> None:
        if not self._take_role():
            tick = Deadline.after(min(_TICK, deadline.remaining))
            self._stream.wait(tick, readable=False, writable=True)
            return
        try:
            if self._stream.wait(deadline, readable=True, writable=True):
                self._receive(self._patience())
        finally:
            self._leave_role()

    # -- receiving -------------------------------------------------------------------------------

    def _wait(self, batch: Batch, *, hungry: bool) -> None:
        """Return when all of this batch is done, or a ``hungry`` caller has room to send more."""
        with self._changed:
            while self._receiver:
                if self._satisfied(batch, hungry):
                    return
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            if self._satisfied(batch, hungry):
                return
            self._receiver = get_ident()
        try:
            while not self._satisfied(batch, hungry):
                self._receive(self._patience())
        finally:
            self._leave_role()

    def _satisfied(self, batch: Batch, hungry: bool) -> bool:
        self._check()
        if not hungry or batch.refused:
            return not batch.pending
        # Room for the very next one: who is sent back without it would ask again and nobody would receive.
        cost = 0 if batch.upcoming is None else batch.upcoming.cost
        return self._roomy() and (not self._operations or self._in_flight + cost <= self._limit)

    def _roomy(self) -> bool:
        """The window is filled up when a part of it has become free: a few requests cost one call."""
        return (
            len(self._operations) <= self._refill
            and self._in_flight <= self._refill_bytes
            and not self._starved
        )

    def _patience(self) -> Deadline:
        """A host may work on a write for longer than on a read: the oldest request decides.

        Raises DeadlineExceeded if it has got nothing for so long, though others were answered.
        """
        with self._changed:  # others send meanwhile, and a dictionary that grows cannot be walked
            sequence, oldest = next(iter(self._operations.items()), (-1, None))
        if oldest is None:
            return Deadline.after(self._timeouts.read)
        deadline = Deadline.after(oldest.seconds)
        now = deadline.at - oldest.seconds
        if sequence != self._oldest:
            self._oldest, self._stalled = sequence, 0.0
        else:
            self._stalled += min(now - self._seen, oldest.seconds * _COUNTED)
            if self._stalled >= oldest.seconds:
                raise DeadlineExceeded(
                    f"{self._where}: no reply came within {oldest.seconds:g} seconds, though others did"
                )
        self._seen = now
        return deadline

    def _take_role(self) -> bool:
        with self._changed:
            if self._receiver or self._failure is not None:
                return False
            self._receiver = get_ident()
            return True

    def _leave_role(self) -> None:
        with self._changed:
            self._receiver = 0
            self._changed.notify_all()

    def _receive(self, deadline: Deadline) -> bool:
        """Take one record; True if it completed an operation. Only ever one thread is in here."""
        operation: Operation | None = None
        try:
            self._stream.recv_exact(self._head, deadline)
            header = records.parse_header(self._head)
            operation = self._operations.get(header.sequence)
            if header.sequence == self._oldest:
                self._stalled = 0.0
            payload = self._payload[: header.length]
            if header.length:
                self._stream.recv_exact(payload, deadline)
            if operation is None:
                self._swallow(header, payload, deadline)
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
        self._leftovers[sequence] = operation.leftover()
        if len(self._leftovers) > _MAX_LEFTOVERS:
            self._leftovers.popitem(last=False)

    def _swallow(self, header: records.Header, payload: memoryview, deadline: Deadline) -> None:
        """A host may send the normal reply after an ERROR, or the chunks that it had ready: forget them."""
        leftover = self._leftovers.get(header.sequence)
        if leftover is None or header.opcode not in (leftover.opcode, Opcode.ERROR):
            raise ProtocolError(
                f"a record of opcode {header.opcode} answers no request (sequence {header.sequence})"
            )
        if leftover.swallow(header, payload, self._stream, deadline):
            del self._leftovers[header.sequence]

    def _complete(self, sequence: int, operation: Operation) -> None:
        with self._changed:
            if self._operations.pop(sequence, None) is None:
                return  # the session has failed meanwhile
            self._in_flight -= operation.cost
            if operation.lent:
                self._give_back(operation, self._lease)
            batch = operation.batch
            del batch.pending[sequence]
            if operation.refused is None:
                batch.answered += 1
            else:
                batch.refused.append(operation)
            if self._waiting and (not batch.pending or self._roomy()):
                self._changed.notify_all()

    # -- failing ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait for the receiver to give up: it must not fill a buffer of a call that has returned."""
        with self._changed:
            if self._receiver == get_ident():
                # Interrupted just after it took the role, or before it could pass it on.
                self._receiver = 0
                self._changed.notify_all()
            while self._receiver:
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
            self._give_all(self._lease)
            self._changed.notify_all()
        self._stream.abort()

    def _explain(self, error: BaseException, phase: str) -> TransportError:
        if isinstance(error, TransportError):
            return in_phase(error, self._where, phase)
        interrupted = ConnectionLost(f"{self._where}: given up after {type(error).__name__}")
        return in_phase(interrupted, self._where, phase)
