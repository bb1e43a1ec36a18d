"""One request of a disk session and what its replies do: the client's half of the records.

An operation is fed its records by whichever thread is receiving. It reads what follows a record straight into
the place where it belongs, and refuses what it did not ask for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

from vdkit.errors import HostError, ProtocolError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, Stream
from vdkit.wire.nfc import codecs, records
from vdkit.wire.nfc.assembly import Assembly, check_status, check_write_reply, fragments
from vdkit.wire.nfc.limits import MAX_TRAILER, bounded
from vdkit.wire.nfc.records import Direction, Io, Opcode

#: A part of a call: where on the disk, and the caller's bytes.
Piece = tuple[int, memoryview]


class Batch:
    """The operations of one call: those to come, those in flight, and those that the host refused.

    ``upcoming`` is the next to be sent. The session stops at the first refusal, and when it fails; what had
    not been done then is in :meth:`undone`.
    """

    __slots__ = ("_cut_off", "_operations", "answered", "pending", "refused", "upcoming")

    def __init__(self, operations: Iterator[Operation]) -> None:
        self._operations = operations
        self._cut_off: Operation | None = None
        self.upcoming = next(operations, None)
        self.pending: dict[int, Operation] = {}
        self.refused: list[Operation] = []
        self.answered = 0

    def advance(self) -> None:
        self.upcoming, self._cut_off = self._cut_off or next(self._operations, None), None

    def cut(self, size: int) -> None:
        """Leave the upcoming operation only its first ``size`` bytes; the rest comes next."""
        assert self.upcoming is not None and self._cut_off is None
        self._cut_off = self.upcoming.cut(size)

    def undone(self) -> list[Operation]:
        """Everything that was taken and not done, as far as it was cut off."""
        waiting = (self.upcoming, self._cut_off)
        return [*self.refused, *self.pending.values(), *(one for one in waiting if one is not None)]


#: Of an operation that has not been sent.
_NO_BATCH = Batch(iter(()))


class Leftover:
    """What may still come for a request that the host refused: at most ``room`` bytes in ``count`` records.

    It keeps no buffer of the caller, who has gone on: what comes is read and forgotten.
    """

    __slots__ = ("_count", "_follows", "_room", "opcode")

    def __init__(
        self, opcode: int, follows: Callable[[memoryview], int] | None, *, room: int, count: int
    ) -> None:
        self.opcode = opcode
        self._follows = follows
        self._room = room
        self._count = count

    def swallow(
        self, header: records.Header, payload: memoryview, stream: Stream, deadline: Deadline
    ) -> bool:
        """Take one late record. True if nothing more is to come."""
        if header.opcode == Opcode.ERROR:
            size = records.decode_error(payload).text_length
        else:
            size = self._follows(payload) if self._follows is not None else 0
            if size > self._room:
                raise ProtocolError(f"{size} bytes came for a request that had been refused")
            self._room -= size
        sink = memoryview(bytearray(min(size, 1 << 16)))
        while size > 0:
            part = sink[:size]
            stream.recv_exact(part, deadline)
            size -= len(part)
        self._count -= 1
        return self._count <= 0


class Operation(ABC):
    """``cost`` is the bytes it may bring or take, ``seconds`` the silence it allows.

    ``fatal`` says that an ERROR ends the session, ``carries_data`` that more than a few bytes are sent;
    ``lent`` is how many bytes of the host's memory were taken for it.
    """

    opcode = Opcode.IO
    cost = 0
    lent = 0
    fatal = False
    carries_data = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batch = _NO_BATCH
        self.refused: HostError | None = None

    @property
    @abstractmethod
    def phase(self) -> str:
        """What is being done, for messages: ``reading 512 bytes at offset 0``."""

    @abstractmethod
    def parts(self, sequence: int) -> list[Readable]:
        """What to send."""

    @abstractmethod
    def receive(self, stream: Stream, payload: memoryview, deadline: Deadline) -> bool:
        """Take one reply record, of which the payload has been read. True if it was the last."""

    @abstractmethod
    def leftover(self) -> Leftover:
        """What may still come once the host has refused it."""

    def cut(self, size: int) -> Operation:
        """Keep only the first ``size`` bytes; the operation for the rest is returned."""
        raise NotImplementedError(f"{self.phase}: has no parts")


class Exchange(Operation):
    """A request with a single reply, whose payload (and trailer) is kept."""

    def __init__(
        self,
        opcode: Opcode,
        phase: str,
        build: Callable[[int], bytes],
        trailer: Callable[[memoryview], int] | None = None,
        *,
        seconds: float,
        fatal: bool = True,
    ) -> None:
        super().__init__(seconds)
        self.opcode = opcode
        self._phase = phase
        self._build = build
        self._trailer = trailer
        self.fatal = fatal
        self.payload = b""
        self.trailer = b""

    @property
    def phase(self) -> str:
        return self._phase

    def parts(self, sequence: int) -> list[Readable]:
        return [self._build(sequence)]

    def receive(self, stream: Stream, payload: memoryview, deadline: Deadline) -> bool:
        self.payload = bytes(payload)
        length = self._trailer(payload) if self._trailer else 0
        data = bytearray(bounded(length, MAX_TRAILER, "a trailer"))
        stream.recv_exact(memoryview(data), deadline)
        self.trailer = bytes(data)
        return True

    def leftover(self) -> Leftover:
        """Hosts send the normal reply too, with nothing in it."""
        return Leftover(self.opcode, self._trailer, room=MAX_TRAILER, count=1)


class DataOperation(Operation):
    """A read into or a write of ``view``, at ``offset`` (bytes) of the disk."""

    def __init__(
        self, handle: int, offset: int, view: memoryview, compression: int, *, seconds: float
    ) -> None:
        super().__init__(seconds)
        self._handle = handle
        self._offset = offset
        self._compression = compression
        self._take(view)

    def _take(self, view: memoryview) -> None:
        self._view = view
        self.cost = len(view)

    @property
    def piece(self) -> Piece:
        return self._offset, self._view

    @abstractmethod
    def _like(self, offset: int, view: memoryview) -> Self:
        """The same for another piece."""

    def cut(self, size: int) -> Operation:
        rest = self._like(self._offset + size, self._view[size:])
        self._take(self._view[:size])
        return rest

    def leftover(self) -> Leftover:
        """Late chunks, a twin reply, an ERROR per fragment: no more records than there could be sectors."""
        return Leftover(self.opcode, _wire_of, room=2 * self.cost, count=2 + self.cost // 512)


def _wire_of(payload: memoryview) -> int:
    return records.decode_io(payload).wire


class Meter:
    """Counts the bytes of data that came over the wire. Only one thread receives at a time."""

    __slots__ = ("scratch", "wire")

    def __init__(self) -> None:
        self.wire = 0
        #: One buffer serves all, for the same reason.
        self.scratch = bytearray()


class ReadOperation(DataOperation):
    """A read into ``view``: chunks in any order, placed where they belong."""

    def __init__(
        self,
        handle: int,
        offset: int,
        view: memoryview,
        compression: int,
        meter: Meter,
        *,
        seconds: float,
    ) -> None:
        super().__init__(handle, offset, view, compression, seconds=seconds)
        self._meter = meter
        self._assembly: Assembly | None = None

    def _take(self, view: memoryview) -> None:
        super()._take(view)
        size = self.cost
        #: The one chunk that most often is all of the answer.
        self._whole = Io(0, Direction.READ, 0, self._offset, size, 0, size, size)

    def _like(self, offset: int, view: memoryview) -> Self:
        return type(self)(self._handle, offset, view, self._compression, self._meter, seconds=self.seconds)

    @property
    def phase(self) -> str:
        return f"reading {self.cost} bytes at offset {self._offset}"

    def parts(self, sequence: int) -> list[Readable]:
        return [records.encode_read(sequence, self._handle, self._offset, self.cost, self._compression)]

    def receive(self, stream: Stream, payload: memoryview, deadline: Deadline) -> bool:
        chunk = records.decode_io(payload)
        if self._assembly is None:
            if chunk == self._whole:
                stream.recv_exact(self._view, deadline)
                self._meter.wire += self.cost
                return True
            self._assembly = Assembly(Direction.READ, self._offset, self.cost)
        check_status(chunk)
        self._assembly.check(chunk)
        target = self._view[chunk.start : chunk.start + chunk.length]
        if chunk.compression == codecs.Compression.NONE:
            stream.recv_exact(target, deadline)
        else:
            self._decode(stream, chunk, target, deadline)
        self._meter.wire += chunk.wire
        self._assembly.note(chunk.start, chunk.length)
        return self._assembly.complete

    def _decode(self, stream: Stream, chunk: Io, target: memoryview, deadline: Deadline) -> None:
        if chunk.compression != self._compression:
            raise ProtocolError(f"a chunk has compression {chunk.compression}, which was not asked for")
        size = bounded(chunk.wire, MAX_TRAILER, "a compressed chunk")
        meter = self._meter
        if len(meter.scratch) < size:
            meter.scratch.extend(bytes(size - len(meter.scratch)))
        with memoryview(meter.scratch) as scratch:
            stream.recv_exact(scratch[:size], deadline)
            codecs.decode_into(chunk.compression, scratch[:size], target)


class WriteOperation(DataOperation):
    """A write of ``view``, in fragments of at most ``fragment`` bytes, answered once."""

    carries_data = True

    def __init__(
        self,
        handle: int,
        offset: int,
        view: memoryview,
        compression: int,
        fragment: int,
        *,
        seconds: float,
    ) -> None:
        super().__init__(handle, offset, view, compression, seconds=seconds)
        self._fragment = fragment

    def _like(self, offset: int, view: memoryview) -> Self:
        return type(self)(self._handle, offset, view, self._compression, self._fragment, seconds=self.seconds)

    @property
    def phase(self) -> str:
        return f"writing {self.cost} bytes at offset {self._offset}"

    def parts(self, sequence: int) -> list[Readable]:
        made: list[Readable] = []
        for start, length in fragments(self.cost, self._fragment):
            code, data = codecs.encode(self._compression, self._view[start : start + length])
            head = Io(self._handle, Direction.WRITE, code, self._offset, self.cost, start, length, len(data))
            made += (records.encode_io(sequence, head), data)
        return made

    def receive(self, stream: Stream, payload: memoryview, deadline: Deadline) -> bool:
        del stream, deadline  # nothing follows
        check_write_reply(records.decode_io(payload), self._offset, self.cost)
        return True
