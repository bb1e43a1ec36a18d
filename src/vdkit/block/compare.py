"""Comparing two devices: byte for byte, in parallel, without reading what both maps call zero."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

from vdkit.block.copy import CopyProgress, Meter, default_workers
from vdkit.block.copyplan import Batch, Planner, check_ranges
from vdkit.block.copysink import Put
from vdkit.block.cursor import ExtentCursor
from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind, RangeSet
from vdkit.block.workers import CancelToken, WorkerScope

#: Bytes of one comparison: both sides stay in the processor's cache.
_CHUNK = 1 << 18


def compare(
    first: BlockDevice,
    second: BlockDevice,
    *,
    ranges: RangeSet | None = None,
    workers: int | None = None,
    block: int = 1 << 20,
    progress: Callable[[CopyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> int | None:
    """The offset of the first byte that differs, None if there is none.

    Without ``ranges`` all of both is compared: where one is longer, the first byte that the other lacks
    differs. The maps are believed where both say zero. Errors and cancellation as in
    :func:`vdkit.block.copy.copy`; ``done`` and ``skipped`` of the progress count bytes of one side.
    """
    common = min(first.capacity, second.capacity)
    unit = math.lcm(first.alignment, second.alignment)
    wanted = RangeSet([(0, common)]) if ranges is None else ranges
    check_ranges(wanted, common, unit, f"{first.name} and {second.name}")
    batch = max(first.io_batch, second.io_batch, block)
    planner = Planner(_both(first, second, wanted, unit), batch=batch, block=min(block, _CHUNK))
    meter = Meter(wanted.total, progress)
    with WorkerScope("vdkit-compare", cancel) as scope:
        job = _Comparison(first, second, planner, meter, scope.token)
        for _ in range(workers if workers is not None else default_workers()):
            scope.spawn(job.work)
    meter.finish()
    if job.found is not None:
        return job.found
    return common if ranges is None and first.capacity != second.capacity else None


def _both(first: BlockDevice, second: BlockDevice, ranges: RangeSet, unit: int) -> Iterator[Extent]:
    """Zero where both maps say so, else data, with borders on multiples of ``unit``."""
    cursors = ExtentCursor(first, ranges.end), ExtentCursor(second, ranges.end)
    for start, length in ranges:
        position, end = start, start + length
        while position < end:
            runs = [cursor.at(position) for cursor in cursors]
            zero = all(run.kind is not ExtentKind.DATA for run in runs)
            stop = min(end, *(run.end for run in runs))
            if stop < end:
                # Rounding towards data: zeroes are read needlessly, data never goes unread.
                stop = stop // unit * unit if zero else -(-stop // unit) * unit
                if stop <= position:
                    zero, stop = False, position + unit
                stop = min(stop, end)
            yield Extent(position, stop - position, ExtentKind.ZERO if zero else ExtentKind.DATA)
            position = stop


class _Comparison:
    """What the workers share: the plan, and the lowest difference found so far."""

    def __init__(
        self, first: BlockDevice, second: BlockDevice, planner: Planner, meter: Meter, token: CancelToken
    ) -> None:
        self._sides = first, second
        self._planner = planner
        self._meter = meter
        self._token = token
        self._lock = threading.Lock()
        self.found: int | None = None

    def work(self) -> None:
        """One worker. Batches are handed out ascending, so that after a find only those in work matter."""
        # A bytearray compares with a view by one memcmp, which two views do not.
        buffers: list[bytearray] = []
        others: list[bytearray] = []
        while self.found is None:
            self._token.check()
            batch = self._planner.take()
            if batch is None:
                return
            while len(buffers) < len(batch.pieces):
                buffers.append(bytearray())
                others.append(bytearray())
            for i, piece in enumerate(batch.pieces):
                if len(buffers[i]) != piece.length:
                    buffers[i], others[i] = bytearray(piece.length), bytearray(piece.length)
            for device, kept in zip(self._sides, (buffers, others), strict=True):
                if batch.pieces:
                    device.read_many([(p.offset, kept[i]) for i, p in enumerate(batch.pieces)])
            self._look(batch, buffers, others)
            length = sum(piece.length for piece in batch.pieces)
            self._meter.add(batch.length, length, Put(0, 0, batch.length - length))

    def _look(self, batch: Batch, buffers: list[bytearray], others: list[bytearray]) -> None:
        for i, piece in enumerate(batch.pieces):
            if buffers[i] != others[i]:
                found = piece.offset + first_difference(buffers[i], others[i])
                with self._lock:
                    if self.found is None or found < self.found:
                        self.found = found
                return


def first_difference(a: bytes | bytearray, b: bytes | bytearray) -> int:
    """Index of the first differing byte of two buffers that differ; by halving, each step one memcmp."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high) // 2
        if a[low : middle + 1] == b[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
