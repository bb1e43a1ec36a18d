"""Extents (runs of an allocation map) and sets of byte ranges.

All offsets and lengths are bytes. An :class:`Extent` is half open: ``[offset, offset + length)``.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from vdkit.errors import UsageError


class ExtentKind(Enum):
    """What a run of a device holds.

    ``DATA`` is always an allowed answer. ``ZERO`` is a promise: the run reads as zeroes. ``ABSENT`` is said,
    exactly, only by a *link* of a chain: the run is not in this link, look in its parent.
    """

    DATA = "data"
    ZERO = "zero"
    ABSENT = "absent"


class Extent(NamedTuple):
    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind and drop empty runs; the input must be ascending and contiguous."""
    offset = length = 0
    kind: ExtentKind | None = None
    for extent in extents:
        if extent.length == 0:
            continue
        if kind is None:
            offset, length, kind = extent
        elif extent.kind is kind and extent.offset == offset + length:
            length += extent.length
        else:
            yield Extent(offset, length, kind)
            offset, length, kind = extent
    if kind is not None:
        yield Extent(offset, length, kind)


class RangeSet:
    """An immutable set of byte offsets, kept as ascending, disjoint, non-touching half-open ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """``ranges`` are ``(offset, length)`` pairs in any order; they may overlap."""
        starts: list[int] = []
        ends: list[int] = []
        for offset, length in sorted(ranges):
            if offset < 0 or length < 0:
                raise UsageError(f"range ({offset}, {length}): offset and length must not be negative")
            if length == 0:
                continue
            end = offset + length
            if ends and offset <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(offset)
                ends.append(end)
        self._starts = starts
        self._ends = ends

    @classmethod
    def _of(cls, starts: list[int], ends: list[int]) -> RangeSet:
        made = cls()
        made._starts, made._ends = starts, ends
        return made

    @classmethod
    def from_extents(cls, extents: Iterable[Extent], kind: ExtentKind = ExtentKind.DATA) -> RangeSet:
        return cls((e.offset, e.length) for e in extents if e.kind is kind)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` pairs, ascending."""
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def __len__(self) -> int:
        """Number of ranges (not of bytes: that is :attr:`total`)."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        return hash((tuple(self._starts), tuple(self._ends)))

    def __repr__(self) -> str:
        shown = ", ".join(f"({o}, {n})" for o, n in list(self)[:8])
        return f"RangeSet([{shown}{', ...' if len(self) > 8 else ''}])"

    def __contains__(self, offset: int) -> bool:
        i = bisect.bisect_right(self._starts, offset) - 1
        return i >= 0 and offset < self._ends[i]

    @property
    def total(self) -> int:
        """Number of bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        """One past the last byte; 0 for the empty set."""
        return self._ends[-1] if self._ends else 0

    def covers(self, offset: int, length: int) -> bool:
        """True if every byte of the range is in the set."""
        if length == 0:
            return True
        i = bisect.bisect_right(self._starts, offset) - 1
        return i >= 0 and offset + length <= self._ends[i]

    def overlaps(self, offset: int, length: int) -> bool:
        """True if any byte of the range is in the set."""
        i = bisect.bisect_left(self._starts, offset + length) - 1
        return length > 0 and i >= 0 and self._ends[i] > offset

    def union(self, other: RangeSet) -> RangeSet:
        return RangeSet([*self, *other])

    def intersection(self, other: RangeSet) -> RangeSet:
        starts: list[int] = []
        ends: list[int] = []
        i = j = 0
        while i < len(self._starts) and j < len(other._starts):
            start = max(self._starts[i], other._starts[j])
            end = min(self._ends[i], other._ends[j])
            if start < end:
                starts.append(start)
                ends.append(end)
            if self._ends[i] < other._ends[j]:
                i += 1
            else:
                j += 1
        return RangeSet._of(starts, ends)

    def difference(self, other: RangeSet) -> RangeSet:
        starts: list[int] = []
        ends: list[int] = []
        j = 0
        for begin, end in zip(self._starts, self._ends, strict=True):
            start = begin
            while j < len(other._starts) and other._ends[j] <= start:
                j += 1
            k = j
            while k < len(other._starts) and other._starts[k] < end:
                if other._starts[k] > start:
                    starts.append(start)
                    ends.append(other._starts[k])
                start = max(start, other._ends[k])
                k += 1
            if start < end:
                starts.append(start)
                ends.append(end)
        return RangeSet._of(starts, ends)

    __or__ = union
    __and__ = intersection
    __sub__ = difference

    def clip(self, offset: int, length: int) -> RangeSet:
        """The part inside ``[offset, offset + length)``."""
        starts: list[int] = []
        ends: list[int] = []
        limit = offset + length
        first = max(0, bisect.bisect_right(self._starts, offset) - 1)
        for i in range(first, len(self._starts)):
            if self._starts[i] >= limit:
                break
            start, end = max(self._starts[i], offset), min(self._ends[i], limit)
            if start < end:
                starts.append(start)
                ends.append(end)
        return RangeSet._of(starts, ends)

    def aligned(self, granularity: int, limit: int) -> RangeSet:
        """Every range widened outward to multiples of ``granularity``, then clipped to ``[0, limit)``."""
        if granularity <= 0:
            raise UsageError(f"granularity {granularity} must be positive")
        widened = (
            (start // granularity * granularity, -(-end // granularity) * granularity)
            for start, end in zip(self._starts, self._ends, strict=True)
        )
        return RangeSet((start, end - start) for start, end in widened).clip(0, limit)

    def split(self, length: int) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` pieces that never cross a multiple of ``length``, ascending."""
        if length <= 0:
            raise UsageError(f"piece length {length} must be positive")
        for start, end in zip(self._starts, self._ends, strict=True):
            position = start
            while position < end:
                stop = min(end, (position // length + 1) * length)
                yield position, stop - position
                position = stop
