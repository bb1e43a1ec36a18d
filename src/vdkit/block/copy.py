"""The copy engine: convert, clone, backup, restore and verify are thin calls of it.

Each worker has a buffer and goes round: take the next batch of the plan, read it with one ``read_many``, look
for zeroes, show it to ``observe``, hand it to the target. With two workers one reads while the other writes;
memory is workers times batch, whatever the size of the disk.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vdkit.block.copyplan import ZERO_STEP, Batch, Piece, Planner, check_ranges, planned_extents
from vdkit.block.copysink import DeviceSink, Put, SequentialSink, Sink, Span
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import RangeSet
from vdkit.block.sequential import SequentialWriter
from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.errors import ReadOnly, UsageError

#: Zeroes are looked for in pieces of this many bytes: the grain of every VMDK that matters.
ZERO_GRAIN = 1 << 16
#: More threads than this fight for the interpreter lock instead of helping.
_MAX_DEFAULT_WORKERS = 8
#: Seconds between two calls of ``progress``.
_PROGRESS_INTERVAL = 0.1

# A bytearray compared with a memoryview is one memcmp that stops at the first difference; two memoryviews are
# compared element by element, a hundred times slower.
_zeroes = bytearray(ZERO_GRAIN)


class CopyProgress(NamedTuple):
    """How far a copy is; bytes, and seconds since it began."""

    done: int
    total: int
    read: int
    written: int
    zeroed: int
    skipped: int
    seconds: float


class CopyResult(NamedTuple):
    """What a copy did, in bytes: ``read`` from the source, ``written`` as data, ``zeroed`` on a target that
    was not known to be zero, ``skipped`` because the target reads as zero there already (or the source, a
    single link of a chain, does not hold it)."""

    read: int
    written: int
    zeroed: int
    skipped: int
    seconds: float


def zero_test(view: memoryview) -> bool:
    """True if every byte is zero; ``view`` is a flat view of bytes."""
    length = len(view)
    if length == ZERO_GRAIN:
        return _zeroes == view
    if length < ZERO_GRAIN:
        return bytearray(length) == view
    return all(zero_test(view[i : i + ZERO_GRAIN]) for i in range(0, length, ZERO_GRAIN))


def copy(
    source: BlockDevice,
    target: WritableDevice | SequentialWriter[Any],
    *,
    ranges: RangeSet | None = None,
    workers: int | None = None,
    block: int = 1 << 20,
    skip_zeroes: bool = True,
    target_is_zero: bool = False,
    observe: Callable[[int, memoryview], None] | None = None,
    progress: Callable[[CopyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy ``ranges`` (all by default) of ``source`` to the same offsets of ``target``.

    What the source's map calls zero is not read. On a target that is not known to be zero it becomes
    ``write_zeroes`` (a sequential writer gets it as explicit zeroes); on one that is (``target_is_zero``) it
    is left out. With ``skip_zeroes`` zeroes found in the data are treated the same way. The target beyond the
    source's end is left alone. Ranges for a sequential writer are widened to its unit.

    ``observe(offset, view)`` sees all data that is read, zeroes too, in pieces that never cross a multiple of
    ``block``; it is called from several workers at once, in no order, and must not keep the view.
    ``progress`` is called by one thread at a time, and once more at the end. Flushing or finishing the target
    is the caller's. The first error of any worker is raised as it is, after all workers have ended; a
    cancelled ``cancel`` raises :class:`~vdkit.errors.Cancelled`.
    """
    unit, wanted = _check(source, target, ranges, block)
    block, batch = _batch_size(source, target, block, unit, whole_blocks=observe is not None)
    count = workers if workers is not None else default_workers()
    if count < 1:
        raise UsageError(f"a copy needs at least one worker, not {count}")
    with WorkerScope("vdkit-copy", cancel) as scope:
        sink: Sink
        zero_step = ZERO_STEP
        if isinstance(target, WritableDevice):
            sink = DeviceSink(target, source_end=source.capacity, target_is_zero=target_is_zero)
        else:
            if not target_is_zero:
                zero_step = batch  # zeroes for a sequential writer are encoded, and held until their turn
            sink = SequentialSink(
                target,
                token=scope.token,
                window=2 * count,
                block=block,
                source_end=source.capacity,
                target_is_zero=target_is_zero,
            )
        planner = Planner(
            planned_extents(source, wanted, unit), batch=batch, block=block, zero_step=zero_step
        )
        meter = Meter(wanted.total, progress)
        grain = math.lcm(ZERO_GRAIN, unit) if skip_zeroes else 0
        job = _Job(source, sink, planner, meter, observe, scope.token, batch + unit, grain)
        for _ in range(count):
            scope.spawn(job.work)
    return meter.finish()


def _batch_size(
    source: BlockDevice,
    target: WritableDevice | SequentialWriter[Any],
    block: int,
    unit: int,
    *,
    whole_blocks: bool,
) -> tuple[int, int]:
    """Bytes of a piece, and of a batch. Local files ask for less than a block: what stays in the cache of the
    processor is written at twice the speed; but an observer and an encoder get whole blocks."""
    if not isinstance(target, WritableDevice):
        return block, max(source.io_batch, block)
    batch = max(source.io_batch, target.io_batch)
    if batch >= block or whole_blocks or batch % unit:
        return block, max(batch, block)
    return batch, batch


def default_workers() -> int:
    """At least two, so that reading and writing overlap even on one processor."""
    return max(2, min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS))


