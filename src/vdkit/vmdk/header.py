"""The header of a hosted sparse extent ("KDMV"): read, checked, written.

Source of facts: VMware's "Virtual Disk Format 5.0" and files written by VMware products, qemu and VirtualBox.
Every field is checked before any of it is used; sectors are 512 bytes.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, replace

from vdkit.errors import CorruptDisk, FormatError, LimitExceeded, NotADisk, UnsupportedVersion
from vdkit.vmdk.kinds import SECTOR

MAGIC = b"KDMV"
#: First bytes of a file that is still being written: no reader takes it for a disk.
UNFINISHED_MAGIC = b"kdmv"
GD_AT_END = (1 << 64) - 1
ENTRIES_PER_TABLE = 512
TABLE_SECTORS = 4
NEWLINES = b"\n \r\n"

FLAG_NEWLINES = 0x1
FLAG_REDUNDANT = 0x2
FLAG_ZERO_GRAINS = 0x4
FLAG_COMPRESSED = 0x10000
FLAG_MARKERS = 0x20000
_KNOWN_HIGH = FLAG_COMPRESSED | FLAG_MARKERS

COMPRESS_NONE = 0
COMPRESS_DEFLATE = 1

#: Largest grain: 1 GiB plain (nothing of that size is ever held), 16 MiB compressed (one is held whole).
MAX_GRAIN_SECTORS = 1 << 21
MAX_COMPRESSED_GRAIN_SECTORS = 1 << 15
#: 32 Mi tables: what qemu allows too.
MAX_TABLES = 1 << 25
MAX_CAPACITY_SECTORS = 1 << 53
#: No sector number in a table can be larger.
MAX_FILE_SECTORS = 1 << 32

#: All fields in order, for those who look at a header that is damaged.
LAYOUT = struct.Struct("<4sIIQQQQIQQQB4sH")
UNCLEAN_OFFSET = 72
#: Where descriptorOffset and descriptorSize lie.
DESCRIPTOR_FIELDS_OFFSET = 28


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """Fields by the names of the specification; all positions and sizes in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_sectors: int
    redundant_directory: int
    directory: int
    overhead: int
    unclean: bool = False
    compression: int = COMPRESS_NONE

    @property
    def compressed(self) -> bool:
        return bool(self.flags & FLAG_COMPRESSED)

    @property
    def redundant(self) -> bool:
        return bool(self.flags & FLAG_REDUNDANT)

    @property
    def zero_grains(self) -> bool:
        """Table entry 1 means: reads as zeroes, whatever the parent holds."""
        return bool(self.flags & FLAG_ZERO_GRAINS)

    @property
    def grains(self) -> int:
        return -(-self.capacity // self.grain)

    @property
    def tables(self) -> int:
        return -(-self.grains // ENTRIES_PER_TABLE)

    @property
    def directory_sectors(self) -> int:
        return -(-self.tables * 4 // SECTOR)

    def pack(self, magic: bytes = MAGIC) -> bytes:
        """The 512 bytes."""
        return LAYOUT.pack(
            magic,
            self.version,
            self.flags,
            self.capacity,
            self.grain,
            self.descriptor,
            self.descriptor_sectors,
            ENTRIES_PER_TABLE,
            self.redundant_directory,
            self.directory,
            self.overhead,
            int(self.unclean),
            NEWLINES,
            self.compression,
        ).ljust(SECTOR, b"\0")

    @classmethod
    def parse(cls, data: bytes, where: str) -> SparseHeader:
        """Checks all that needs no file size; ``data`` is at least 512 bytes."""
        if len(data) < SECTOR:
            raise CorruptDisk(f"{where}: cut short inside the header")
        magic, version, flags, capacity, grain, desc, desc_sectors, entries, *rest = LAYOUT.unpack_from(data)
        redundant, directory, overhead, unclean, newlines, compression = rest
        if magic == UNFINISHED_MAGIC:
            raise NotADisk(f"{where}: this VMDK was never finished", remedy="make it again")
        if magic != MAGIC:
            raise NotADisk(f"{where}: no sparse extent (it starts with {magic!r})")
        if not 1 <= version <= 3:
            raise UnsupportedVersion(f"{where}: sparse extent of version {version}; 1 to 3 are known")
        unknown = flags >> 16 << 16 & ~_KNOWN_HIGH
        if unknown:
            raise UnsupportedVersion(f"{where}: sparse extent with unknown incompatible flags {unknown:#x}")
        if flags & FLAG_NEWLINES and newlines != NEWLINES:
            raise CorruptDisk(
                f"{where}: line ends were changed in this binary file",
                remedy="it was transferred in text mode; transfer it again in binary mode",
            )
        if entries != ENTRIES_PER_TABLE:
            raise UnsupportedVersion(f"{where}: grain tables of {entries} entries; only 512 is known")
        made = cls(
            version, flags, capacity, grain, desc, desc_sectors, redundant, directory, overhead,
            bool(unclean), compression,
        )  # fmt: skip
        made._check_sizes(where)
        made._check_compression(where)
        return made

    def _check_sizes(self, where: str) -> None:
        if self.grain <= 0 or self.grain & (self.grain - 1):
            raise CorruptDisk(f"{where}: grain size of {self.grain} sectors is not a power of two")
        most = MAX_COMPRESSED_GRAIN_SECTORS if self.compressed else MAX_GRAIN_SECTORS
        if self.grain > most:
            raise LimitExceeded(f"{where}: grain size of {self.grain} sectors is over the limit of {most}")
        if not 0 < self.capacity <= MAX_CAPACITY_SECTORS:
            raise LimitExceeded(
                f"{where}: capacity of {self.capacity} sectors is not 1 to {MAX_CAPACITY_SECTORS}"
            )
        if self.tables > MAX_TABLES:
            raise LimitExceeded(f"{where}: {self.tables} grain tables are over the limit of {MAX_TABLES}")

    def _check_compression(self, where: str) -> None:
        markers = bool(self.flags & FLAG_MARKERS)
        if self.compression not in (COMPRESS_NONE, COMPRESS_DEFLATE):
            raise UnsupportedVersion(f"{where}: unknown compression algorithm {self.compression}")
        if self.compressed != markers or self.compressed != (self.compression == COMPRESS_DEFLATE):
            raise CorruptDisk(
                f"{where}: flags {self.flags:#x} contradict compression algorithm {self.compression}"
            )

    def check_layout(self, file_size: int, where: str) -> None:
        """Everything the header points to lies inside the file and nothing overlaps."""
        end = file_size // SECTOR
        areas = [("header", 0, 1)]
        if self.descriptor:
            areas.append(("descriptor", self.descriptor, self.descriptor_sectors))
        if self.directory != GD_AT_END:
            areas.append(("grain directory", self.directory, self.directory_sectors))
        if self.redundant and not self.compressed:
            areas.append(("redundant grain directory", self.redundant_directory, self.directory_sectors))
        for what, start, length in areas:
            if start + length > end:
                raise CorruptDisk(
                    f"{where}: the {what} at sector {start} ends past the file's {end} sectors",
                    remedy="the file was cut short or the header is damaged",
                )
        areas.sort(key=lambda area: area[1])
        for (what, start, length), (other, other_start, _) in itertools.pairwise(areas):
            if other_start < start + length:
                raise CorruptDisk(f"{where}: the {other} at sector {other_start} overlaps the {what}")
        if not self.compressed and not 0 < self.overhead <= end:
            raise CorruptDisk(f"{where}: overhead of {self.overhead} sectors does not fit the file of {end}")

    def same_disk(self, other: SparseHeader) -> bool:
        """True if a footer agrees with its header in all but the place of the tables."""
        moved = replace(
            other,
            directory=self.directory,
            redundant_directory=self.redundant_directory,
            overhead=self.overhead,
            unclean=self.unclean,
        )
        return moved == self


def check_descriptor_area(header: SparseHeader, where: str) -> tuple[int, int]:
    """Offset and length, in bytes, of the embedded descriptor; raises if there is none or it is too large."""
    if header.descriptor == 0 or header.descriptor_sectors == 0:
        raise FormatError(
            f"{where}: this sparse extent has no descriptor of its own",
            remedy="it is one piece of a disk: open the disk's descriptor file",
        )
    length = header.descriptor_sectors * SECTOR
    if length > 1 << 20:
        raise LimitExceeded(f"{where}: embedded descriptor of {length} bytes is over the limit of 1 MiB")
    return header.descriptor * SECTOR, length
