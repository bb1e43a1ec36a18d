"""What a copy has to do, cut into batches: lazily, so that a disk of 62 TiB costs no memory to plan.

A batch carries up to ``batch`` bytes of pieces from however many extents, because behind a network one round
trip for many small pieces costs what one for a single piece costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

from vdkit.block.cursor import ExtentCursor
from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind, RangeSet, coalesce
from vdkit.errors import UsageError

#: Pieces of one batch: a bound on the bookkeeping where extents are tiny.
MAX_PIECES = 4096
#: Bytes cleared by one ``write_zeroes``: a bound on how long a cancellation waits.
ZERO_STEP = 256 << 20


class Piece(NamedTuple):
    """A stretch of the source that lies at ``place`` in the worker's buffer once it has been read."""

    offset: int
    length: int
    place: int


class Batch(NamedTuple):
    """One worker's next work: pieces to read, ranges to clear, bytes to pass over. Ascending in the disk."""

    ticket: int
    pieces: list[Piece]
    zeroes: list[tuple[int, int]]
    absent: int

    @property
    def length(self) -> int:
        """Bytes of the disk that this batch is about."""
        return sum(p.length for p in self.pieces) + sum(n for _, n in self.zeroes) + self.absent


def planned_extents(source: BlockDevice, ranges: RangeSet, unit: int) -> Iterator[Extent]:
    """The source's map inside ``ranges``, with borders on multiples of ``unit``: there data wins."""
    cursor = ExtentCursor(source, ranges.end)
    for start, length in ranges:
        position, end = start, start + length
        while position < end:
            run = cursor.at(position)
            stop = min(run.end, end)
            if unit > 1 and stop < end and stop % unit:
                # A unit that several runs share is data as a whole.
                floor = stop // unit * unit
                if floor > position:
                    yield Extent(position, floor - position, run.kind)
                ceiling = min(floor + unit, end)
                yield Extent(max(floor, position), ceiling - max(floor, position), ExtentKind.DATA)
                position = ceiling
            else:
                yield Extent(position, stop - position, run.kind)
                position = stop


class Planner:
    """Hands out batches, one at a time, to whoever asks."""

    def __init__(
        self, extents: Iterator[Extent], *, batch: int, block: int, zero_step: int = ZERO_STEP
    ) -> None:
        """``batch`` (at least ``block``) bytes of data each; no piece crosses a multiple of ``block``."""
        self._extents = coalesce(extents)
        self._batch = batch
        self._block = block
        self._zero_step = zero_step
        self._lock = threading.Lock()
        self._rest: Extent | None = None
        self._tickets = 0

    def take(self) -> Batch | None:
        """The next batch, or None when there is no more."""
        with self._lock:
            return self._next()

    def _next(self) -> Batch | None:
        pieces: list[Piece] = []
        zeroes: list[tuple[int, int]] = []
        absent = place = cleared = 0
        while place < self._batch and len(pieces) + len(zeroes) < MAX_PIECES and cleared < self._zero_step:
            run = self._rest if self._rest is not None else next(self._extents, None)
            self._rest = None
            if run is None:
                break
            offset, length, kind = run
            if kind is ExtentKind.DATA:
                step = min(length, self._block - offset % self._block)
                if place and place + step > self._batch:
                    self._rest = run
                    break
                pieces.append(Piece(offset, step, place))
                place += step
            elif kind is ExtentKind.ZERO:
                step = min(length, self._zero_step)
                zeroes.append((offset, step))
                cleared += step
            else:
                step = length
                absent += step
            if step < length:
                self._rest = Extent(offset + step, length - step, kind)
        if not pieces and not zeroes and not absent:
            return None
        self._tickets += 1
        return Batch(self._tickets - 1, pieces, zeroes, absent)


def check_ranges(ranges: RangeSet, capacity: int, unit: int, what: str) -> None:
    """Refuse what the devices would refuse later, when part of the work was done already."""
    if ranges.end > capacity:
        raise UsageError(f"{what}: the ranges reach to byte {ranges.end}, the disk has {capacity}")
    if unit > 1:
        for offset, length in ranges:
            end = offset + length
            if offset % unit or (end % unit and end != capacity):
                raise UsageError(
                    f"{what}: the range at {offset} of {length} bytes is not in multiples of {unit} bytes",
                    remedy="widen it with RangeSet.aligned",
                )
