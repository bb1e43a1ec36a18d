"""Hosted sparse extents (monolithicSparse and pieces of split disks): read, written in place, created.

Source of facts: VMware's "Virtual Disk Format 5.0" and the layout of files written by VMware products. Both
copies of the grain tables are kept: the primary is written first, the redundant one after it. A table that
another product left out is added at the end of the file, and its directory entry written once it is there.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import CorruptDisk, LimitExceeded, UsageError
from vdkit.vmdk.grains import GrainExtent
from vdkit.vmdk.header import (
    ENTRIES_PER_TABLE,
    FLAG_NEWLINES,
    FLAG_REDUNDANT,
    GD_AT_END,
    MAX_GRAIN_SECTORS,
    TABLE_SECTORS,
    UNCLEAN_OFFSET,
    SparseHeader,
)
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import Tables, u32_bytes

GRAIN_SECTORS = 128
#: Sectors kept for the embedded descriptor, as VMware does: other products add lines to it.
DESCRIPTOR_SECTORS = 20
#: VMware's own limit for hosted sparse disks: 2 TiB.
MAX_CREATE_SECTORS = 1 << 32
#: The smallest grain that is made, 4 KiB; the format's paper and other readers want no less.
MIN_GRAIN_SECTORS = 8


class SparseExtent(GrainExtent):
    """A "KDMV" extent without compression; takes over ``file``."""

    def __init__(
        self,
        file: BlockDevice | WritableDevice,
        header: SparseHeader,
        *,
        capacity: int,
        has_parent: bool = False,
        durable: bool = True,
    ) -> None:
        """``capacity`` in bytes: what the descriptor says, up to the header's own."""
        where = file.name
        if header.compressed or header.directory == GD_AT_END:
            raise CorruptDisk(f"{where}: a compressed extent where a plain sparse one was expected")
        header.check_layout(file.capacity, where)
        if capacity > header.capacity * SECTOR:
            raise CorruptDisk(
                f"{where}: the descriptor gives this extent {capacity // SECTOR} sectors, "
                f"its header only {header.capacity}"
            )
        self.header = header
        super().__init__(
            file,
            grain_tables(file, header, header.directory),
            capacity=capacity,
            grain=header.grain * SECTOR,
            lowest=header.overhead,
            has_parent=has_parent,
            zero_entries=header.zero_grains,
            durable=durable,
        )
        self._redundant = grain_tables(file, header, header.redundant_directory) if header.redundant else None
        self._marks_zeroes = header.zero_grains
        #: Tables that have a place, which the directory in the file does not know yet.
        self._fresh: list[tuple[Tables, int]] = []

    def _begin(self, file: WritableDevice) -> int:
        if not self.header.unclean:
            file.write_from(UNCLEAN_OFFSET, b"\1")
            if self._durable:
                file.flush()
        return -(-max(file.capacity // SECTOR, self.header.overhead) // self._step) * self._step

    def _finish(self, file: WritableDevice) -> None:
        # A disk that was unclean before stays marked: what it lacked then has not been repaired.
        if not self.header.unclean:
            file.write_from(UNCLEAN_OFFSET, b"\0")

    def _new_table(self, index: int) -> array[int]:
        """Other products leave tables out until they are needed: both copies get their place now."""
        if self._redundant is not None and self._redundant.sector(index):
            raise CorruptDisk(
                f"{self._name}: grain table {index} is in the redundant directory only",
                remedy="repair the disk first (vdkit check --repair)",
            )
        self._place_table(self._tables, index)
        if self._redundant is not None:
            self._place_table(self._redundant, index)
        return array("I", bytes(ENTRIES_PER_TABLE * 4))

    def _place_table(self, tables: Tables, index: int) -> None:
        sector = self._next
        self._grow(self._target(), sector + TABLE_SECTORS)
        tables.set_sector(index, sector)
        self._fresh.append((tables, index))

    def _publish(
        self, file: WritableDevice, dirty: Mapping[int, array[int]], sync: Callable[[], None]
    ) -> None:
        copies = [self._tables] if self._redundant is None else [self._tables, self._redundant]
        with self._lock:
            for index in dirty:
                # A crash between the two directories may have left a table out of the second one.
                if self._redundant is not None and not self._redundant.sector(index):
                    self._place_table(self._redundant, index)
            fresh = [(tables, index) for tables, index in self._fresh if index in dirty]
        # Either copy is whole at any moment and points to durable grains only: no order between the two
        # needs a sync of its own.
        for tables in copies:
            for index in sorted(dirty):
                file.write_from(tables.place(index), u32_bytes(dirty[index]))
        if not fresh:
            return
        sync()
        for tables, index in fresh:
            primary = tables is self._tables
            directory = self.header.directory if primary else self.header.redundant_directory
            file.write_from(directory * SECTOR + index * 4, struct.pack("<I", tables.sector(index)))
        with self._lock:
            self._fresh = [entry for entry in self._fresh if entry not in fresh]


def grain_tables(file: BlockDevice, header: SparseHeader, directory: int) -> Tables:
    """The tables of one of the two directories; ``directory`` is its sector."""
    return Tables(
        file,
        directory=directory * SECTOR,
        count=header.tables,
        entries=ENTRIES_PER_TABLE,
        lowest=1,
        where=file.name,
    )


def read_header(file: BlockDevice) -> SparseHeader:
    data = bytearray(min(SECTOR, file.capacity))
    file.read_into(0, data)
    return SparseHeader.parse(bytes(data), file.name)


def check_creatable(sectors: int, where: str) -> None:
    """Refuse, before anything is written, what the format cannot hold."""
    if sectors > MAX_CREATE_SECTORS:
        raise LimitExceeded(
            f"{where}: a sparse disk of {sectors * SECTOR} bytes is over the limit of 2 TiB",
            remedy="use twoGbMaxExtentSparse, monolithicFlat, vmfs or streamOptimized",
        )


def grain_sectors(grain: int | None, where: str) -> int:
    """Sectors of a grain of ``grain`` bytes, as far as such a disk can be made."""
    if grain is None:
        return GRAIN_SECTORS
    sectors, rest = divmod(grain, SECTOR)
    if rest or sectors & (sectors - 1) or not MIN_GRAIN_SECTORS <= sectors <= MAX_GRAIN_SECTORS:
        raise UsageError(
            f"{where}: a grain of {grain} bytes is not a power of two from {MIN_GRAIN_SECTORS * SECTOR} "
            f"to {MAX_GRAIN_SECTORS * SECTOR}"
        )
    return sectors


def new_header(
    sectors: int, *, grain: int = GRAIN_SECTORS, descriptor_sectors: int = DESCRIPTOR_SECTORS
) -> SparseHeader:
    """Layout as VMware's: header, descriptor, redundant directory and tables, primary ones, grains.

    The pieces of a split disk have no descriptor of their own (``descriptor_sectors`` 0).
    """
    grains = -(-sectors // grain)
    tables = -(-grains // ENTRIES_PER_TABLE)
    area = -(-tables * 4 // SECTOR) + tables * TABLE_SECTORS
    redundant = 1 + descriptor_sectors
    primary = redundant + area
    return SparseHeader(
        version=1,
        flags=FLAG_NEWLINES | FLAG_REDUNDANT,
        capacity=sectors,
        grain=grain,
        descriptor=1 if descriptor_sectors else 0,
        descriptor_sectors=descriptor_sectors,
        redundant_directory=redundant,
        directory=primary,
        overhead=-(-(primary + area) // grain) * grain,
    )


def write_new(
    file: WritableDevice, header: SparseHeader, descriptor: bytes = b"", *, durable: bool = False
) -> None:
    """Lay out an empty disk in an empty file, which the caller flushes.

    The header comes last, so that no half of it is a disk; ``durable`` sees to it that a crash keeps that
    order. A piece of a split disk needs none: it is no disk before its disk's descriptor is there.
    """
    room = header.descriptor_sectors * SECTOR
    if len(descriptor) > room:
        raise LimitExceeded(
            f"{file.name}: descriptor of {len(descriptor)} bytes does not fit its {room} bytes"
        )
    file.resize(header.overhead * SECTOR)
    for directory in (header.redundant_directory, header.directory):
        first = directory + header.directory_sectors
        entries = array("I", range(first, first + header.tables * TABLE_SECTORS, TABLE_SECTORS))
        file.write_from(directory * SECTOR, u32_bytes(entries))
    if room:
        file.write_from(header.descriptor * SECTOR, descriptor.ljust(room, b"\0"))
    if durable:
        file.flush()
    file.write_from(0, header.pack())
