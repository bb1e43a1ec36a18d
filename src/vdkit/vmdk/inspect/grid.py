"""The two levels of tables of every sparse format, as one thing: where an entry lies and what it says.

Source of facts: VMware's "Virtual Disk Format 5.0"; for seSparse what public readers (qemu, dissect) agree
on. Made of the fields of a header that may be damaged: what cannot be believed gives no grid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from vdkit.block.device import BlockDevice
from vdkit.vmdk import cowd, header
from vdkit.vmdk.inspect.headers import peek
from vdkit.vmdk.inspect.model import Section
from vdkit.vmdk.kinds import SECTOR

#: Entries of a directory that are looked at: 128 TiB of a disk at the usual grain.
MAX_ENTRIES = 1 << 22


@dataclass(frozen=True, slots=True)
class Grid:
    """``directory``, ``capacity`` and ``grain`` in bytes, ``code`` the ``struct`` letter of an entry;
    ``packed`` grains are of any length in the file.
    """

    directory: int
    tables: int
    entries: int
    grain: int
    lowest: int
    code: str
    place_of: Callable[[int], int]
    meaning_of: Callable[[int], tuple[str, int]]
    capacity: int
    packed: bool = False
    redundant: Grid | None = None

    @property
    def width(self) -> int:
        return struct.calcsize("<" + self.code)

    @property
    def table_bytes(self) -> int:
        return self.entries * self.width

    @property
    def span(self) -> int:
        """Bytes of the disk that one table covers."""
        return self.entries * self.grain

    def stored(self, number: int) -> int:
        """Bytes that grain ``number`` takes in the file at least."""
        return 16 if self.packed else max(1, min(self.grain, self.capacity - number * self.grain))

    def numbers(self, data: bytes) -> tuple[int, ...]:
        count = len(data) // self.width
        return struct.unpack_from(f"<{count}{self.code}", data)

    def directory_piece(self, file: BlockDevice, first: int, count: int) -> tuple[int, ...]:
        """Entries of the directory; fewer where the file ends."""
        count = min(count, self.tables - first)
        return self.numbers(peek(file, self.directory + first * self.width, count * self.width))

    def table(self, file: BlockDevice, directory_entry: int) -> bytes | None:
        """A table's bytes; None if it is not in the file."""
        place = self.place_of(directory_entry)
        data = peek(file, place, self.table_bytes) if place >= SECTOR else b""
        return data if len(data) == self.table_bytes else None


def sparse_grid(section: Section) -> Grid | None:
    """Of a "KDMV" header or footer; None without tables that could be believed."""
    grain, directory = section.value("grainSize"), section.value("gdOffset")
    capacity, flags = section.value("capacity"), section.value("flags")
    if not grain or not capacity or directory is None or flags is None:
        return None
    if grain > header.MAX_GRAIN_SECTORS or capacity > header.MAX_CAPACITY_SECTORS:
        return None
    if directory in (0, header.GD_AT_END) or directory > header.MAX_FILE_SECTORS:
        return None
    compressed = bool(flags & header.FLAG_COMPRESSED)
    zeroes = bool(flags & header.FLAG_ZERO_GRAINS)
    made = Grid(
        directory=directory * SECTOR,
        tables=min(-(-capacity // (header.ENTRIES_PER_TABLE * grain)), header.MAX_TABLES),
        entries=header.ENTRIES_PER_TABLE,
        grain=grain * SECTOR,
        lowest=1 if compressed else section.value("overHead") or 1,
        code="I",
        place_of=lambda entry: entry * SECTOR,
        meaning_of=lambda entry: _plain(entry, zeroes=zeroes),
        capacity=capacity * SECTOR,
        packed=compressed,
    )
    other = section.value("rgdOffset")
    if flags & header.FLAG_REDUNDANT and other and other <= header.MAX_FILE_SECTORS and not compressed:
        return replace(made, redundant=replace(made, directory=other * SECTOR))
    return made


def cowd_grid(section: Section) -> Grid | None:
    grain, directory = section.value("grainSize"), section.value("gdOffset")
    capacity, tables = section.value("numSectors"), section.value("numGDEntries")
    if not grain or not directory or not capacity or not tables or grain > cowd.MAX_GRAIN_SECTORS:
        return None
    return Grid(
        directory=directory * SECTOR,
        tables=min(tables, header.MAX_TABLES),
        entries=cowd.ENTRIES_PER_TABLE,
        grain=grain * SECTOR,
        lowest=directory + -(-tables * 4 // SECTOR),
        code="I",
        place_of=lambda entry: entry * SECTOR,
        meaning_of=lambda entry: _plain(entry, zeroes=True),
        capacity=capacity * SECTOR,
    )


def sesparse_grid(section: Section) -> Grid | None:
    grain, table = section.value("grainSize"), section.value("grainTableSize")
    capacity, directory = section.value("capacity"), section.value("grainDirectoryOffset")
    tables, grains = section.value("grainTablesOffset"), section.value("grainsOffset")
    if grain != 8 or table != 64 or not capacity or not directory or not tables or not grains:
        return None
    if max(capacity, directory, tables, grains) > header.MAX_CAPACITY_SECTORS:
        return None
    first_table, first_grain = tables, grains
    return Grid(
        directory=directory * SECTOR,
        tables=min(-(-capacity // (4096 * 8)), header.MAX_TABLES),
        entries=4096,
        grain=8 * SECTOR,
        lowest=first_grain,
        code="Q",
        place_of=lambda entry: (first_table + (entry & 0xFFFFFFFF) * 64) * SECTOR if entry >> 60 == 1 else 0,
        meaning_of=lambda entry: _nibble(entry, first_grain),
        capacity=capacity * SECTOR,
    )


def _plain(entry: int, *, zeroes: bool) -> tuple[str, int]:
    """``(absent, zero or data, first sector)``"""
    if entry == 0:
        return "absent", 0
    return ("zero", 0) if entry == 1 and zeroes else ("data", entry)


def _nibble(entry: int, first_grain: int) -> tuple[str, int]:
    match entry >> 60:
        case 0:
            return "absent", 0
        case 1 | 2:
            return "zero", 0
        case _:
            index = (entry & 0x0FFF_0000_0000_0000) >> 48 | (entry & 0x0000_FFFF_FFFF_FFFF) << 12
            return "data", first_grain + index * 8
