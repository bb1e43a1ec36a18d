"""A disk of a host over NFC, as a block device (modes ``nbd`` and ``nbdssl``).

Reads and writes are cut into requests of ``request_size`` bytes, of which a window is in flight; chunks are
placed straight into the caller's buffer. Any number of threads may call at once on the one connection.

A request that the host refuses fails the call, not the disk. One refused for want of memory is first tried
again, smaller and after a pause (:mod:`vdkit.transports.nfc.pace`), unless the disk was opened not to.

What was written is durable once the disk is closed: no flush is publicly known of the protocol, every write
has been acknowledged when a call returns, and hosts complete the rest on CLOSE. So closing a disk that was
written waits for the host and raises if it fails.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.errors import HostOutOfMemory, TransportError
from vdkit.transports.nfc.compressing import Compressing
from vdkit.transports.nfc.host_errors import in_phase
from vdkit.transports.nfc.operations import (
    Batch,
    DataOperation,
    Exchange,
    Operation,
    Piece,
    ReadOperation,
    WriteOperation,
)
from vdkit.transports.nfc.pace import Pace
from vdkit.transports.nfc.session import Session
from vdkit.transports.nfc.target import IO_BATCH, NfcTarget, Timeouts
from vdkit.wire.nfc import assembly, records
from vdkit.wire.nfc.limits import MAP_CHUNK
from vdkit.wire.nfc.records import MapRequest, Opcode, OpenReply

_log = logging.getLogger(__name__)
#: Chunks of one allocation-map request: 4 GiB of disk, a bitmap of 8 KiB.
MAP_PAGE = 64 << 10
_ZEROES = bytes(1 << 20)
#: Bytes of zeroes that are listed at once.
_ZERO_STEP = 1 << 30
_Make = Callable[[int, memoryview], Operation]


class NfcDisk(BaseWritableDevice):
    """Made by :func:`vdkit.transports.nfc.open_nfc`."""

    def __init__(
        self,
        session: Session,
        target: NfcTarget,
        reply: OpenReply,
        *,
        writable: bool,
        compressing: Compressing,
        fragment: int,
        pace: Pace,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(
            name=f"{target.where} {target.path}",
            capacity=reply.capacity,
            sector_size=reply.sector_size,
            alignment=reply.sector_size,
            writable=writable,
        )
        self._session = session
        self._target = target
        self._reply = reply
        self._compressing = compressing
        self._fragment = fragment
        self._pace = pace
        self._timeouts = timeouts
        self._written = False
        self._mapped = True

    @property
    def io_batch(self) -> int:
        return IO_BATCH

    @property
    def failed(self) -> bool:
        """True once the session has failed; a request that the host refused does not count."""
        return self._session.failure is not None

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Cylinders, heads and sectors, as the host says; their product may understate the capacity."""
        return self._reply.cylinders, self._reply.heads, self._reply.sectors

    @property
    def request_size(self) -> int:
        """Bytes of one request: less than at first while the host is short of memory."""
        return self._pace.size

    @property
    def fragment_size(self) -> int:
        """Bytes of the largest chunk, as agreed with the host."""
        return self._fragment

    @property
    def compression(self) -> str:
        """What is asked for now: ``none``, ``zlib``, ``fastlz`` or ``skipz``."""
        return self._compressing.code.name.lower()

    # -- requests --------------------------------------------------------------------------------

    def _carry_out(self, todo: deque[Piece], make: _Make) -> None:
        """Do all pieces; what has not been done when this raises is left in ``todo``."""
        failures = 0
        while True:
            generation = self._pace.generation
            batch = Batch(self._operations(todo, make))
            try:
                self._session.run(batch)
            finally:
                if batch.refused or batch.pending or batch.upcoming is not None:
                    todo.extendleft(_pieces(reversed(batch.undone())))
            if not batch.refused:
                return
            failures = 1 if batch.answered else failures + 1
            self._judge(batch.refused, failures, generation)

    def _operations(self, todo: deque[Piece], make: _Make) -> Iterator[Operation]:
        """Requests that never cross a multiple of their size, which may change on the way."""
        while todo:
            offset, view = todo.popleft()
            size = self._pace.size
            length = size - offset % size
            if length < len(view):
                todo.appendleft((offset + length, view[length:]))
                view = view[:length]
            yield make(offset, view)

    def _judge(self, refused: Sequence[Operation], failures: int, generation: int) -> None:
        """Return after a pause if the refused requests are to be tried again, else raise the first error."""
        worst = next((one for one in refused if not isinstance(one.refused, HostOutOfMemory)), None)
        if worst is None and self._pace.try_again(refused, failures, generation):
            return
        worst = worst or refused[0]
        assert worst.refused is not None
        raise in_phase(
            worst.refused, self._target.where, f"while {worst.phase} (disk {self._target.path})"
        ) from worst.refused

    def _exchange(self, make: Callable[[], Exchange]) -> Exchange:
        """One exchange, tried again while the host is short of memory."""
        failures = 0
        while True:
            generation = self._pace.generation
            done = self._session.exchange(make())
            failures += 1
            short = isinstance(done.refused, HostOutOfMemory)
            if not short or not self._pace.try_again((done,), failures, generation):
                return done

    # -- reading ---------------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read(deque(((offset, view),)))

    def _read_many(self, pieces: Sequence[Piece]) -> None:
        self._read(deque(pieces))

    def read_rest(self, todo: deque[Piece]) -> None:
        """``read_many``; pieces that were not filled when it raises are left in ``todo``."""
        self._enter_call()
        try:
            self._read(todo)
        finally:
            self._leave_call()

    def _read(self, todo: deque[Piece]) -> None:
        handle, seconds = self._reply.handle, self._timeouts.read
        compressing = self._compressing
        meter = compressing.meter

        def make(offset: int, view: memoryview) -> Operation:
            return ReadOperation(handle, offset, view, compressing.code, meter, seconds=seconds)

        count = _length(todo)
        compressing.begin(count)
        try:
            self._carry_out(todo, make)
        finally:
            compressing.end(count)
        self._went_well(count)

    def _went_well(self, count: int) -> None:
        if self._pace.reduced:
            self._pace.went_well(count)

    # -- writing ---------------------------------------------------------------------------------

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write(deque(((offset, view),)))

    def _write_many(self, pieces: Sequence[Piece]) -> None:
        self._write(deque(pieces))

    def write_rest(self, todo: deque[Piece]) -> None:
        """``write_many``; pieces that were not acknowledged when it raises are left in ``todo``."""
        self._enter_call()
        try:
            self._write(todo)
        finally:
            self._leave_call()

    def _write(self, todo: deque[Piece]) -> None:
        # Set first: after a failed write too the map may be stale.
        self._written = True
        handle, seconds, fragment = self._reply.handle, self._timeouts.write, self._fragment
        code = self._compressing.code

        def make(offset: int, view: memoryview) -> Operation:
            return WriteOperation(handle, offset, view, code, fragment, seconds=seconds)

        count = _length(todo)
        self._carry_out(todo, make)
        self._went_well(count)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        for start in range(offset, offset + length, _ZERO_STEP):
            part = assembly.split(start, min(_ZERO_STEP, offset + length - start), len(_ZEROES))
            self._write(deque((place, zeroes[:count]) for place, count in part))

    def _flush(self) -> None:
        """Every write of a finished call has been acknowledged; see the module for durability."""

    # -- allocation map --------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        # The tail that is no whole chunk cannot be asked for, so it counts as data.
        whole = self.capacity // MAP_CHUNK * MAP_CHUNK
        position = offset
        while position < min(end, whole):
            first = position // MAP_CHUNK
            last = min(-(-min(end, whole) // MAP_CHUNK), first + MAP_PAGE)
            bits = self._map(first, last - first)
            if bits is None:
                break
            for run in _runs(bits, first):
                start, stop = max(run.offset, position), min(run.end, end)
                yield Extent(start, stop - start, run.kind)
            position = min(last * MAP_CHUNK, end)
        if position < end:
            yield Extent(position, end - position, ExtentKind.DATA)

    def _map(self, first: int, count: int) -> str | None:
        """A character per chunk, ``1`` = allocated; None if the host has no map or it may be stale."""
        if self._written or not self._mapped:
            return None
        request = MapRequest(self._reply.handle, MAP_CHUNK, first * MAP_CHUNK, count)
        self._enter_call()
        try:
            done = self._exchange(
                lambda: Exchange(
                    Opcode.MAP,
                    f"asking for the allocation map at offset {request.offset}",
                    lambda sequence: records.encode_map(sequence, request),
                    lambda payload: records.bitmap_size(records.decode_map_reply(payload)),
                    seconds=self._timeouts.request,
                    fatal=False,
                )
            )
        finally:
            self._leave_call()
        if done.refused is not None:
            _log.info("%s: no allocation map: %s", self.name, done.refused)
            # A host that was short of memory may answer the next question.
            self._mapped = isinstance(done.refused, HostOutOfMemory)
            return None
        known = min(count, records.decode_map_reply(done.payload))
        bits = format(int.from_bytes(done.trailer, "little"), "b")[::-1].ljust(known, "0")[:known]
        # Chunks that the host left out are not known to be zero.
        return bits.ljust(count, "1")

    def metadata(self, key: str) -> str | None:
        """A value of the disk's descriptor, ``key`` without ``ddb.``; None if the host has none."""
        self._enter_call()
        try:
            done = self._exchange(
                lambda: Exchange(
                    Opcode.DDB_GET,
                    f"asking for the descriptor's {key!r}",
                    lambda sequence: records.encode_ddb_get(sequence, self._reply.handle, key),
                    records.decode_ddb_reply,
                    seconds=self._timeouts.request,
                    fatal=False,
                )
            )
        finally:
            self._leave_call()
        if done.refused is not None:
            raise in_phase(done.refused, self._target.where, f"while {done.phase} (disk {self._target.path})")
        return done.trailer.decode("utf-8", "replace") or None

    # -- the end ---------------------------------------------------------------------------------

    def _close(self) -> None:
        handle = self._reply.handle
        try:
            if self._session.failure is not None:
                return
            if self._written:
                self._session.exchange(_close_request(handle, self._timeouts.write))
            with contextlib.suppress(TransportError):
                if not self._written:
                    self._session.exchange(_close_request(handle, self._timeouts.close))
                self._session.exchange(end_request(self._timeouts.close))
        finally:
            self._session.close()


def _close_request(handle: int, seconds: float) -> Exchange:
    return Exchange(
        Opcode.CLOSE, "closing the disk", lambda s: records.encode_close(s, handle), seconds=seconds
    )


def end_request(seconds: float) -> Exchange:
    return Exchange(Opcode.END, "ending the session", records.encode_end, seconds=seconds)


def _runs(bits: str, first: int) -> Iterator[Extent]:
    """Runs of equal characters, as extents; the search itself is the C library's."""
    position = 0
    while position < len(bits):
        allocated = bits[position] == "1"
        stop = bits.find("0" if allocated else "1", position)
        if stop < 0:
            stop = len(bits)
        kind = ExtentKind.DATA if allocated else ExtentKind.ZERO
        yield Extent((first + position) * MAP_CHUNK, (stop - position) * MAP_CHUNK, kind)
        position = stop


def _pieces(operations: Iterable[Operation]) -> Iterator[Piece]:
    return (one.piece for one in operations if isinstance(one, DataOperation))


def _length(pieces: Iterable[Piece]) -> int:
    return sum(len(view) for _, view in pieces)
