"""A disk session of the data port: records in, records out (NFC specification, sections 8 to 12 and 16)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import ExtentKind
from vdkit.errors import ProtocolError, TransportError, VixError
from vdkit.net.deadline import Deadline
from vdkit.net.stream import Stream
from vdkit.net.tls import TlsStream
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_intake import RECORD_TIMEOUT, CountingIntake, Intake, Record
from vdkit.sim.nfc_io import IoError, Reads, Writes, no_memory
from vdkit.sim.nfc_ledger import Ledger
from vdkit.sim.nfc_outlet import Outlet
from vdkit.sim.ports import CODE_DISK, CODE_NO_MEMORY, DiskDatabase, Grant, Refusal
from vdkit.wire.nfc import records
from vdkit.wire.nfc.limits import (
    MAX_ERROR_TEXT,
    MAX_HELLO_BUFFER,
    MAX_HELLO_TOTAL,
    MAX_MAP_CHUNKS,
)
from vdkit.wire.nfc.records import Direction, Header, Io, MapRequest, Opcode, OpenReply

_log = logging.getLogger(__name__)
#: Disks open at once in one session.
MAX_OPEN = 16
#: Handles of hosts look like this: 32 bits, sign-extended.
_FIRST_HANDLE = 0xFFFFFFFF80002A1F
#: Seconds in which requests that come together are collected (faults: newest first, shuffled), and how many
#: at most.
_COLLECT = 0.2
_COLLECT_TO_SHUFFLE = 0.005
_TOGETHER = 64
#: Socket buffers that ESXi 8 answers SOCKOPTS with.
_SOCKET_BUFFER = 1675000
_HEADS, _SECTORS = 255, 63


class DiskSession:
    """Serves one client until END, or until the connection breaks. Closes its disks."""

    def __init__(
        self,
        stream: Stream,
        outlet: Outlet,
        grant: Grant,
        faults: NfcFaults,
        ledger: Ledger,
        on_read: Callable[[Grant], None] | None = None,
    ) -> None:
        self._stream = stream
        self._outlet = outlet
        self._grant = grant
        self._faults = faults
        self._ledger = ledger
        self._on_read = on_read
        self._intake = CountingIntake(stream, ledger) if ledger.counting else Intake(stream)
        self._disks: dict[int, tuple[str, BlockDevice]] = {}
        self._next_handle = _FIRST_HANDLE
        self._reads = Reads(outlet, faults, self._intake.look_ahead if ledger.counting else None)
        self._writes = Writes(stream, outlet, faults, ledger if ledger.counting else None)
        self._waiting: list[tuple[Record, Io]] = []
        self._collects = faults.newest_first or faults.chunks_shuffled is not None
        self._random = random.Random(faults.chunks_shuffled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._intake.close()
        self._writes.close()
        while self._disks:
            _, (path, device) = self._disks.popitem()
            try:
                device.close()
            except VixError as failure:
                _log.warning("%s: closing failed: %s", path, failure)

    def run(self) -> None:
        while self._serve_one():
            pass
        if isinstance(self._stream, TlsStream):
            self._stream.close_notify(Deadline.after(1))

    def _serve_one(self) -> bool:
        """Take one record; False after END."""
        if self._waiting and self._all_together():
            self._answer_together()
        record = self._intake.next()
        header, payload, _ = record
        match header.opcode:
            case Opcode.IO:
                self._io(record)
            case Opcode.HELLO:
                self._hello(header, payload)
            case Opcode.SOCKOPTS:
                self._sockopts(header, payload)
            case Opcode.RESPOOL:
                self._echo_zero(header)
            case Opcode.OPEN:
                self._open(header, payload)
            case Opcode.CLOSE:
                self._close(header, payload)
            case Opcode.DDB_GET:
                self._ddb_get(header, payload)
            case Opcode.MAP:
                self._map(header, payload)
            case Opcode.END:
                self._echo_zero(header)
                return False
            case _:
                # What follows an unknown record cannot be told: the connection ends here.
                raise ProtocolError(f"{self._stream.peer}: a record of the unknown opcode {header.opcode}")
        return True

    # -- answers ---------------------------------------------------------------------------------

    def _send(self, record: bytes) -> None:
        self._outlet.send((record,))

    def _error(self, sequence: int, code: int, text: str) -> None:
        record = bytearray(records.encode_error(sequence, code, text))
        if self._faults.error_text_too_long:
            record[28:32] = (MAX_ERROR_TEXT + 1).to_bytes(4, "little")
        self._send(bytes(record))

    def _echo_zero(self, header: Header) -> None:
        """The same opcode, sequence and payload length, all zero."""
        self._send(records.record(header.opcode, header.sequence, bytes(header.length)))

    def _trailer(self, length: int) -> bytes:
        data = bytearray(length)
        self._stream.recv_exact(memoryview(data), Deadline.after(RECORD_TIMEOUT))
        return bytes(data)

    def _disk(self, handle: int) -> BlockDevice:
        found = self._disks.get(handle)
        if found is None:
            raise IoError(CODE_DISK, "NfcAio: no file is open under this handle")
        return found[1]

    # -- session ---------------------------------------------------------------------------------

    def _hello(self, header: Header, payload: memoryview) -> None:
        hello = records.decode_hello(payload)
        size = hello.effective_size
        too_much = size > MAX_HELLO_BUFFER or size * max(1, hello.buffer_count) > MAX_HELLO_TOTAL
        together = size * max(1, hello.buffer_count)
        if not self._ledger.fits(together):
            too_much, size = True, together
        if too_much or (self._faults.hello_refused and hello.buffer_size):
            self._error(header.sequence, CODE_NO_MEMORY, f"Failed to allocate the requested {size} bytes")
            if self._faults.hello_twin:
                self._echo_zero(header)
            return
        self._reads.chunk_size = size
        self._writes.fragment_size = size
        self._echo_zero(header)

    def _sockopts(self, header: Header, payload: memoryview) -> None:
        asked = records.decode_sockopts(payload)
        self._send(
            records.encode_sockopts(
                header.sequence,
                asked.send_buffer or _SOCKET_BUFFER,
                asked.receive_buffer or _SOCKET_BUFFER,
                1,
            )
        )

    def _open(self, header: Header, payload: memoryview) -> None:
        request = records.decode_open(payload)
        try:
            path = self._trailer(request.path_length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProtocolError(f"{self._stream.peer}: a path is not UTF-8") from error
        try:
            device = self._granted(path, writable=request.writable)
        except Refusal as refusal:
            self._error(header.sequence, refusal.code, refusal.text)
            if not self._faults.open_without_twin:
                # Hosts send both; the zeroes of the second mean nothing.
                self._send(records.record(Opcode.OPEN, header.sequence, bytes(records.OPEN_SIZE)))
            return
        handle = self._next_handle
        self._next_handle = (handle + 1) & 0xFFFFFFFFFFFFFFFF
        self._disks[handle] = (path, device)
        faults = self._faults
        capacity = device.capacity if faults.open_capacity is None else faults.open_capacity
        sector = (
            faults.open_sector_size if faults.open_sector_size is not None else max(512, device.sector_size)
        )
        cylinders = min(capacity // (sector * _HEADS * _SECTORS), 0xFFFFFFFF) if sector else 0
        reply = OpenReply(
            faults.open_status,
            handle,
            faults.open_file_type,
            request.flags,
            capacity,
            sector,
            cylinders,
            _HEADS,
            _SECTORS,
        )
        self._send(records.encode_open_reply(header.sequence, reply))

    def _granted(self, path: str, *, writable: bool) -> BlockDevice:
        if self._faults.open_error is not None:
            raise Refusal(*self._faults.open_error)
        if len(self._disks) >= MAX_OPEN:
            raise Refusal(CODE_NO_MEMORY, "Failed to allocate the requested file handle")
        try:
            return self._grant.open(path, writable=writable)
        except VixError as error:
            raise Refusal(CODE_DISK, f"NfcAioOpenFile: '{path}': {error}") from error

    def _close(self, header: Header, payload: memoryview) -> None:
        handle = records.decode_close(payload)
        found = self._disks.pop(handle, None)
        if found is None:
            self._error(header.sequence, CODE_DISK, "NfcAioCloseFile: no file is open under this handle")
            return
        path, device = found
        try:
            try:
                if device.writable and isinstance(device, WritableDevice):
                    device.flush()
            finally:
                device.close()
        except VixError as error:
            _log.warning("%s: closing failed: %s", path, error)
            self._error(header.sequence, CODE_DISK, f"NfcAioCloseFile: '{path}': {error}")
            return
        self._echo_zero(header)

    # -- reads and writes ------------------------------------------------------------------------

    def _io(self, record: Record) -> None:
        request = records.decode_io(record.payload)
        match request.direction:
            case Direction.READ:
                if self._on_read is not None:
                    self._on_read(self._grant)
                if self._collects:
                    self._waiting.append((record, request))
                else:
                    self._read(record, request)
            case Direction.WRITE:
                _, device = self._disks.get(request.handle, ("", None))
                sequence = record.header.sequence
                try:
                    self._writes.take(device, sequence, request)
                except IoError as error:
                    self._error(sequence, error.code, error.text)
            case _:
                raise ProtocolError(
                    f"{self._stream.peer}: an IO record has the unknown direction {request.direction}"
                )

    def _read(self, record: Record, request: Io) -> None:
        if not self._reads.wait():
            return
        done = partial(self._intake.answered, record) if record.held else None
        try:
            if record.held is None:
                raise no_memory(request.total)
            self._reads.serve(self._disk(request.handle), record.header.sequence, request, done)
        except IoError as error:
            self._read_failed(record, request, error)

    def _read_failed(self, record: Record, request: Io, failure: IoError) -> None:
        sequence = record.header.sequence
        self._intake.answered(record)
        self._error(sequence, failure.code, failure.text)
        found = self._disks.get(request.handle)
        if self._faults.error_twin and found is not None:
            for start, length in self._reads.parts(request):
                self._reads.chunk(found[1], sequence, request, start, length)

    def _all_together(self) -> bool:
        if len(self._waiting) >= _TOGETHER:
            return True
        return not self._intake.more_comes(_COLLECT if self._faults.newest_first else _COLLECT_TO_SHUFFLE)

    def _answer_together(self) -> None:
        if self._faults.chunks_shuffled is not None:
            self._answer_shuffled()
        while self._waiting:
            self._read(*self._waiting.pop())

    def _answer_shuffled(self) -> None:
        """The chunks of all that wait, mixed; a request that fails half-way has no more of them."""
        left: dict[int, int] = {}
        chunks: list[tuple[Record, Io, int, int]] = []
        for record, request in self._waiting:
            if not self._reads.wait():
                continue
            try:
                if record.held is None:
                    raise no_memory(request.total)
                self._reads.check(self._disk(request.handle), request)
            except IoError as error:
                self._read_failed(record, request, error)
                continue
            parts = self._reads.parts(request)
            left[record.header.sequence] = len(parts)
            chunks += [(record, request, start, length) for start, length in parts]
        self._waiting = []
        self._random.shuffle(chunks)
        for record, request, start, length in chunks:
            sequence = record.header.sequence
            if sequence not in left:
                continue
            left[sequence] -= 1
            done = None if left[sequence] else partial(self._intake.answered, record)
            try:
                self._reads.chunk(self._disk(request.handle), sequence, request, start, length, done)
            except IoError as error:
                del left[sequence]
                self._read_failed(record, request, error)

    # -- optional records ------------------------------------------------------------------------

    def _ddb_get(self, header: Header, payload: memoryview) -> None:
        request = records.decode_ddb_get(payload)
        key = self._trailer(request.key_length).decode("ascii", "replace")
        found = self._disks.get(request.handle)
        if found is None:
            self._error(header.sequence, CODE_DISK, "NfcAioDdbGet: no file is open under this handle")
            return
        value = None
        if isinstance(self._grant, DiskDatabase):
            try:
                value = self._grant.disk_database(found[0]).get(key)
            except Refusal as refusal:
                self._error(header.sequence, refusal.code, refusal.text)
                return
        self._send(records.encode_ddb_reply(header.sequence, value))

    def _map(self, header: Header, payload: memoryview) -> None:
        request = records.decode_map(payload)
        try:
            if self._faults.map_refused:
                raise IoError(CODE_DISK, "NfcAio: not supported")
            bitmap = _bitmap(self._disk(request.handle), request)
        except IoError as error:
            self._error(header.sequence, error.code, error.text)
            return
        count = request.chunks // 2 if self._faults.map_short else request.chunks
        self._send(records.encode_map_reply(header.sequence, count, bitmap[: records.bitmap_size(count)]))


def _bitmap(device: BlockDevice, request: MapRequest) -> bytes:
    _, chunk, offset, count = request
    if chunk == 0 or chunk % 512 or offset % chunk or not 0 < count <= MAX_MAP_CHUNKS:
        raise IoError(CODE_DISK, "NfcAio: start and length must be multiples of the chunk size")
    if offset + count * chunk > device.capacity:
        raise IoError(CODE_DISK, "NfcAio: the range is outside the disk")
    marks = bytearray(b"0" * count)
    try:
        for run in device.extents(offset, count * chunk):
            if run.kind is not ExtentKind.ZERO:
                first = (run.offset - offset) // chunk
                last = -(-(run.end - offset) // chunk)
                marks[first:last] = b"1" * (last - first)
    except TransportError:
        raise
    except VixError as error:
        raise IoError(CODE_DISK, f"NfcAio: no allocation map: {error}") from error
    # Base 2 with the last chunk first makes chunk 0 the lowest bit.
    return int(marks[::-1], 2).to_bytes(records.bitmap_size(count), "little")
