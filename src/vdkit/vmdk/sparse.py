"""Hosted sparse extents (monolithicSparse and pieces of split disks): read, written in place, created.

Source of facts: VMware's "Virtual Disk Format 5.0" and the layout of files written by VMware products. Both
copies of the grain tables are kept: the primary is written first, the redundant one after it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import CorruptDisk, LimitExceeded, NotSupported
from vdkit.vmdk.grains import GrainExtent
from vdkit.vmdk.header import (
    ENTRIES_PER_TABLE,
    FLAG_NEWLINES,
    FLAG_REDUNDANT,
    GD_AT_END,
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
            _tables(file, header, header.directory),
            capacity=capacity,
            grain=header.grain * SECTOR,
            lowest=header.overhead,
            has_parent=has_parent,
            zero_entries=header.zero_grains,
            durable=durable,
        )
        self._redundant = _tables(file, header, header.redundant_directory) if header.redundant else None

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
        raise NotSupported(
            f"{self._name}: grain table {index} was never allocated, and this disk cannot grow one in place",
            remedy="convert it to a new monolithicSparse disk first",
        )

    def _publish(
        self, file: WritableDevice, dirty: Mapping[int, array[int]], sync: Callable[[], None]
    ) -> None:
        # Either copy is whole at any moment and points to durable grains only: no order between the two
        # needs a sync of its own.
        del sync
        for tables in (self._tables, self._redundant):
            if tables is None:
                continue
            for index in sorted(dirty):
                file.write_from(tables.place(index), u32_bytes(dirty[index]))


def _tables(file: BlockDevice, header: SparseHeader, directory: int) -> Tables:
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
            remedy="use monolithicFlat, vmfs or streamOptimized",
        )


def new_header(sectors: int) -> SparseHeader:
    """Layout as VMware's: header, descriptor, redundant directory and tables, primary ones, grains."""
    grains = -(-sectors // GRAIN_SECTORS)
    tables = -(-grains // ENTRIES_PER_TABLE)
    area = -(-tables * 4 // SECTOR) + tables * TABLE_SECTORS
    redundant = 1 + DESCRIPTOR_SECTORS
    primary = redundant + area
    return SparseHeader(
        version=1,
        flags=FLAG_NEWLINES | FLAG_REDUNDANT,
        capacity=sectors,
        grain=GRAIN_SECTORS,
        descriptor=1,
        descriptor_sectors=DESCRIPTOR_SECTORS,
        redundant_directory=redundant,
        directory=primary,
        overhead=-(-(primary + area) // GRAIN_SECTORS) * GRAIN_SECTORS,
    )


def write_new(file: WritableDevice, header: SparseHeader, descriptor: bytes) -> None:
    """Lay out an empty disk in an empty file; the header comes last, so that no half of it is a disk."""
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
    file.write_from(header.descriptor * SECTOR, descriptor.ljust(room, b"\0"))
    file.write_from(0, header.pack())
