"""One pass over all grain tables of an extent: which tables need a closer look, and is any grain used twice.

Up to :data:`FEW_TABLES` tables a plain loop does it; above, numpy, which costs more to load than such a loop
takes. Neither holds the tables: a byte per grain of the file tells whether a grain is taken, and only if the
count does not add up are entries sorted, in windows of the file, to find out who shares what.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.errors import LimitExceeded
from vdkit.vmdk.check.directory import Directory, Slab, slabs
from vdkit.vmdk.check.shape import Shape
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import runs, u32s

FEW_TABLES = 64
#: Bytes of marks that are held at a time.
MAX_MARKS = 1 << 27
#: Entries that are sorted at a time (8 bytes each).
MAX_SORTED = 1 << 23
#: Shared grains that are told apart before the check is given up.
MAX_SHARED = 1 << 20

#: Called with ``(index, primary, redundant)`` of a table with something to tell.
OnTable: TypeAlias = "Callable[[int, array[int] | None, array[int] | None], None]"
Step = Callable[[int, int], None]


class Shared(NamedTuple):
    """Grain ``number`` of the disk points to ``sector``, which is (in part) ``keeper``'s; -1: a table's."""

    sector: int
    number: int
    keeper: int


class Totals(NamedTuple):
    """``used`` in sectors, tables among the grains included; ``unaligned`` entries in an aligned file."""

    allocated: int
    used: int
    unaligned: int
    first_orphan: int | None
    shared: bool


class TableScan:
    """``occupied``: sectors of tables among the grains, ascending and disjoint."""

    def __init__(
        self,
        file: BlockDevice,
        shape: Shape,
        copies: Sequence[Directory],
        occupied: Sequence[tuple[int, int]] = (),
        step: Step | None = None,
        *,
        bulk: bool | None = None,
    ) -> None:
        self._file = file
        self.shape = shape
        self._copies = copies
        self._occupied = occupied
        self._step = step
        self._bulk = shape.tables > FEW_TABLES if bulk is None else bulk
        self._slack = shape.lowest % shape.grain
        self._last_number = shape.grains - 1

    # -- the first pass ----------------------------------------------------------------------------

    def run(self, on_table: OnTable) -> Totals:
        found = self._first_pass(on_table)
        allocated, unaligned, marked, orphan = found
        grain = self.shape.grain
        # A table among the grains takes the rest of its unit with it.
        tables = RangeSet((start, end - start) for start, end in self._occupied).aligned(grain, 1 << 40)
        used = allocated * grain + tables.total
        if unaligned:
            return Totals(allocated, used, unaligned, None, True)
        return Totals(allocated, used, 0, orphan, not marked)

    def _first_pass(self, on_table: OnTable) -> tuple[int, int, bool, int | None]:
        if self._bulk:
            return _BulkPass(self).run(on_table)
        return _PlainPass(self).run(on_table)

    def slabs(self) -> Iterator[Slab]:
        total = self.shape.tables
        for slab in slabs(self._file, self.shape, self._copies):
            if self._step is not None:
                self._step(slab.first, total)
            yield slab

    def is_plain(self, entry: int) -> bool:
        return self.shape.lowest <= entry <= self.shape.last_whole

    def tables_of(self, slab: Slab, index: int) -> tuple[array[int] | None, array[int] | None]:
        size = self.shape.table_sectors * SECTOR
        start = (index - slab.first) * size
        length = self.shape.entries * 4
        one, two = (
            None if data is None else u32s(memoryview(data)[start : start + length])
            for data in (slab.primary, slab.redundant)
        )
        return one, two

    # -- who shares what ---------------------------------------------------------------------------

    def shared(self, allocated: int) -> Iterator[Shared]:
        """Entries that must give way, ascending by sector; the first one of a grain keeps it."""
        count = 0
        for cluster in self._clusters(allocated):
            for shared in self._losers(cluster):
                count += 1
                if count > MAX_SHARED:
                    raise LimitExceeded(
                        f"{self.shape.where}: more than {MAX_SHARED} grains are used more than once",
                        remedy="the tables are damaged beyond checking",
                    )
                yield shared

    def _losers(self, cluster: list[tuple[int, int]]) -> Iterator[Shared]:
        """``(sector, number)`` of entries that overlap one another or a table."""
        grain = self.shape.grain
        kept: list[tuple[int, int]] = []
        losers: list[Shared] = []
        # In a file of aligned grains, the one that is not is the intruder.
        for sector, number in sorted(cluster, key=lambda e: ((e[0] - self._slack) % grain != 0, e)):
            table = next((t for t in self._near(sector) if t[0] < sector + grain and sector < t[1]), None)
            if table is not None:
                losers.append(Shared(sector, number, -1))
                continue
            other = next((k for k in reversed(kept[-3:]) if abs(k[0] - sector) < grain), None)
            if other is None and (sector - self._slack) % grain:
                other = next((k for k in kept if abs(k[0] - sector) < grain), None)
            if other is None:
                kept.append((sector, number))
            else:
                losers.append(Shared(sector, number, other[1]))
        yield from sorted(losers)

    def _near(self, sector: int) -> Iterator[tuple[int, int]]:
        import bisect

        at = max(0, bisect.bisect_right(self._occupied, (sector, 1 << 62)) - 1)
        for start, end in self._occupied[at:]:
            if start >= sector + self.shape.grain:
                return
            yield start, end

    def _clusters(self, allocated: int) -> Iterator[list[tuple[int, int]]]:
        if self._bulk:
            return _bulk_clusters(self, allocated)
        return self._plain_clusters()

    def _plain_clusters(self) -> Iterator[list[tuple[int, int]]]:
        entries = [
            (entry, number)
            for slab in self.slabs()
            for index in range(slab.first, slab.first + slab.tables)
            for number, entry in self._plain_entries(slab, index)
        ]
        entries.sort()
        return _overlapping(entries, self.shape.grain, self._occupied)

    def _plain_entries(self, slab: Slab, index: int) -> Iterator[tuple[int, int]]:
        one, two = self.tables_of(slab, index)
        table = one if one is not None else two
        if table is None:
            return
        first = index * self.shape.entries
        for i in range(min(self.shape.entries, self.shape.grains - first)):
            if table[i] >= self.shape.lowest and table[i] <= self.shape.last_whole:
                yield first + i, table[i]


def _overlapping(
    entries: list[tuple[int, int]], grain: int, occupied: Sequence[tuple[int, int]]
) -> Iterator[list[tuple[int, int]]]:
    """Groups of entries, sorted, in which each overlaps the next one or a table."""
    group: list[tuple[int, int]] = []
    alone = True
    for entry in entries:
        if group and entry[0] >= group[-1][0] + grain:
            if not alone or any(t[0] < group[0][0] + grain and group[0][0] < t[1] for t in occupied):
                yield group
            group, alone = [], True
        alone = not group
        group.append(entry)
    if group and (not alone or any(t[0] < group[0][0] + grain and group[0][0] < t[1] for t in occupied)):
        yield group


class _PlainPass:
    """For a few tables: runs of entries, as intervals."""

    def __init__(self, scan: TableScan) -> None:
        self._scan = scan
        self._shape = scan.shape
        self._intervals: list[tuple[int, int]] = []
        self._allocated = 0
        self._unaligned = 0

    def run(self, on_table: OnTable) -> tuple[int, int, bool, int | None]:
        for slab in self._scan.slabs():
            for index in range(slab.first, slab.first + slab.tables):
                one, two = self._scan.tables_of(slab, index)
                table = one if one is not None else two
                if table is None:
                    continue
                if self._note(index, table) or (one is not None and two is not None and one != two):
                    on_table(index, one, two)
        return self._allocated, self._unaligned, *self._free()

    def _note(self, index: int, table: array[int]) -> bool:
        """Remember where the grains are; True if some entry is not an ordinary one."""
        shape = self._shape
        odd = False
        inside = min(shape.entries, shape.grains - index * shape.entries)
        for _, count, first in runs(table, 0, inside, shape.grain):
            if first == 0:
                continue
            last = first + (count - 1) * shape.grain
            if first >= shape.lowest and last <= shape.last_whole:
                self._add(first, count)
                continue
            odd = odd or first != 1 or not shape.zero_entries
            if first > 1:
                plain = [s for s in range(first, last + 1, shape.grain) if self._scan.is_plain(s)]
                if plain:
                    self._add(plain[0], len(plain))
        return odd or any(table[inside:])

    def _add(self, first: int, count: int) -> None:
        self._intervals.append((first, first + count * self._shape.grain))
        self._allocated += count
        if (first - self._scan._slack) % self._shape.grain:
            self._unaligned += count

    def _free(self) -> tuple[bool, int | None]:
        """Whether nothing overlaps, and the first sector that nothing uses."""
        end, orphan = self._shape.lowest, None
        for start, stop in sorted([*self._intervals, *self._scan._occupied]):
            if start < end:
                return False, None
            if start - end >= self._shape.grain and orphan is None:
                orphan = end
            end = max(end, stop)
        return True, end if orphan is None else orphan


class _BulkPass:
    """For many tables: numpy."""

    def __init__(self, scan: TableScan) -> None:
        self._scan = scan
        self._shape = scan.shape
        shape = scan.shape
        self._first = shape.lowest - scan._slack
        self._units = max(1, -(-(shape.file_bytes // SECTOR + 1 - self._first) // shape.grain))

    def run(self, on_table: OnTable) -> tuple[int, int, bool, int | None]:
        allocated = unaligned = 0
        whole, orphan = True, None
        for window in range(0, self._units, MAX_MARKS):
            size = min(MAX_MARKS, self._units - window)
            counted, odd, distinct, free = self._window(window, size, on_table if window == 0 else None)
            allocated += counted
            unaligned = odd if window == 0 else unaligned
            if unaligned:
                return self._count(), unaligned, False, None
            whole = whole and distinct
            if orphan is None and free is not None:
                orphan = self._first + (window + free) * self._shape.grain
        return allocated, unaligned, whole, orphan

    def _count(self) -> int:
        return sum(len(values) for values, _ in self.values())

    def values(self) -> Iterator[tuple[Any, Slab]]:
        """The entries, not 0, of each slab that lie where grains may."""
        import numpy as np

        shape = self._shape
        for slab in self._scan.slabs():
            entries = _entries(slab, shape, np)
            kept = entries[(entries >= shape.lowest) & (entries <= max(0, shape.last_whole))]
            yield kept, slab

    def _window(self, window: int, size: int, on_table: OnTable | None) -> tuple[int, int, bool, int | None]:
        import numpy as np

        shape = self._shape
        marks = np.zeros(size, np.uint8)
        for start, end in self._scan._occupied:
            low = (start - self._first) // shape.grain - window
            high = -(-(end - self._first) // shape.grain) - window
            marks[max(0, low) : max(0, high)] = 1
        held = int(np.count_nonzero(marks))
        counted = unaligned = 0
        mask = shape.grain - 1
        shift = mask.bit_length()
        for slab in self._scan.slabs():
            entries = _entries(slab, shape, np)
            there = entries[entries != 0]
            odd = self._is_odd(slab, there)
            if odd and on_table is not None:
                self._tell(slab, entries, on_table, np)
            if odd:
                there = there[(there >= shape.lowest) & (there <= max(0, shape.last_whole))]
            if not len(there):
                continue
            relative = there - np.uint32(self._first)
            if mask and (relative & np.uint32(mask)).any():
                unaligned += int(np.count_nonzero(relative & np.uint32(mask)))
            relative >>= np.uint32(shift)
            if self._units > size:
                relative = relative[(relative >= window) & (relative < window + size)] - np.uint32(window)
            marks[relative] = 1
            counted += len(relative)
        taken = int(np.count_nonzero(marks))
        free = int(np.argmin(marks)) if taken < size else None
        return counted, unaligned, taken == held + counted, free

    def _is_odd(self, slab: Slab, there: Any) -> bool:
        shape = self._shape
        if slab.primary is not None and slab.redundant is not None and slab.primary != slab.redundant:
            return True
        if slab.first + slab.tables == shape.tables and shape.grains % shape.entries:
            return True
        return bool(len(there)) and (int(there.min()) < shape.lowest or int(there.max()) > shape.last_whole)

    def _tell(self, slab: Slab, entries: Any, on_table: OnTable, np: Any) -> None:
        shape = self._shape
        table = entries.reshape(slab.tables, -1)
        odd = (table > max(0, shape.last_whole)) | ((table < shape.lowest) & (table != 0))
        if shape.zero_entries:
            odd &= table != 1
        flagged = odd.any(axis=1)
        if slab.primary is not None and slab.redundant is not None:
            other = np.frombuffer(slab.redundant, "<u4").reshape(slab.tables, -1)
            flagged |= (table != other).any(axis=1)
        if slab.first + slab.tables == shape.tables:
            flagged[-1] = True
        for i in np.flatnonzero(flagged).tolist():
            on_table(slab.first + i, *self._scan.tables_of(slab, slab.first + i))


def _entries(slab: Slab, shape: Shape, np: Any) -> Any:
    data = slab.primary if slab.primary is not None else slab.redundant
    entries = np.frombuffer(data, "<u4")
    beyond = (slab.first + slab.tables) * shape.entries - shape.grains
    if beyond > 0:  # entries behind the end of the disk mean nothing
        entries = entries.copy()
        entries[len(entries) - beyond :] = 0
    return entries


def _bulk_clusters(scan: TableScan, allocated: int) -> Iterator[list[tuple[int, int]]]:
    import numpy as np

    shape = scan.shape
    end = shape.file_bytes // SECTOR + 1
    windows = max(1, -(-allocated // (MAX_SORTED // 2)), -(-(end - shape.lowest) >> 30))
    width = -(-(end - shape.lowest) // windows)
    for low in range(shape.lowest, end, max(1, width)):
        begin = max(shape.lowest, low - shape.grain + 1)
        keys = _window_keys(scan, begin, low + width, np)
        yield from _window_clusters(scan, keys, begin, low, np)


def _window_keys(scan: TableScan, low: int, high: int, np: Any) -> Any:
    """Entries in ``[low, high)``, sorted, each as ``(sector - low) << 34 | number``."""
    shape = scan.shape
    parts = []
    total = 0
    for slab in scan.slabs():
        entries = _entries(slab, shape, np)
        at = np.flatnonzero((entries >= low) & (entries < high) & (entries <= max(0, shape.last_whole)))
        if not len(at):
            continue
        total += len(at)
        if total > 2 * MAX_SORTED:
            raise LimitExceeded(
                f"{shape.where}: more than {2 * MAX_SORTED} entries point into one part of the file",
                remedy="the tables are damaged beyond checking",
            )
        sectors = entries[at].astype(np.uint64) - np.uint64(low)
        parts.append(
            sectors << np.uint64(34) | (at.astype(np.uint64) + np.uint64(slab.first * shape.entries))
        )
    keys = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    keys.sort()
    return keys


def _window_clusters(
    scan: TableScan, keys: Any, begin: int, low: int, np: Any
) -> Iterator[list[tuple[int, int]]]:
    """Sectors of ``keys`` count from ``begin``; groups that end below ``low`` were told before."""
    grain = scan.shape.grain
    sectors = (keys >> np.uint64(34)) + np.uint64(begin)
    near = np.zeros(len(keys) + 1, bool)
    if len(keys) > 1:
        near[1:-1] = np.diff(sectors) < np.uint64(grain)
    touching = np.zeros(len(keys), bool)
    for start, end in scan._occupied:
        a, b = np.searchsorted(sectors, [max(0, start - grain + 1), end])
        touching[a:b] = True
    wanted = near[:-1] | near[1:] | touching
    group: list[tuple[int, int]] = []
    previous = -1
    for i in np.flatnonzero(wanted).tolist():
        if group and (i != previous + 1 or not near[i]):
            if group[-1][0] >= low:
                yield group
            group = []
        key = int(keys[i])
        group.append((begin + (key >> 34), key & ((1 << 34) - 1)))
        previous = i
    if group and group[-1][0] >= low:
        yield group
