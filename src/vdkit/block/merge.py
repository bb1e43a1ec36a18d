"""The links of a chain merged into one table: what 32 links hold is found as fast as what one holds.

A link that allocates in units can say where each of them lies (:class:`Placed`). From that a window of the
disk is made: one number per unit, which names a file and an offset in it, whichever link it belongs to.
Windows are made when they are first looked at and kept, within bounds, for as long as the links stay as they
are: so only links that are opened read-only are merged.
"""

from __future__ import annotations

import bisect
import math
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from vdkit.block.device import BaseDevice, BlockDevice, WritableBuffer
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.file import FileDevice
from vdkit.block.runs import run_end

#: Units of a window: enough to be worth the asking, few enough that a single read stays cheap.
_UNITS = 4096
#: The unit where no link has one of its own.
_ANY_UNIT = 1 << 26
#: Bytes of the tables of windows that are kept; their runs take up to twice as much again.
_MAX_BYTES = 8 << 20
#: A window's number is a source in its upper bits and an offset below; 0 reads as zeroes.
_SHIFT = 48
_MASK = (1 << _SHIFT) - 1
#: Files that get numbers of their own; there are 16 bits, and the links need some of them.
_MAX_SOURCES = (1 << 16) - 256
_ZEROES = bytes(1 << 20)

Reader = Callable[[int, WritableBuffer], None]


class Placement(NamedTuple):
    """A run of a link. Where its bytes lie as they are in ``file``, from ``position`` on; None where they do
    not: zero, absent, compressed, or damaged, so that the link itself has to be asked."""

    offset: int
    length: int
    kind: ExtentKind
    file: BlockDevice | None = None
    position: int = 0


@runtime_checkable
class Placed(Protocol):
    """A link that can say where its bytes lie."""

    @property
    def place_unit(self) -> int | None:
        """Its placements begin at multiples of this many bytes; 0 where it has but one; None if it cannot
        say."""

    @property
    def finer_map(self) -> bool:
        """True if its map may tell of zeroes, holes of a flat file, where its placements tell of data."""

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        """Like ``extents``, neighbours of one kind not joined."""


def common_unit(links: Sequence[BlockDevice], starts: Sequence[int] = ()) -> int | None:
    """The unit in which all of ``links`` can be placed, each beginning at one of ``starts``."""
    units = [link.place_unit if isinstance(link, Placed) else None for link in links]
    known = [unit for unit in units if unit is not None]
    return math.gcd(*known, *starts) if len(known) == len(units) else None


def placer(device: BlockDevice) -> Callable[[int, int], Iterator[Placement]]:
    """Its ``placements``, or the same made of its map."""
    # Not isinstance: to tell whether an object keeps a protocol takes as long as a read.
    own: Callable[[int, int], Iterator[Placement]] | None = getattr(device, "placements", None)
    if own is not None:
        return own
    return lambda offset, length: (Placement(*extent) for extent in device.extents(offset, length))


def merged(links: Sequence[BlockDevice]) -> MergedLinks | None:
    """``links`` as one, None if one of them may change or cannot say where its bytes lie."""
    unit = common_unit(links)
    if not links or unit is None or any(link.writable or link.alignment > 1 for link in links):
        return None
    unit = unit & -unit or _ANY_UNIT
    if links[0].capacity >= 1 << _SHIFT or unit < 512:
        return None
    return MergedLinks(links, unit)


class _Source(NamedTuple):
    """Who reads the bytes (a file, or a link by its own offsets), and the number of the link they are of."""

    device: BlockDevice
    level: int


class _Window(NamedTuple):
    """Runs of a window: where each begins, in bytes, and the number of its first unit."""

    starts: array[int]
    values: array[int]
    length: int


