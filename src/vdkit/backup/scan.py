"""An incremental without change tracking: find what differs from the previous point by reading both."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vdkit.backup.diskmap import BLOCK, GRAIN
from vdkit.backup.hashing import NullWriter
from vdkit.backup.source import FilledDevice
from vdkit.block.copy import CopyProgress, copy
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken


def changed_ranges(
    source: BlockDevice,
    previous: BlockDevice,
    *,
    progress: Callable[[CopyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[RangeSet, int]:
    """Grains in which two disks of one capacity differ, and the bytes of ``source`` read to find out.

    Exact to the grain. Where both maps say zero, nothing is read; ranges next to each other are joined.
    """
    capacity = source.capacity
    ours = RangeSet.from_extents(source.extents()).aligned(GRAIN, capacity)
    theirs = RangeSet.from_extents(previous.extents()).aligned(GRAIN, capacity)
    comparison = _Comparison(FilledDevice(previous, theirs))
    copy(
        FilledDevice(source, ours),
        NullWriter(source.name, capacity, GRAIN),
        ranges=ours | theirs,
        block=BLOCK,
        skip_zeroes=False,
        observe=comparison.observe,
        progress=progress,
        cancel=cancel,
    )
    return comparison.changed(), ours.total


class _Comparison:
    """Compares pieces with the previous content, on whichever worker reads them."""

    def __init__(self, previous: BlockDevice) -> None:
        self._previous = previous
        self._lock = threading.Lock()
        self._found: list[tuple[int, int]] = []

    def observe(self, offset: int, data: memoryview) -> None:
        before = bytearray(len(data))
        self._previous.read_into(offset, before)
        # bytearray == memoryview is one memcmp; two memoryviews would be compared byte by byte.
        if before == data:
            return
        found = [
            (offset + start, min(GRAIN, len(data) - start))
            for start in range(0, len(data), GRAIN)
            if before[start : start + GRAIN] != data[start : start + GRAIN]
        ]
        with self._lock:
            self._found += found

    def changed(self) -> RangeSet:
        return RangeSet(self._found)
