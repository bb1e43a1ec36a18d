"""COWD extents (vmfsSparse): the redo logs of ESXi snapshots, read and written.

Source of facts: VMware's "Virtual Disk Format" papers and what public readers (qemu, libvmdk, dissect) and
public reports of VMware's own checker agree on. ``freeSector`` is authoritative: everything that is
referenced lies below it, so it is written before the tables that make new grains visible.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import CorruptDisk, LimitExceeded, NotADisk, UnsupportedVersion, UsageError
from vdkit.vmdk.grains import GrainExtent
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import Tables, u32_bytes

MAGIC = b"COWD"
ENTRIES_PER_TABLE = 4096
TABLE_SECTORS = 32
HEADER_SECTORS = 4
FLAGS = 3
#: Grain that ESXi uses, and the largest the format knows (1 MiB); in sectors.
GRAIN_SECTORS = 1
MAX_GRAIN_SECTORS = 2048
#: 2 TiB: sector numbers of both disk and file are 32 bits.
MAX_SECTORS = 0xFFFFFFFF

_HEAD = struct.Struct("<4sIIIIIII")
_FREE_OFFSET = 28
_GENERATION_OFFSET = 1060
_SAVED_GENERATION_OFFSET = 1636
_UNCLEAN_OFFSET = 1648


@dataclass(frozen=True, slots=True)
class CowdHeader:
    """Positions and sizes in sectors."""

    capacity: int
    grain: int
    directory: int
    tables: int
    free: int
    unclean: bool = False
    generation: int = 0
    saved_generation: int = 0

    @property
    def directory_sectors(self) -> int:
        return -(-self.tables * 4 // SECTOR)

    @property
    def lowest(self) -> int:
        """First sector that may hold a table or a grain."""
        return self.directory + self.directory_sectors

    def pack(self) -> bytes:
        """The 2048 bytes."""
        header = bytearray(HEADER_SECTORS * SECTOR)
        _HEAD.pack_into(
            header, 0, MAGIC, 1, FLAGS, self.capacity, self.grain, self.directory, self.tables, self.free
        )  # fmt: skip
        for offset, value in (
            (_GENERATION_OFFSET, self.generation),
            (_SAVED_GENERATION_OFFSET, self.saved_generation),
            (_UNCLEAN_OFFSET, int(self.unclean)),
        ):
            struct.pack_into("<I", header, offset, value)
        return bytes(header)

    @classmethod
    def parse(cls, data: bytes, file_size: int, where: str) -> CowdHeader:
        if len(data) < HEADER_SECTORS * SECTOR:
            raise CorruptDisk(f"{where}: cut short inside the header")
        magic, version, flags, capacity, grain, directory, tables, free = _HEAD.unpack_from(data)
        if magic != MAGIC:
            raise NotADisk(f"{where}: no COWD extent (it starts with {magic!r})")
        if version != 1:
            raise UnsupportedVersion(f"{where}: COWD extent of version {version}; only 1 is known")
        if flags & ~FLAGS:
            raise UnsupportedVersion(f"{where}: COWD extent with unknown flags {flags:#x}")
        if grain <= 0 or grain & (grain - 1) or grain > MAX_GRAIN_SECTORS:
            raise CorruptDisk(f"{where}: grain size of {grain} sectors is not a power of two up to 2048")
        if capacity <= 0:
            raise CorruptDisk(f"{where}: a capacity of 0 sectors")
        needed = tables_for(capacity, grain)
        if tables < needed:
            raise CorruptDisk(f"{where}: a directory of {tables} tables, {needed} are needed")
        generation, saved, unclean = (
            struct.unpack_from("<I", data, offset)[0]
            for offset in (_GENERATION_OFFSET, _SAVED_GENERATION_OFFSET, _UNCLEAN_OFFSET)
        )
        made = cls(capacity, grain, directory, tables, free, unclean != 0, generation, saved)
        if directory < HEADER_SECTORS or made.lowest * SECTOR > file_size:
            raise CorruptDisk(
                f"{where}: the directory at sector {directory} is outside the file of {file_size} bytes",
                remedy="the file was cut short or the header is damaged",
            )
        return made


def tables_for(sectors: int, grain: int) -> int:
    return -(-sectors // (ENTRIES_PER_TABLE * grain))


class CowdExtent(GrainExtent):
    """A COWD extent; takes over ``file``."""

    def __init__(
        self,
        file: BlockDevice | WritableDevice,
        *,
        capacity: int,
        has_parent: bool = True,
        durable: bool = True,
    ) -> None:
        """``capacity`` in bytes: what the descriptor says, up to the header's own."""
        data = bytearray(min(HEADER_SECTORS * SECTOR, file.capacity))
        file.read_into(0, data)
        header = CowdHeader.parse(bytes(data), file.capacity, file.name)
        if capacity > header.capacity * SECTOR:
            raise CorruptDisk(
                f"{file.name}: the descriptor gives this extent {capacity // SECTOR} sectors, "
                f"its header only {header.capacity}"
            )
        self.header = header
        tables = Tables(
            file,
            directory=header.directory * SECTOR,
            count=header.tables,
            entries=ENTRIES_PER_TABLE,
            lowest=header.lowest,
            where=file.name,
        )
        super().__init__(
            file,
            tables,
            capacity=capacity,
            grain=header.grain * SECTOR,
            lowest=header.lowest,
            has_parent=has_parent,
            zero_entries=True,
            durable=durable,
        )
        self._fresh_tables: set[int] = set()
        # Grains follow each other without gaps: VMware's checker calls a gap a hole to be repaired.
        self._unit = SECTOR

    def _begin(self, file: WritableDevice) -> int:
        if not self.header.unclean:
            file.write_from(_UNCLEAN_OFFSET, struct.pack("<I", 1))
            if self._durable:
                file.flush()
        # A free sector that was set back would let new grains overwrite old ones: the file's end is safe.
        return max(self.header.free, -(-file.capacity // SECTOR), self.header.lowest)

    def _finish(self, file: WritableDevice) -> None:
        if self.header.unclean:
            return
        if self.header.saved_generation != self.header.generation:
            file.write_from(_SAVED_GENERATION_OFFSET, struct.pack("<I", self.header.generation))
        file.write_from(_UNCLEAN_OFFSET, struct.pack("<I", 0))

    def _new_table(self, index: int) -> array[int]:
        file = self._target()
        sector = self._next
        self._grow(file, sector + TABLE_SECTORS)
        self._tables.set_sector(index, sector)
        self._fresh_tables.add(index)
        return array("I", bytes(ENTRIES_PER_TABLE * 4))

    def _publish(
        self, file: WritableDevice, dirty: Mapping[int, array[int]], sync: Callable[[], None]
    ) -> None:
        file.write_from(_FREE_OFFSET, struct.pack("<I", self._next))
        sync()
        for index in sorted(dirty):
            file.write_from(self._tables.place(index), u32_bytes(dirty[index]))
        with self._lock:
            fresh = self._fresh_tables & dirty.keys()
        if not fresh:
            return
        sync()
        for index in sorted(fresh):
            entry = struct.pack("<I", self._tables.sector(index))
            file.write_from(self.header.directory * SECTOR + index * 4, entry)
        with self._lock:
            self._fresh_tables -= fresh


def write_new(file: WritableDevice, sectors: int, *, grain: int = GRAIN_SECTORS) -> None:
    """An empty delta for a disk of ``sectors`` sectors, in an empty file; ``grain`` in sectors."""
    check_creatable(sectors, file.name)
    tables = tables_for(sectors, grain)
    free = HEADER_SECTORS + -(-tables * 4 // SECTOR)
    header = CowdHeader(sectors, grain, HEADER_SECTORS, tables, free)
    file.resize(free * SECTOR)
    file.write_from(0, header.pack())


def grain_sectors(grain: int | None, where: str) -> int:
    """Sectors of a grain of ``grain`` bytes, as far as such a delta can be made."""
    if grain is None:
        return GRAIN_SECTORS
    sectors, rest = divmod(grain, SECTOR)
    if rest or sectors & (sectors - 1) or not 1 <= sectors <= MAX_GRAIN_SECTORS:
        raise UsageError(
            f"{where}: a grain of {grain} bytes is not a power of two from {SECTOR} "
            f"to {MAX_GRAIN_SECTORS * SECTOR}"
        )
    return sectors


def check_creatable(sectors: int, where: str) -> None:
    if sectors > MAX_SECTORS:
        raise LimitExceeded(
            f"{where}: a vmfsSparse disk of {sectors * SECTOR} bytes is over the limit of 2 TiB"
        )
