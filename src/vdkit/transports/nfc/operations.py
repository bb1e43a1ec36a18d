"""One request of a disk session and what its replies do: the client's half of the records.

An operation is fed its records by whichever thread is receiving. It reads what follows a record straight into
the place where it belongs, and refuses what it did not ask for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from vdkit.errors import HostError, ProtocolError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Readable, Stream
from vdkit.wire.nfc import codecs, records
from vdkit.wire.nfc.assembly import Assembly, check_status, check_write_reply, fragments
from vdkit.wire.nfc.limits import MAX_TRAILER, bounded
from vdkit.wire.nfc.records import Direction, Io, Opcode


class Batch:
    """The operations that one call has in flight."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending = 0


#: Of an operation that has not been sent.
_NO_BATCH = Batch()


class Operation(ABC):
    """``cost`` is the bytes it may bring or take, ``seconds`` the silence it allows.

    ``fatal`` says that an ERROR ends the session, ``carries_data`` that more than a few bytes are sent.
    """

    opcode = Opcode.IO
    cost = 0
    fatal = True
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


class ReadOperation(Operation):
    """A read into ``view``: chunks in any order, placed where they belong."""

    def __init__(
        self,
        handle: int,
        offset: int,
        view: memoryview,
        compression: int,
        scratch: bytearray,
        *,
        seconds: float,
    ) -> None:
        super().__init__(seconds)
        self.cost = len(view)
        self._handle = handle
        self._offset = offset
        self._view = view
        self._compression = compression
        self._scratch = scratch
        #: The one chunk that most often is all of the answer.
        self._whole = Io(0, Direction.READ, 0, offset, self.cost, 0, self.cost, self.cost)
        self._assembly: Assembly | None = None

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
                return True
            self._assembly = Assembly(Direction.READ, self._offset, self.cost)
        check_status(chunk)
        self._assembly.check(chunk)
        target = self._view[chunk.start : chunk.start + chunk.length]
        if chunk.compression == codecs.Compression.NONE:
            stream.recv_exact(target, deadline)
        else:
            self._decode(stream, chunk, target, deadline)
        self._assembly.note(chunk.start, chunk.length)
        return self._assembly.complete

    def _decode(self, stream: Stream, chunk: Io, target: memoryview, deadline: Deadline) -> None:
        if chunk.compression != self._compression:
            raise ProtocolError(f"a chunk has compression {chunk.compression}, which was not asked for")
        size = bounded(chunk.wire, MAX_TRAILER, "a compressed chunk")
        # One scratch buffer serves all: only one thread receives at a time.
        if len(self._scratch) < size:
            self._scratch.extend(bytes(size - len(self._scratch)))
        with memoryview(self._scratch) as scratch:
            stream.recv_exact(scratch[:size], deadline)
            codecs.decode_into(chunk.compression, scratch[:size], target)


class WriteOperation(Operation):
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
        super().__init__(seconds)
        self.cost = len(view)
        self._handle = handle
        self._offset = offset
        self._view = view
        self._compression = compression
        self._fragment = fragment

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
