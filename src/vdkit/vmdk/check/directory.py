"""The grain directories of one extent: each entry a table of its own, inside the file, outside metadata.

The products lay all tables out one after the other, so where most entries say so, the place of any table can
be computed. Source of facts: VMware's "Virtual Disk Format 5.0" and files written by VMware products, qemu
and VirtualBox.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind, RangeSet
from vdkit.errors import LimitExceeded
from vdkit.vmdk.check.shape import Shape
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import runs, u32s

#: Pieces that a directory may be made of, and bad entries in it, before the check is given up.
MAX_PIECES = 1 << 20
MAX_BAD = 1 << 20
#: Bytes of tables that are read together.
SLAB = 1 << 20


class Area(NamedTuple):
    """Sectors ``[start, end)`` of the file."""

    start: int
    end: int
    what: str


@dataclass(slots=True)
class Directory:
    """One copy. ``bad`` says by index why an entry cannot be followed; ``base`` is the sector of table 0 if
    the tables lie in a row.
    """

    what: str
    sector: int
    entries: array[int]
    bad: dict[int, str] = field(default_factory=dict)
    base: int | None = None

    def flag(self, index: int, reason: str) -> None:
        self.bad.setdefault(index, reason)
        if len(self.bad) > MAX_BAD:
            raise LimitExceeded(f"{self.what}: more than {MAX_BAD} entries are bad")

    def usable(self, index: int) -> int:
        """Sector of a table; 0 if there is none or it cannot be followed."""
        return 0 if index in self.bad else self.entries[index]


class _Run(NamedTuple):
    start: int
    end: int
    copy: int
    table: int
    tables: int


def read_directory(file: BlockDevice, shape: Shape, what: str, sector: int) -> Directory:
    """The caller has made sure that it lies in the file."""
    data = bytearray(shape.tables * 4)
    step = 1 << 24
    for start in range(0, len(data), step):
        length = min(step, len(data) - start)
        offset = sector * SECTOR + start
        if _has_data(file, offset, length):
            file.read_into(offset, memoryview(data)[start : start + length])
    return Directory(what, sector, u32s(data))


def examine(file: BlockDevice, shape: Shape, copies: Sequence[Directory], areas: Iterable[Area]) -> None:
    """Fill ``bad`` and ``base`` of every copy."""
    found: list[_Run] = []
    absent: list[RangeSet] = []
    for number, copy in enumerate(copies):
        copy.bad.clear()
        mine, zero = _runs_of(shape, copy, number)
        copy.base = _base(shape, mine)
        found += mine
        absent.append(zero)
    taken = list(areas)
    for run in found:
        _check_place(shape, copies[run.copy], run, taken)
    _check_overlaps(shape, copies, found)
    if len(copies) == 2:
        _check_absent(copies, absent)
        _check_moved(file, shape, copies, found)
    _check_unlisted(file, shape, copies, absent)


def _runs_of(shape: Shape, copy: Directory, number: int) -> tuple[list[_Run], RangeSet]:
    made: list[_Run] = []
    zero: list[tuple[int, int]] = []
    for index, count, first in runs(copy.entries, 0, len(copy.entries), shape.table_sectors):
        if first == 0:
            zero.append((index, count))
        elif first == 1:
            made += [
                _Run(1, 1 + shape.table_sectors, number, index + i, 1) for i in range(min(count, MAX_PIECES))
            ]
        else:
            made.append(_Run(first, first + count * shape.table_sectors, number, index, count))
        if len(made) + len(zero) > MAX_PIECES:
            raise LimitExceeded(
                f"{shape.where}: the {copy.what} is made of more than {MAX_PIECES} pieces",
                remedy="it is no directory: the file is damaged beyond checking",
            )
    return made, RangeSet(zero)


def _base(shape: Shape, found: list[_Run]) -> int | None:
    """Where the tables begin if more than half of them lie in a row."""
    votes: dict[int, int] = {}
    total = 0
    for run in found:
        base = run.start - run.table * shape.table_sectors
        votes[base] = votes.get(base, 0) + run.tables
        total += run.tables
    if not votes:
        return None
    best = max(votes, key=lambda base: votes[base])
    return best if best > 0 and votes[best] * 2 > total else None


def _check_place(shape: Shape, copy: Directory, run: _Run, areas: list[Area]) -> None:
    end = shape.file_bytes // SECTOR
    if run.end > end:
        first = max(0, (end - run.start) // shape.table_sectors)
        for i in range(first, run.tables):
            copy.flag(run.table + i, "outside the file")
    for area in areas:
        low, high = max(run.start, area.start), min(run.end, area.end)
        if low < high:
            first = (low - run.start) // shape.table_sectors
            last = -(-(high - run.start) // shape.table_sectors)
            for i in range(first, last):
                copy.flag(run.table + i, f"inside the {area.what}")


def _check_overlaps(shape: Shape, copies: Sequence[Directory], found: list[_Run]) -> None:
    ordered = sorted(found)
    held: _Run | None = None
    for run in ordered:
        if held is not None and run.start < held.end:
            low, high = run.start, min(run.end, held.end)
            for one, other in ((held, run), (run, held)):
                _flag_shared(shape, copies, one, other, low, high)
        if held is None or run.end > held.end:
            held = run


def _flag_shared(
    shape: Shape, copies: Sequence[Directory], run: _Run, other: _Run, low: int, high: int
) -> None:
    """Of two tables in one place, the one that is not where the layout puts it is wrong."""
    copy = copies[run.copy]
    step = shape.table_sectors
    if _on_layout(shape, copies, run) and not _on_layout(shape, copies, other):
        return
    if _on_layout(shape, copies, run) == _on_layout(shape, copies, other) and run < other:
        return  # nothing tells: the first one keeps it
    for i in range((low - run.start) // step, -(-(high - run.start) // step)):
        copy.flag(run.table + i, f"the place of table {other.table} of the {copies[other.copy].what} too")


def _on_layout(shape: Shape, copies: Sequence[Directory], run: _Run) -> bool:
    base = copies[run.copy].base
    return base is not None and run.start == base + run.table * shape.table_sectors


def _check_absent(copies: Sequence[Directory], absent: Sequence[RangeSet]) -> None:
    for number, copy in enumerate(copies):
        for index, count in absent[number] - absent[1 - number]:
            for i in range(index, index + min(count, MAX_BAD + 1)):
                copy.flag(i, "0, though the other copy has a table")


def _check_moved(file: BlockDevice, shape: Shape, copies: Sequence[Directory], found: list[_Run]) -> None:
    """A table away from the layout, where the place in the layout holds what the other copy's table says."""
    budget = 1 << 16
    for run in found:
        copy, other = copies[run.copy], copies[1 - run.copy]
        if copy.base is None or _on_layout(shape, copies, run):
            continue
        for index in range(run.table, run.table + run.tables):
            budget -= 1
            if budget < 0:
                return
            if index in copy.bad or not other.usable(index):
                continue
            there = _table(file, shape, copy.base + index * shape.table_sectors)
            twin = _table(file, shape, other.entries[index])
            if there is not None and there == twin and _table(file, shape, copy.entries[index]) != twin:
                copy.flag(index, "not where the layout puts it, and the table is there")


