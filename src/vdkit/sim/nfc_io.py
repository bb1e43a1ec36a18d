"""Reads and writes of one connection of the data port."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import ProtocolError, VixError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Stream
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger
from vdkit.sim.nfc_outlet import Outlet
from vdkit.sim.nfc_spoil import Chunk, spoiled
from vdkit.sim.ports import CODE_DENIED, CODE_DISK, CODE_NO_MEMORY
from vdkit.wire.nfc import codecs, records
from vdkit.wire.nfc.assembly import Assembly, fragments
from vdkit.wire.nfc.limits import DEFAULT_HELLO_BUFFER, MAX_SERVED_REQUEST, bounded
from vdkit.wire.nfc.records import IO_HEAD, Direction, Io

#: Seconds that the data of a write may take once its head has come.
DATA_TIMEOUT = 600.0
#: Called before the last chunk of an answer is sent: who has it may ask for more at once.
Done = Callable[[], None] | None
#: Writes of which some fragments have come and others have not.
MAX_OPEN_WRITES = 64


class IoError(Exception):
    """An IO request is answered with an ERROR record."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def no_memory(size: int) -> IoError:
    """The refusal of a request of ``size`` bytes: hosts name that much and 24."""
    return IoError(CODE_NO_MEMORY, f"Failed to allocate the requested {size + 24} bytes")


def overlaps(ranges: Iterable[tuple[int, int]], offset: int, length: int) -> bool:
    """True if one of the ranges (offset and length) shares a byte with that area."""
    return any(start < offset + length and offset < start + size for start, size in ranges)


