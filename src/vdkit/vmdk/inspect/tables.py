"""Directories and grain tables, counted and compared with their redundant copies.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vdkit.block.device import BlockDevice
from vdkit.vmdk.inspect.grid import MAX_ENTRIES, Grid
from vdkit.vmdk.inspect.model import Difference, TableDump
from vdkit.vmdk.kinds import SECTOR

#: Tables that are read: all of a 2 TiB disk at the usual grain.
MAX_TABLES_READ = 1 << 16
#: Differences between the copies that are shown.
MAX_DIFFERENCES = 64

_PIECE = 1 << 14


@dataclass(slots=True)
class _Count:
    """What is being counted of one copy."""

    absent: int = 0
    present: int = 0
    outside: int = 0
    seen: int = 0
    grains: dict[str, int] = field(default_factory=lambda: {"absent": 0, "zero": 0, "data": 0})
    grains_outside: int = 0
    lowest: int | None = None
    highest: int | None = None
    problems: list[str] = field(default_factory=list)

    def dump(self, name: str, grid: Grid) -> TableDump:
        return TableDump(
            name=name,
            directory=grid.directory,
            tables=grid.tables,
            absent=self.absent,
            present=self.present,
            outside=self.outside,
            seen=self.seen,
            grains_absent=self.grains["absent"],
            grains_zero=self.grains["zero"],
            grains_data=self.grains["data"],
            grains_outside=self.grains_outside,
            lowest=self.lowest,
            highest=self.highest,
            problems=tuple(self.problems),
        )


def dump_tables(file: BlockDevice, grid: Grid, *, deep: bool, name: str = "primary") -> TableDump:
    """Count a directory; with ``deep`` its tables too, up to :data:`MAX_TABLES_READ`."""
    count = _Count()
    limit = min(grid.tables, MAX_ENTRIES)
    for first in range(0, limit, _PIECE):
        wanted = min(_PIECE, limit - first)
        entries = grid.directory_piece(file, first, wanted)
        for index, entry in enumerate(entries, first):
            _count_table(file, grid, index, entry, count, deep=deep)
        if len(entries) < wanted:
            count.problems.append(f"the directory breaks off at entry {first + len(entries)}: the file ends")
            break
    if count.outside:
        count.problems.append(f"{count.outside} tables lie outside the file")
    if count.grains_outside:
        count.problems.append(f"{count.grains_outside} grains lie outside the file's grains")
    if grid.tables > limit:
        count.problems.append(f"only the first {limit} entries of the directory were looked at")
    if deep and count.seen == MAX_TABLES_READ and count.present > count.seen:
        count.problems.append(f"only the first {count.seen} tables were read")
    return count.dump(name, grid)


def _count_table(file: BlockDevice, grid: Grid, index: int, entry: int, count: _Count, *, deep: bool) -> None:
    if entry == 0:
        count.absent += 1
        return
    count.present += 1
    place = grid.place_of(entry)
    if place < SECTOR or place + grid.table_bytes > file.capacity:
        count.outside += 1
        return
    if not deep or count.seen >= MAX_TABLES_READ:
        return
    data = grid.table(file, entry)
    if data is None:
        return
    count.seen += 1
    if not data.strip(b"\0"):
        count.grains["absent"] += grid.entries
        return
    for at, value in enumerate(grid.numbers(data)):
        kind, sector = grid.meaning_of(value)
        count.grains[kind] += 1
        if kind != "data":
            continue
        end = sector * SECTOR + grid.stored(index * grid.entries + at)
        if sector < grid.lowest or end > file.capacity:
            count.grains_outside += 1
            continue
        if count.lowest is None or sector < count.lowest:
            count.lowest = sector
        if count.highest is None or sector > count.highest:
            count.highest = sector


def differences(file: BlockDevice, grid: Grid, *, deep: bool) -> tuple[list[Difference], int]:
    """The first differences between both copies, and how many there are in all that was looked at.

    That the directories differ is how it should be, as each has tables of its own; they disagree where one
    has a table that the other lacks.
    """
    if grid.redundant is None:
        return [], 0
    found: list[Difference] = []
    total = seen = 0
    limit = min(grid.tables, MAX_ENTRIES)
    for first in range(0, limit, _PIECE):
        ours = grid.directory_piece(file, first, _PIECE)
        theirs = grid.redundant.directory_piece(file, first, _PIECE)
        for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if bool(one) != bool(other):
                total += 1
                _keep(found, Difference(first + at, None, one, other))
            elif one and deep and seen < MAX_TABLES_READ:
                seen += 1
                total += _compare(file, grid, first + at, (one, other), found)
    return found, total


def _compare(
    file: BlockDevice, grid: Grid, index: int, pair: tuple[int, int], found: list[Difference]
) -> int:
    ours, theirs = (grid.table(file, entry) for entry in pair)
    if ours == theirs:
        return 0
    if ours is None or theirs is None:
        _keep(found, Difference(index, None, *pair))
        return 1
    total = 0
    for at, (one, other) in enumerate(zip(grid.numbers(ours), grid.numbers(theirs), strict=True)):
        if one != other:
            total += 1
            _keep(found, Difference(index, at, one, other))
    return total


def _keep(found: list[Difference], difference: Difference) -> None:
    if len(found) < MAX_DIFFERENCES:
        found.append(difference)