def _check_unlisted(
    file: BlockDevice, shape: Shape, copies: Sequence[Directory], absent: Sequence[RangeSet]
) -> None:
    """Entries that are 0 in every copy, though the place in the layout holds a table with entries."""
    nowhere = absent[0]
    for more in absent[1:]:
        nowhere = nowhere & more
    base = copies[0].base
    if base is None:
        return
    size = shape.table_sectors * SECTOR
    for first, count in nowhere:
        for index, data in _slots(file, base, shape, first, first + count):
            for i in range(len(data) // size):
                if any(data[i * size : (i + 1) * size]):
                    for copy in copies:
                        copy.flag(index + i, "0, though its place in the layout holds a table")


def _slots(file: BlockDevice, base: int, shape: Shape, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    size = shape.table_sectors * SECTOR
    step = SLAB // size
    zeroes = bytearray(step * size)
    for index in range(first, last, step):
        offset = base * SECTOR + index * size
        length = min(step, last - index) * size
        if offset + length > min(file.capacity, shape.lowest * SECTOR):
            return
        if not _has_data(file, offset, length):
            continue
        data = bytearray(length)
        file.read_into(offset, data)
        if data != zeroes[:length]:
            yield index, bytes(data)


def _table(file: BlockDevice, shape: Shape, sector: int) -> bytearray | None:
    data = bytearray(shape.entries * 4)
    if sector < 1 or sector * SECTOR + len(data) > file.capacity:
        return None
    file.read_into(sector * SECTOR, data)
    return data


def _has_data(file: BlockDevice, offset: int, length: int) -> bool:
    return any(run.kind is not ExtentKind.ZERO for run in file.extents(offset, length))


def occupied(shape: Shape, copies: Sequence[Directory]) -> list[tuple[int, int]]:
    """Sectors ``[start, end)`` of tables among the grains, ascending, joined."""
    made = []
    for number, copy in enumerate(copies):
        for run in _runs_of(shape, copy, number)[0]:
            if run.end > shape.lowest and not any(i in copy.bad for i in _few(run)):
                made.append((max(run.start, shape.lowest), run.end - max(run.start, shape.lowest)))
    return [(start, start + length) for start, length in RangeSet(made)]


def _few(run: _Run) -> range:
    """A run with a bad table in it is left out as a whole only if it is that one table."""
    return range(run.table, run.table + run.tables) if run.tables == 1 else range(0)


class Slab(NamedTuple):
    """Tables ``index`` to ``index + count``, as they are in the file; None: absent or not to be followed."""

    first: int
    tables: int
    primary: bytearray | None
    redundant: bytearray | None


def slabs(file: BlockDevice, shape: Shape, copies: Sequence[Directory]) -> Iterator[Slab]:
    """All tables that are not holes of the file, in large pieces."""
    size = shape.table_sectors * SECTOR
    step = max(1, SLAB // size)
    for first, last, sectors in _segments(shape, copies):
        for index in range(first, last, step):
            count = min(step, last - index)
            read = [
                _read_tables(file, (sector + (index - first) * shape.table_sectors) * SECTOR, count * size)
                if sector
                else None
                for sector in sectors
            ]
            one, two = read[0], read[1] if len(read) > 1 else None
            holes = [data is None or len(data) == 0 for data in read]
            if all(holes):
                continue
            filled = [
                bytearray(count * size) if data is not None and not data else data for data in (one, two)
            ]
            yield Slab(index, count, *filled)


def _read_tables(file: BlockDevice, offset: int, length: int) -> bytearray:
    """Empty for a hole."""
    if not _has_data(file, offset, length):
        return bytearray()
    data = bytearray(length)
    file.read_into(offset, data)
    return data


def _segments(shape: Shape, copies: Sequence[Directory]) -> Iterator[tuple[int, int, list[int]]]:
    """``(first, last, sector in each copy)``: tables that lie in a row in every copy."""
    count = len(copies[0].entries)
    lists = [list(_pieces(shape, copy)) for copy in copies]
    at = [0] * len(copies)
    position = 0
    while position < count:
        end = min(lists[c][at[c]][1] for c in range(len(copies)))
        sectors = []
        for c in range(len(copies)):
            first, last, sector = lists[c][at[c]]
            sectors.append(sector + (position - first) * shape.table_sectors if sector else 0)
            if last == end:
                at[c] += 1
        if any(sectors):
            yield position, end, sectors
        position = end


def _pieces(shape: Shape, copy: Directory) -> Iterator[tuple[int, int, int]]:
    for index, count, first in runs(copy.entries, 0, len(copy.entries), shape.table_sectors):
        start = index
        if copy.bad and first:
            wrong = (
                [i for i in copy.bad if index <= i < index + count]
                if count > len(copy.bad)
                else [i for i in range(index, index + count) if i in copy.bad]
            )
            for i in sorted(wrong):
                if i > start:
                    yield start, i, first + (start - index) * shape.table_sectors
                yield i, i + 1, 0
                start = i + 1
        if start < index + count:
            yield start, index + count, first + (start - index) * shape.table_sectors if first else 0
