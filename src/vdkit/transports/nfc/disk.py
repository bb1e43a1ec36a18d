"""A disk of a host over NFC, as a block device (modes ``nbd`` and ``nbdssl``).

Reads and writes are cut into requests of ``request_size`` bytes, of which a window is in flight; chunks are
placed straight into the caller's buffer. Any number of threads may call at once on the one connection.

What was written is durable once the disk is closed: no flush is publicly known of the protocol, every write
has been acknowledged when a call returns, and hosts complete the rest on CLOSE. So closing a disk that was
written waits for the host and raises if it fails.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence

from vdkit.block.device import BaseWritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.errors import TransportError
from vdkit.transports.nfc.host_errors import in_phase
from vdkit.transports.nfc.operations import Exchange, Operation, ReadOperation, WriteOperation
from vdkit.transports.nfc.session import Session
from vdkit.transports.nfc.target import IO_BATCH, NfcTarget, Timeouts
from vdkit.wire.nfc import assembly, records
from vdkit.wire.nfc.limits import MAP_CHUNK
from vdkit.wire.nfc.records import MapRequest, Opcode, OpenReply

_log = logging.getLogger(__name__)
#: Chunks of one allocation-map request: 4 GiB of disk, a bitmap of 8 KiB.
MAP_PAGE = 64 << 10
_ZEROES = bytes(1 << 20)


class NfcDisk(BaseWritableDevice):
    """Made by :func:`vdkit.transports.nfc.open_nfc`."""

    def __init__(
        self,
        session: Session,
        target: NfcTarget,
        reply: OpenReply,
        *,
        writable: bool,
        compression: int,
        fragment: int,
        request_size: int,
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
        self._compression = compression
        self._fragment = fragment
        self._request_size = request_size
        self._timeouts = timeouts
        self._scratch = bytearray()
        self._written = False
        self._mapped = True

    @property
    def io_batch(self) -> int:
        return IO_BATCH

    @property
    def geometry(self) -> tuple[int, int, int]:
        """Cylinders, heads and sectors, as the host says; their product may understate the capacity."""
        return self._reply.cylinders, self._reply.heads, self._reply.sectors

    @property
    def request_size(self) -> int:
        """Bytes of one request."""
        return self._request_size

    @property
    def fragment_size(self) -> int:
        """Bytes of the largest chunk, as agreed with the host."""
        return self._fragment

    # -- reading ---------------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._session.run(self._reads(((offset, view),)))

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._session.run(self._reads(pieces))

    def _reads(self, pieces: Iterable[tuple[int, memoryview]]) -> Iterator[Operation]:
        handle, seconds = self._reply.handle, self._timeouts.read
        for offset, view in pieces:
            for start, length in assembly.split(offset, len(view), self._request_size):
                part = view[start - offset : start - offset + length]
                yield ReadOperation(handle, start, part, self._compression, self._scratch, seconds=seconds)

    # -- writing ---------------------------------------------------------------------------------

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many(((offset, view),))

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        # Set first: after a failed write too the map may be stale.
        self._written = True
        self._session.run(self._writes(pieces))

    def _writes(self, pieces: Iterable[tuple[int, memoryview]]) -> Iterator[Operation]:
        handle, seconds = self._reply.handle, self._timeouts.write
        for offset, view in pieces:
            for start, length in assembly.split(offset, len(view), self._request_size):
                part = view[start - offset : start - offset + length]
                yield WriteOperation(handle, start, part, self._compression, self._fragment, seconds=seconds)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._written = True
        zeroes = memoryview(_ZEROES)
        self._session.run(
            self._writes((start, zeroes[:n]) for start, n in assembly.split(offset, length, len(_ZEROES)))
        )

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
            done = self._session.exchange(
                Exchange(
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
            self._mapped = False
            return None
        known = min(count, records.decode_map_reply(done.payload))
        bits = format(int.from_bytes(done.trailer, "little"), "b")[::-1].ljust(known, "0")[:known]
        # Chunks that the host left out are not known to be zero.
        return bits.ljust(count, "1")

    def metadata(self, key: str) -> str | None:
        """A value of the disk's descriptor, ``key`` without ``ddb.``; None if the host has none."""
        self._enter_call()
        try:
            done = self._session.exchange(
                Exchange(
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
