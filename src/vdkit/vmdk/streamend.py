"""Whether a stream with its tables up front is whole: every grain that they name lies in the file.

Such a stream (VMware Workstation, qemu, open-vmdk) has no footer, and not all writers end it with the end
marker, so the file's end tells nothing. Its tables do: the grain that lies last must be there to its end.

Source of facts: VMware's "Virtual Disk Format 5.0" and streams of qemu and open-vmdk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vdkit.block.device import BlockDevice
from vdkit.errors import CorruptDisk
from vdkit.vmdk import markers
from vdkit.vmdk.header import TABLE_SECTORS, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.streamscan import REMEDY
from vdkit.vmdk.tables import Tables, TableSource, u32s

#: Tables that follow each other are read together, so many at a time (1 MiB).
_TOGETHER = 512
#: Bytes of a marker that must be there to be read.
_MARKER = 16


class CutTables:
    """The tables of a stream that breaks off: what lies at ``end`` (a sector) or behind it is left out."""

    def __init__(self, tables: Tables, end: int) -> None:
        self.entries = tables.entries
        self._tables = tables
        self._end = end

    def table(self, index: int) -> array[int] | None:
        try:
            found = self._tables.table(index)
        except CorruptDisk:
            return None
        if found is None or max(found) < self._end:
            return found
        return array("I", [entry if entry < self._end else 0 for entry in found])

    def present(self, first: int, last: int) -> Iterator[int]:
        return (index for index in range(first, last) if self._tables.sector(index))


def whole_stream(
    file: BlockDevice, header: SparseHeader, tables: Tables, *, recover: bool
) -> tuple[TableSource, list[str]]:
    """The tables to go by, and notes. Raises CorruptDisk if grains are missing, unless ``recover``."""
    end = max(0, file.capacity - _MARKER) // SECTOR + 1
    outside: list[int] | None = [] if recover else None
    last, lost = _last_grain(_all_entries(tables, file, outside), end)
    if last and last * SECTOR + _record_bytes(file, header, last) > file.capacity:
        lost += 1
        end = last
    if lost or outside:
        if not recover:
            raise CorruptDisk(
                f"{file.name}: the stream breaks off: at least {lost} of the grains that its tables name are "
                "past the end of the file",
                remedy=REMEDY,
            )
        what = f"{len(outside)} grain tables and " if outside else ""
        note = f"the stream breaks off: {what}at least {lost} grains are lost"
        return CutTables(tables, end), [f"{note}, and read as if they had never been there"]
    if _ends_with_zeroes(file):
        return tables, []
    return tables, ["there is no end marker; every grain that the tables name is in the file"]


def _last_grain(tables: Iterator[array[int]], end: int) -> tuple[int, int]:
    """The last sector below ``end`` that a table names, and how many are named from there on."""
    last = lost = 0
    for entries in tables:
        top = max(entries)
        if top >= end:
            lost += sum(entry >= end for entry in entries)
            top = max((entry for entry in entries if entry < end), default=0)
        last = max(last, top)
    return (last if last > 1 else 0), lost


def _all_entries(tables: Tables, file: BlockDevice, outside: list[int] | None) -> Iterator[array[int]]:
    """All entries of all tables that may hold something, many tables at a time.

    Tables that lie outside the file are listed in ``outside``; where it is None they are an error.
    """
    start = count = 0
    for index in _indexes(tables, recover=outside is not None):
        try:
            place = tables.place(index)
        except CorruptDisk:
            if outside is None:
                raise
            outside.append(index)
            continue
        if count and place == start + count * TABLE_SECTORS * SECTOR and count < _TOGETHER:
            count += 1
            continue
        if count:
            yield _read(file, start, count)
        start, count = place, 1
    if count:
        yield _read(file, start, count)


def _indexes(tables: Tables, *, recover: bool) -> Iterator[int]:
    if recover:  # one table after the other: what lies outside the file is passed over
        return (index for index in range(tables.count) if tables.sector(index))
    return tables.present(0, tables.count)


def _read(file: BlockDevice, start: int, tables: int) -> array[int]:
    data = bytearray(tables * TABLE_SECTORS * SECTOR)
    file.read_into(start, data)
    return u32s(data)


def _record_bytes(file: BlockDevice, header: SparseHeader, sector: int) -> int:
    """Length of the grain at ``sector``; a marker that makes no sense is for the reader of it to refuse."""
    data = bytearray(_MARKER)
    file.read_into(sector * SECTOR, data)
    marker = markers.parse(data)
    if not 0 < marker.size <= markers.largest_size(header.grain * SECTOR):
        return 0
    return markers.GRAIN_HEAD + marker.size


def _ends_with_zeroes(file: BlockDevice) -> bool:
    data = bytearray(SECTOR)
    file.read_into(file.capacity // SECTOR * SECTOR - SECTOR, data)
    return not any(data)
