"""seSparse extents: the redo logs that ESXi makes on VMFS-6 and for disks of 2 TiB and more; read only.

VMware has not published the format. Source of facts: the public description that came with qemu's reader
(from an ESXi log) and what Xen Orchestra's and dissect's readers agree with it on. How journal, free bitmap
and back map are encoded is not known to anybody outside VMware, so nothing is written here, and a disk whose
journal waits to be replayed is refused unless the caller takes it as it is.

An entry's index has its low twelve bits above its high ones. Grains that a guest unmapped read as zeroes.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import CorruptDisk, LimitExceeded, NotADisk, NotSupported, UnsupportedVersion
from vdkit.vmdk.grains import GrainExtent
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import Tables

MAGIC = b"\xbe\xba\xfe\xca\0\0\0\0"
VERSION = 0x0000000200000001
GRAIN_SECTORS = 8
TABLE_SECTORS = 64
ENTRIES_PER_TABLE = TABLE_SECTORS * SECTOR // 8
#: 64 TiB, the most that any VMware product documents.
MAX_SECTORS = 1 << 37

_VOLATILE_MAGIC = 0xCAFECAFE
_CONST = struct.Struct("<8s25Q")
_VOLATILE = struct.Struct("<4Q")
#: Areas of the file in the order in which the header names them.
AREAS = (
    "volatile header",
    "journal header",
    "journal",
    "grain directory",
    "grain tables",
    "free bitmap",
    "back map",
    "grains",
)
#: A directory entry: this in the high half, the number of the table in the low one.
TABLE_MARK = 0x10000000
#: Top four bits of a table entry.
ABSENT, UNMAPPED, ZERO, ALLOCATED = range(4)

_REMEDY = "the file was cut short or the header is damaged"


@dataclass(frozen=True, slots=True)
class SeSparseHeader:
    """``areas`` are ``(first sector, sectors)`` by the names of :data:`AREAS`; capacity in sectors."""

    capacity: int
    areas: Mapping[str, tuple[int, int]]
    next_table: int = 0
    journal_waits: bool = False

    @property
    def tables(self) -> int:
        """Tables that the capacity needs."""
        return -(-self.capacity // (ENTRIES_PER_TABLE * GRAIN_SECTORS))

    @classmethod
    def read(cls, file: BlockDevice) -> SeSparseHeader:
        """Both headers, every field checked. Raises NotADisk, UnsupportedVersion, CorruptDisk."""
        where = file.name
        data = _sector(file, 0, where)
        magic, version, capacity, grain, table, flags, *rest = _CONST.unpack_from(data)
        if magic != MAGIC:
            raise NotADisk(f"{where}: no seSparse extent (it starts with {magic!r})")
        if version != VERSION:
            number = f"{version >> 32}.{version & 0xFFFFFFFF}"
            raise UnsupportedVersion(f"{where}: seSparse extent of version {number}; only 2.1 is known")
        if grain != GRAIN_SECTORS or table != TABLE_SECTORS:
            raise UnsupportedVersion(
                f"{where}: grains of {grain} and grain tables of {table} sectors; only 8 and 64 are known"
            )
        if flags or any(rest[:4]):
            raise UnsupportedVersion(f"{where}: seSparse extent with unknown flags {flags:#x} or fields")
        if any(data[_CONST.size :]):
            raise UnsupportedVersion(f"{where}: seSparse extent with unknown fields behind its header")
        if not 0 < capacity <= MAX_SECTORS:
            raise LimitExceeded(f"{where}: capacity of {capacity} sectors is not 1 to {MAX_SECTORS}")
        areas = {name: (rest[4 + 2 * i], rest[5 + 2 * i]) for i, name in enumerate(AREAS)}
        made = cls(capacity, areas)
        made._check_areas(file.capacity // SECTOR, where)
        return made._with_volatile(file)

    def _check_areas(self, end: int, where: str) -> None:
        """What is needed lies in the file, nothing overlaps. Tables and grains may not be written yet."""
        ordered = sorted((start, length, name) for name, (start, length) in self.areas.items())
        for start, length, name in ordered:
            if start < 1 or length < 1 or start + length > 1 << 54:
                raise CorruptDisk(
                    f"{where}: the {name} at sector {start} has {length} sectors", remedy=_REMEDY
                )
        for (start, length, name), (other_start, _, other) in itertools.pairwise(ordered):
            if other_start < start + length:
                raise CorruptDisk(f"{where}: the {other} at sector {other_start} overlaps the {name}")
        needed = -(-self.tables * 8 // SECTOR)
        start, length = self.areas["grain directory"]
        if length < needed:
            raise CorruptDisk(f"{where}: a grain directory of {length} sectors, {needed} are needed")
        for name, least in (("volatile header", 1), ("grain directory", needed)):
            start = self.areas[name][0]
            if start + least > end:
                raise CorruptDisk(
                    f"{where}: the {name} at sector {start} ends past the file's {end} sectors",
                    remedy=_REMEDY,
                )

    def _with_volatile(self, file: BlockDevice) -> SeSparseHeader:
        start = self.areas["volatile header"][0]
        data = _sector(file, start, file.name)
        magic, next_table, _, replay = _VOLATILE.unpack_from(data)
        if magic != _VOLATILE_MAGIC:
            raise CorruptDisk(f"{file.name}: no volatile header at sector {start}", remedy=_REMEDY)
        if any(data[_VOLATILE.size :]):
            raise UnsupportedVersion(f"{file.name}: unknown fields behind the volatile header")
        return replace(self, next_table=next_table, journal_waits=replay != 0)

    def pack(self) -> tuple[bytes, bytes]:
        """The constant and the volatile header, 512 bytes each."""
        places = itertools.chain.from_iterable(self.areas[name] for name in AREAS)
        const = _CONST.pack(
            MAGIC, VERSION, self.capacity, GRAIN_SECTORS, TABLE_SECTORS, 0, 0, 0, 0, 0, *places
        )
        volatile = _VOLATILE.pack(_VOLATILE_MAGIC, self.next_table, 0, int(self.journal_waits))
        return const.ljust(SECTOR, b"\0"), volatile.ljust(SECTOR, b"\0")


def _sector(file: BlockDevice, sector: int, where: str) -> bytes:
    if (sector + 1) * SECTOR > file.capacity:
        raise CorruptDisk(f"{where}: cut short inside the header")
    data = bytearray(SECTOR)
    file.read_into(sector * SECTOR, data)
    return bytes(data)


class _SeTables(Tables):
    """Entries of 64 bits, turned into sector numbers as they are read."""

    width = 8

    def __init__(self, file: BlockDevice, header: SeSparseHeader) -> None:
        self._first_table, table_sectors = header.areas["grain tables"]
        self._max_table = table_sectors // TABLE_SECTORS
        self._first_grain, grain_sectors = header.areas["grains"]
        self._max_grain = grain_sectors // GRAIN_SECTORS
        super().__init__(
            file,
            directory=header.areas["grain directory"][0] * SECTOR,
            count=header.tables,
            entries=ENTRIES_PER_TABLE,
            lowest=self._first_table,
            where=file.name,
        )

    def _directory_piece(self, data: bytearray, first: int) -> array[int]:
        import numpy

        raw = numpy.frombuffer(data, "<u8")
        number = raw & 0xFFFFFFFF
        bad = (raw != 0) & ((raw >> 32 != TABLE_MARK) | (number >= self._max_table))
        if bad.any():
            at = int(bad.argmax())
            raise CorruptDisk(
                f"{self._where}: entry {first + at} of the grain directory is {int(raw[at]):#x}, "
                "which is no table's"
            )
        sectors = number * TABLE_SECTORS + self._first_table
        return _numbers(numpy.where(raw == 0, 0, sectors).astype("u8").tobytes())

    def _table(self, data: bytearray, index: int) -> array[int]:
        import numpy

        raw = numpy.frombuffer(data, "<u8")
        kind = raw >> 60
        slot = (raw >> 48 & 0xFFF) | (raw & 0xFFFFFFFFFFFF) << 12
        bad = (
            (kind > ALLOCATED)
            | ((kind == ABSENT) & (raw != 0))
            | ((kind == ALLOCATED) & (slot >= self._max_grain))
        )
        if bad.any():
            at = int(bad.argmax())
            raise CorruptDisk(
                f"{self._where}: entry {at} of grain table {index} is {int(raw[at]):#x}, which is no grain's"
            )
        sectors = slot * GRAIN_SECTORS + self._first_grain
        return _numbers(
            numpy.where(kind == ALLOCATED, sectors, numpy.minimum(kind, 1)).astype("u8").tobytes()
        )


def _numbers(data: bytes) -> array[int]:
    made = array("Q")
    made.frombytes(data)
    return made


class SeSparseExtent(GrainExtent):
    """An seSparse extent; takes over ``file``, which is only read."""

    def __init__(
        self, file: BlockDevice, *, capacity: int, has_parent: bool = True, ignore_journal: bool = False
    ) -> None:
        """``capacity`` in bytes: what the descriptor says, up to the header's own."""
        header = SeSparseHeader.read(file)
        if capacity > header.capacity * SECTOR:
            raise CorruptDisk(
                f"{file.name}: the descriptor gives this extent {capacity // SECTOR} sectors, "
                f"its header only {header.capacity}"
            )
        if header.journal_waits and not ignore_journal:
            raise NotSupported(
                f"{file.name}: its journal has not been replayed, so that its tables may be half changed",
                remedy="open the disk once on its host, or read it as it is with ignore_journal=True "
                "(on the command line: --ignore-journal)",
            )
        self.header = header
        super().__init__(
            file,
            _SeTables(file, header),
            capacity=capacity,
            grain=GRAIN_SECTORS * SECTOR,
            lowest=header.areas["grains"][0],
            has_parent=has_parent,
            zero_entries=True,
            durable=False,
        )

    def _begin(self, file: WritableDevice) -> int:
        refuse_writing(file.name)

    def _new_table(self, index: int) -> array[int]:  # noqa: ARG002  no table is ever made
        refuse_writing(self._name)

    def _publish(
        self,
        file: WritableDevice,
        dirty: Mapping[int, array[int]],  # noqa: ARG002
        sync: Callable[[], None],  # noqa: ARG002
    ) -> None:
        refuse_writing(file.name)

    def _finish(self, file: WritableDevice) -> None:
        refuse_writing(file.name)


def refuse_writing(name: str) -> NoReturn:
    raise NotSupported(
        f"{name}: an seSparse extent cannot be changed in place: the format of its journal is not public",
        remedy="convert the disk first, or write it through its host",
    )