class MergedLinks(BaseDevice):
    """Made by :func:`merged`. Does not own the links. ``unit`` is a power of two."""

    def __init__(self, links: Sequence[BlockDevice], unit: int) -> None:
        super().__init__(name=links[0].name, capacity=links[0].capacity, sector_size=links[0].sector_size)
        self._links = tuple(links)
        # Whose map says no more than the placements: not a flat file's, which has holes.
        self._exact = [isinstance(link, Placed) and not link.finer_map for link in links]
        self._unit = unit
        self._span = unit * _UNITS
        self._max_windows = max(8, _MAX_BYTES // (_UNITS * 8))
        self._placers = [placer(link) for link in links]
        self._building = threading.Lock()
        # The first are those that say zero: nobody, then each of the links.
        self._zeroes = len(links)
        self._sources = [_Source(link, level) for level, link in enumerate((links[-1], *links), -1)]
        self._numbers: dict[tuple[int, int], int] = {}
        self._windows: dict[int, _Window] = {}
        # What the quick way looks at: the numbers by unit, and the open files by source.
        self._tables: dict[int, array[int]] = {}
        self._held = [-1] * len(self._sources)

    @property
    def io_batch(self) -> int:
        return max(link.io_batch for link in self._links)

    # -- windows ---------------------------------------------------------------------------------

    def _window(self, number: int) -> _Window:
        known = self._windows.get(number)
        if known is None:
            with self._building:
                known = self._windows.get(number)
                if known is None:
                    known = self._build(number)
        return known

    def _build(self, number: int) -> _Window:
        """Painted from the base up, so that the topmost link that holds a unit has the last word."""
        start = number * self._span
        length = min(self._span, self._capacity - start)
        unit = self._unit
        table = array("Q", bytes(-(-length // unit) * 8))
        for level in range(len(self._links) - 1, -1, -1):
            for run in self._placers[level](start, length):
                if run.kind is ExtentKind.ABSENT:
                    continue
                at, count = (run.offset - start) // unit, -(-run.length // unit)
                if run.kind is ExtentKind.ZERO:
                    table[at : at + count] = array("Q", [(level + 1) << _SHIFT]) * count
                    continue
                value = self._value(level, run)
                table[at : at + count] = array("Q", range(value, value + count * unit, unit))
        window = self._runs_of(table, length)
        if length % unit:
            table.pop()  # the quick way need not look where the disk ends
        while len(self._windows) >= self._max_windows:
            oldest = next(iter(self._windows))
            del self._windows[oldest]
            self._tables.pop(oldest, None)
        self._windows[number] = window
        self._tables[number] = table
        return window

    def _runs_of(self, table: array[int], length: int) -> _Window:
        window = _Window(array("Q"), array("Q"), length)
        position = 0
        while position < len(table):
            value = table[position]
            window.starts.append(position * self._unit)
            window.values.append(value)
            step = self._unit if value >> _SHIFT > self._zeroes else 0
            position = run_end(table, position, len(table), step)
        return window

    def _value(self, level: int, run: Placement) -> int:
        """The number of the run's first unit; of the link, where the file or its offset has none."""
        file = run.file
        if file is not None and run.position + run.length <= _MASK:
            source = self._numbers.get((level, id(file)))
            if source is None and len(self._sources) < _MAX_SOURCES:
                source = self._new_source(level, file)
            if source is not None:
                return source << _SHIFT | run.position
        link = self._links[level]
        source = self._numbers.get((level, id(link)))
        return (self._new_source(level, link) if source is None else source) << _SHIFT | run.offset

    def _new_source(self, level: int, device: BlockDevice) -> int:
        number = self._numbers[level, id(device)] = len(self._sources)
        self._sources.append(_Source(device, level))
        held = device.hold(self._let_go) if isinstance(device, FileDevice) else None
        self._held.append(-1 if held is None else held)
        if isinstance(device, FileDevice) and device.closed:
            self._let_go()  # its closing has begun, and may have looked before this was held
        return number

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """``(offset, length, source, position)`` of what is there, cut at windows."""
        while offset < end:
            number, within = divmod(offset, self._span)
            starts, values, length = self._window(number)
            base = offset - within
            for i in range(bisect.bisect_right(starts, within) - 1, len(starts)):
                stop = min(end, base + (starts[i + 1] if i + 1 < len(starts) else length))
                position = (values[i] & _MASK) + offset - base - starts[i]
                yield offset, stop - offset, values[i] >> _SHIFT, position
                offset = stop
                if offset >= end:
                    return

    # -- reading ---------------------------------------------------------------------------------

    def quick_reader(self, otherwise: Reader) -> Reader:
        """A ``read_into`` for small pieces: what lies in one unit of a local file in a window that is known
        is read by one call of the system. All else, mistakes too, is left to ``otherwise``.

        No lock is taken, because the number of an open file stays valid for as long as anybody holds it. It
        is a closure that shifts and masks because this is the most frequent call of all: half of its two
        microseconds are the kernel's.
        """
        tables, held, zeroes, preadv = self._tables, self._held, self._zeroes, os.preadv
        unit, unit_mask, unit_shift = self._unit, self._unit - 1, self._unit.bit_length() - 1
        span_mask, span_shift = self._span - 1, self._span.bit_length() - 1

        def read_into(offset: int, buffer: WritableBuffer) -> None:
            try:
                within = offset & span_mask
                value = tables[offset >> span_shift][within >> unit_shift]
                length = len(buffer)
                inside = within & unit_mask
                if inside + length <= unit:
                    number = value >> _SHIFT
                    # The open file is in no variable: a traceback that keeps this frame must not keep it.
                    if number > zeroes:
                        if preadv(held[number], (buffer,), (value & _MASK) + inside) == length:
                            return
                    elif memoryview(buffer).nbytes == length:
                        buffer[:] = bytes(length)
                        return
            except (LookupError, OSError, BufferError, TypeError, ValueError):
                pass
            otherwise(offset, buffer)

        return read_into

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        wanted: dict[int, list[tuple[int, memoryview]]] = {}
        for offset, view in pieces:
            for begin, length, number, position in self._runs(offset, offset + len(view)):
                part = view[begin - offset : begin - offset + length]
                if number > self._zeroes:
                    wanted.setdefault(number, []).append((position, part))
                else:
                    fill_with_zeroes(part)
        for number, parts in wanted.items():
            device = self._sources[number].device
            if len(parts) == 1:
                device.read_into(*parts[0])
            else:
                device.read_many(parts)

    # -- map -------------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        if len(self._links) == 1:
            return self._links[0].extents(offset, length)
        return (Extent(run.offset, run.length, run.kind) for run, _ in self.layers(offset, length))

    def layers(self, offset: int, length: int) -> Iterator[tuple[Placement, int]]:
        """The map with the number of the link that answers for each run; the base also answers for what
        nobody holds."""
        end = offset + length
        while offset < end:
            stop = self._quiet_until(offset, end)
            if stop > offset:
                yield Placement(offset, stop - offset, ExtentKind.ZERO), len(self._links) - 1
            else:
                stop = min(end, (offset // self._span + 1) * self._span)
                yield from self._layers_within(offset, stop)
            offset = stop

    def _quiet_until(self, offset: int, end: int) -> int:
        """Where the first link may begin to hold something, by the directories of the tables."""
        for level, placements in enumerate(self._placers):
            first = next(placements(offset, end - offset))
            quiet = ExtentKind.ABSENT if level < len(self._links) - 1 else ExtentKind.ZERO
            if first.kind is not quiet or first.length < self._span:
                return offset
            end = min(end, offset + first.length)
        return end

    def _layers_within(self, offset: int, end: int) -> Iterator[tuple[Placement, int]]:
        for begin, length, number, position in self._runs(offset, end):
            device, level = self._sources[number]
            level %= len(self._links)
            if number <= self._zeroes:
                yield Placement(begin, length, ExtentKind.ZERO), level
                continue
            link = self._links[level]
            file = None if device is link else device
            if self._exact[level]:
                yield Placement(begin, length, ExtentKind.DATA, file, position), level
                continue
            for extent in link.extents(begin, length):
                yield Placement(*extent, file, position + extent.offset - begin), level

    # -- the end ---------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """A file is about to be closed: the quick way must find nothing any more."""
        self._tables.clear()
        self._held[:] = [-1] * len(self._held)

    def _close(self) -> None:
        self._let_go()


def fill_with_zeroes(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = view[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