def _check(
    source: BlockDevice, target: WritableDevice | SequentialWriter[Any], ranges: RangeSet | None, block: int
) -> tuple[int, RangeSet]:
    """Refuse what cannot work before anything is written. The unit of both sides, and the ranges to copy."""
    if source.capacity > target.capacity:
        raise UsageError(
            f"{source.name} has {source.capacity} bytes, {target.name} only {target.capacity}",
            remedy="make the target at least as large as the source",
        )
    if isinstance(target, WritableDevice):
        if not target.writable:
            raise ReadOnly(f"{target.name}: opened read-only")
        unit = math.lcm(source.alignment, target.alignment)
    else:
        unit = math.lcm(source.alignment, target.unit)
    if block < 1 or block % unit:
        raise UsageError(f"block of {block} bytes: must be a positive multiple of {unit} bytes")
    wanted = RangeSet([(0, source.capacity)]) if ranges is None else ranges
    if wanted.end > source.capacity:
        raise UsageError(
            f"{source.name}: the ranges reach to byte {wanted.end}, the disk has {source.capacity}"
        )
    if not isinstance(target, WritableDevice):
        return unit, wanted.aligned(unit, source.capacity)
    check_ranges(wanted, source.capacity, unit, source.name)
    return unit, wanted


class Meter:
    """Adds up what the workers did and tells it, rate-limited, from one thread at a time."""

    def __init__(self, total: int, progress: Callable[[CopyProgress], None] | None) -> None:
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._began = time.monotonic()
        self._told = self._began
        self._done = self._read = self._written = self._zeroed = self._skipped = 0

    def add(self, length: int, read: int, put: Put) -> None:
        with self._lock:
            self._done += length
            self._read += read
            self._written += put.written
            self._zeroed += put.zeroed
            self._skipped += put.skipped
        if self._progress is None or time.monotonic() - self._told < _PROGRESS_INTERVAL:
            return
        if self._telling.acquire(blocking=False):
            try:
                self._told = time.monotonic()
                self._progress(self._state())
            finally:
                self._telling.release()

    def _state(self) -> CopyProgress:
        with self._lock:
            return CopyProgress(
                self._done,
                self._total,
                self._read,
                self._written,
                self._zeroed,
                self._skipped,
                time.monotonic() - self._began,
            )

    def finish(self) -> CopyResult:
        """After the last worker has ended: the final call of ``progress`` and the result."""
        state = self._state()
        if self._progress is not None:
            self._progress(state)
        return CopyResult(state.read, state.written, state.zeroed, state.skipped, state.seconds)


class _Job:
    """What all workers of one copy share."""

    def __init__(
        self,
        source: BlockDevice,
        sink: Sink,
        planner: Planner,
        meter: Meter,
        observe: Callable[[int, memoryview], None] | None,
        token: CancelToken,
        buffer_size: int,
        zero_grain: int,
    ) -> None:
        self._source = source
        self._sink = sink
        self._planner = planner
        self._meter = meter
        self._observe = observe
        self._token = token
        self._buffer_size = buffer_size
        self._zero_grain = zero_grain

    def work(self) -> None:
        """One worker: until the plan is done or somebody fails."""
        # Never closed by hand: an exception's traceback may still hold views of it.
        buffer = memoryview(mmap.mmap(-1, self._buffer_size))
        while True:
            self._token.check()
            batch = self._planner.take()
            if batch is None:
                return
            self._sink.admit(batch.ticket)
            read_batch(self._source, batch.pieces, buffer)
            if self._observe is not None:
                for offset, length, place in batch.pieces:
                    self._observe(offset, buffer[place : place + length])
            self._token.check()
            put = self._sink.put(batch.ticket, self._spans(batch, buffer), buffer)
            self._meter.add(
                batch.length,
                sum(p.length for p in batch.pieces),
                put._replace(skipped=put.skipped + batch.absent),
            )

    def _spans(self, batch: Batch, buffer: memoryview) -> list[Span]:
        """Data and zeroes of the batch, ascending; neighbours of one sort are joined."""
        found = [Span(offset, length, -1) for offset, length in batch.zeroes]
        for piece in batch.pieces:
            if self._zero_grain:
                found.extend(_split_zeroes(piece, buffer, self._zero_grain))
            else:
                found.append(Span(*piece))
        found.sort()
        return list(_joined(found))


def _split_zeroes(piece: Piece, buffer: memoryview, grain: int) -> Iterator[Span]:
    """A piece cut at multiples of ``grain``, each part marked as data or zeroes."""
    offset, length, place = piece
    end = offset + length
    while offset < end:
        step = min(end - offset, grain - offset % grain)
        yield Span(offset, step, -1 if zero_test(buffer[place : place + step]) else place)
        offset += step
        place += step


def _joined(spans: list[Span]) -> Iterator[Span]:
    current: Span | None = None
    for span in spans:
        if current is None:
            current = span
            continue
        follows = current.place + current.length == span.place if current.place >= 0 else span.place < 0
        if follows and current.offset + current.length == span.offset:
            current = Span(current.offset, current.length + span.length, current.place)
        else:
            yield current
            current = span
    if current is not None:
        yield current


def read_batch(source: BlockDevice, pieces: list[Piece], buffer: memoryview) -> None:
    """Fill the buffer; pieces that follow each other are one read."""
    reads: list[tuple[int, memoryview]] = []
    start = end = place = -1
    for piece in pieces:
        if piece.offset != end:
            if end > start:
                reads.append((start, buffer[place : place + end - start]))
            start, place = piece.offset, piece.place
            end = start
        end += piece.length
    if end > start:
        reads.append((start, buffer[place : place + end - start]))
    if len(reads) == 1:
        source.read_into(*reads[0])
    elif reads:
        source.read_many(reads)