class Reads:
    """Answers reads in chunks of the size that HELLO agreed on."""

    def __init__(
        self, outlet: Outlet, faults: NfcFaults, between: Callable[[float], None] | None = None
    ) -> None:
        """``between`` is called between two chunks, and while a read waits: the moment to see what else
        comes within so many seconds.
        """
        self._between = between
        self._outlet = outlet
        self._faults = faults
        self._healthy = faults == NfcFaults()
        self._buffer = memoryview(bytearray())
        self._count = 0
        self.chunk_size = DEFAULT_HELLO_BUFFER

    def serve(self, device: BlockDevice, sequence: int, request: Io, done: Done = None) -> None:
        """The whole answer. Raises IoError."""
        self.check(device, request)
        parts = self.parts(request)
        last = parts[-1][0]
        for start, length in parts:
            self.chunk(device, sequence, request, start, length, done if start == last else None)
            if self._between is not None:
                self._between(0.0)

    def wait(self) -> bool:
        """A read's turn has come: let it wait if it is a slow one. False if it is never answered."""
        faults = self._faults
        self._count += 1
        if faults.stuck_reads_every is not None and self._count % faults.stuck_reads_every == 0:
            return False
        if faults.slow_reads and self._count % faults.slow_reads_every == 0:
            deadline = Deadline.after(faults.slow_reads)
            if self._between is not None:
                self._between(faults.slow_reads)
            self._outlet.pause(deadline.remaining)
        return True

    def check(self, device: BlockDevice, request: Io) -> None:
        """Raises IoError for a request that is not to be answered with data."""
        faults = self._faults
        if faults.read_error is not None:
            raise IoError(*faults.read_error)
        if faults.no_memory_over is not None and request.total > faults.no_memory_over:
            raise no_memory(request.total)
        if request.total > MAX_SERVED_REQUEST or request.start or not request.total:
            raise IoError(CODE_DISK, f"NfcAioReadFile: a read of {request.total} bytes")
        if request.offset + request.total > device.capacity:
            raise IoError(CODE_DISK, "NfcAioReadFile: the range is outside the disk")
        if overlaps(faults.read_error_ranges, request.offset, request.total):
            raise IoError(CODE_DISK, "NfcAioReadFile failed: Input/output error")

    def parts(self, request: Io) -> list[tuple[int, int]]:
        """Start and length of each chunk of an answer, in the order of sending."""
        parts = list(fragments(request.total, self._faults.chunk_size or self.chunk_size))
        if self._faults.chunks_reversed:
            parts.reverse()
        return parts

    def chunk(
        self,
        device: BlockDevice,
        sequence: int,
        request: Io,
        start: int,
        length: int,
        done: Done = None,
    ) -> None:
        if len(self._buffer) < IO_HEAD + length:
            self._buffer = memoryview(bytearray(IO_HEAD + max(length, self.chunk_size)))
        view = self._buffer[IO_HEAD : IO_HEAD + length]
        try:
            device.read_into(request.offset + start, view)
            code, data = codecs.encode(request.compression, view)
        except VixError as error:
            raise IoError(CODE_DISK, f"NfcAioReadFile failed: {error}") from error
        if done is not None:
            done()
        head = Io(0, Direction.READ, code, request.offset, request.total, start, length, len(data))
        if not self._healthy:
            self._faulty(Chunk(sequence, head, data), request.compression)
        elif code == codecs.Compression.NONE:
            # Head and data in one buffer: one system call, one TLS write, no copy.
            records.pack_io_into(self._buffer, sequence, head)
            self._outlet.send((self._buffer[: IO_HEAD + length],))
        else:
            self._outlet.send((records.encode_io(sequence, head), data))

    def _faulty(self, chunk: Chunk, asked: int) -> None:
        for record, data in spoiled(chunk, asked, self._faults):
            if self._faults.chunk_cut:
                self._outlet.send((record, data[: len(data) // 2]))
                self._outlet.cut()
            self._outlet.send((record, data))


class Writes:
    """Takes the fragments of writes; the reply goes out when the last one has been written.

    A write holds its memory in the ``ledger`` (None: not counted) from its first fragment until then.
    """

    def __init__(
        self, stream: Stream, outlet: Outlet, faults: NfcFaults, ledger: Ledger | None = None
    ) -> None:
        self._ledger = ledger
        self._stream = stream
        self._outlet = outlet
        self._faults = faults
        self._buffer = memoryview(bytearray())
        self._plain = memoryview(bytearray())
        #: None: refused already, the rest of its fragments is dropped.
        self._open: dict[int, Assembly | None] = {}
        self.fragment_size = DEFAULT_HELLO_BUFFER

    def take(self, device: BlockDevice | None, sequence: int, fragment: Io) -> None:
        """``device`` None: nothing is open under the handle; the data is read all the same."""
        size = bounded(fragment.wire, self.fragment_size, "a fragment")
        bounded(fragment.length, self.fragment_size, "a fragment")
        if len(self._buffer) < self.fragment_size:
            self._buffer = memoryview(bytearray(self.fragment_size))
            self._plain = memoryview(bytearray(self.fragment_size))
        wire = self._buffer[:size]
        self._stream.recv_exact(wire, Deadline.after(DATA_TIMEOUT))
        assembly = self._assembly(sequence, fragment)
        if assembly is None:
            self._forget(sequence, fragment)
            return
        assembly.check(fragment)
        try:
            self._write(device, fragment, wire)
        except IoError:
            self._refuse(sequence, fragment)
            self._give(assembly)
            raise
        assembly.note(fragment.start, fragment.length)
        if assembly.complete:
            del self._open[sequence]
            self._give(assembly)
            total = self._faults.write_reply_total
            self._reply(sequence, fragment.total if total is None else total)

    def _assembly(self, sequence: int, fragment: Io) -> Assembly | None:
        if sequence not in self._open:
            if len(self._open) >= MAX_OPEN_WRITES:
                raise ProtocolError(f"{self._stream.peer}: more than {MAX_OPEN_WRITES} unfinished writes")
            bounded(fragment.total, MAX_SERVED_REQUEST, "a write")
            if self._ledger is not None and not self._ledger.take(fragment.total):
                self._refuse(sequence, fragment)
                raise no_memory(fragment.total)
            self._open[sequence] = Assembly(Direction.WRITE, fragment.offset, fragment.total)
        return self._open[sequence]

    def _give(self, assembly: Assembly) -> None:
        if self._ledger is not None:
            self._ledger.give(assembly.total)

    def close(self) -> None:
        """The session has ended, whatever had come."""
        for assembly in self._open.values():
            if assembly is not None:
                self._give(assembly)
        self._open.clear()

    def _refuse(self, sequence: int, fragment: Io) -> None:
        self._open[sequence] = None
        self._forget(sequence, fragment)

    def _forget(self, sequence: int, fragment: Io) -> None:
        """Clients send fragments in order, so a refused write is over with its last one."""
        if fragment.start + fragment.length >= fragment.total:
            self._open.pop(sequence, None)

    def _write(self, device: BlockDevice | None, fragment: Io, wire: memoryview) -> None:
        if self._faults.write_error is not None:
            raise IoError(*self._faults.write_error)
        if device is None:
            raise IoError(CODE_DISK, "NfcAioWriteFile: no file is open under this handle")
        if not device.writable or not isinstance(device, WritableDevice):
            raise IoError(CODE_DENIED, "NfcAioWriteFile: the file is open for reading only")
        if overlaps(self._faults.write_error_ranges, fragment.offset, fragment.total):
            raise IoError(CODE_DISK, "NfcAioWriteFile failed: Input/output error")
        data = wire
        if fragment.compression != codecs.Compression.NONE:
            data = self._plain[: fragment.length]
            codecs.decode_into(fragment.compression, wire, data)
        try:
            device.write_from(fragment.offset + fragment.start, data)
        except VixError as error:
            raise IoError(CODE_DISK, f"NfcAioWriteFile failed: {error}") from error

    def _reply(self, sequence: int, total: int) -> None:
        self._outlet.send((records.encode_io(sequence, Io(0, Direction.WRITE, 0, 0, total, 0, total, 0)),))
