"""The superblock of a VMFS file system and the layout that follows from it.

Source of facts: our notes on VMFS, sections 2.1 and 2.2 (checked on the sample images of dissect.vmfs).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vdkit.block.device import BlockDevice
from vdkit.errors import CorruptDisk, NotADisk, UnsupportedVersion
from vdkit.vmfs.lvm import uuid_text

MAGIC: Final = 0x2FABF15E
#: A host's own system partition.
MAGIC_LOCAL: Final = 0x2FABF15F
OFFSET: Final = 0x200000
_SIZE: Final = 0x158
#: The first version of VMFS-6.
_SIX: Final = 24
_FIVE: Final = 14
_NEWEST: Final = 26
_CONFIG_DENSE: Final = 0x4
_MIB: Final = 1 << 20
MIN_BLOCK: Final = 1 << 12
MAX_BLOCK: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Superblock:
    """Sizes and offsets in bytes, offsets within the volume."""

    major: int
    minor: int
    uuid: str
    label: str
    local: bool
    dense: bool
    block_size: int
    sub_block_size: int
    metadata: int
    """Size of a metadata block: 512, or VMFS-6's alignment."""
    large_shift: int
    """A large block is this power of two times a small one."""
    zeroed_unit: int
    """Bytes that one bit of a block's to-be-zeroed mask stands for; 0 where there is only one."""
    first_cluster: int
    clusters_per_group: int
    second_pool: int
    """Where the descriptor of ``.pb2.sf`` is."""
    checksums: int

    @property
    def six(self) -> bool:
        return self.major >= _SIX

    @property
    def version(self) -> int:
        """5 or 6."""
        return 6 if self.six else 5

    @property
    def descriptor_size(self) -> int:
        return 2 * self.metadata if self.six else 2048

    @property
    def cluster_header(self) -> int:
        return 2 * self.metadata if self.six else 1024

    @property
    def pointers(self) -> int:
        """Addresses in a descriptor."""
        if not self.six:
            return 256
        return 320 if self.metadata <= 4096 else self.metadata // 16

    @property
    def pointers_at(self) -> int:
        """Where they are, from the start of a descriptor."""
        return self.descriptor_size - self.pointers * 8 if self.six else 1024

    @property
    def resident_at(self) -> int:
        return self.metadata + 512 if self.six else 1024

    @property
    def resident_size(self) -> int:
        return self.descriptor_size - self.resident_at

    @property
    def pointer_block(self) -> int:
        """Bytes of a block of addresses."""
        return max(65536, self.metadata) if self.six else 4096

    @property
    def address_size(self) -> int:
        return 8 if self.six else 4

    @property
    def descriptors(self) -> int:
        """Where the first descriptor, that of the root directory, is."""
        if self.six:
            start = _round_up(self.metadata * 1024 + 0x300000, _MIB)
        else:
            start = _round_up(4 * _MIB, self.block_size)
        return start + self.first_cluster + self.clusters_per_group * self.cluster_header


def read_superblock(volume: BlockDevice) -> Superblock:
    """Raises NotADisk, UnsupportedVersion, CorruptDisk."""
    if volume.capacity < OFFSET + _SIZE:
        raise NotADisk(f"{volume.name}: too small for VMFS")
    raw = bytearray(_SIZE)
    volume.read_into(OFFSET, raw)
    magic, major, minor = struct.unpack_from("<IIB", raw)
    if magic not in (MAGIC, MAGIC_LOCAL):
        raise NotADisk(f"{volume.name}: no VMFS superblock at offset {OFFSET}")
    if not (_FIVE <= major < _SIX and major < 20) and not _SIX <= major <= _NEWEST:
        raise UnsupportedVersion(
            f"{volume.name}: VMFS version {major}.{minor}; 14 (VMFS-5) and 24 (VMFS-6) are known"
        )
    (config,) = struct.unpack_from("<I", raw, 0x19)
    (block,) = struct.unpack_from("<Q", raw, 0xA1)
    first, clusters, sub_block = struct.unpack_from("<III", raw, 0xD1)
    (pool,) = struct.unpack_from("<Q", raw, 0xE1)
    (alignment,) = struct.unpack_from("<I", raw, 0x134)
    (shift,) = struct.unpack_from("<H", raw, 0x138)
    (zeroed,) = struct.unpack_from("<I", raw, 0x144)
    six = major >= _SIX
    found = Superblock(
        major=major,
        minor=minor,
        uuid=uuid_text(bytes(raw[0x09:0x19])),
        label=bytes(raw[0x1D:0x9D]).split(b"\0")[0].decode("utf-8", "replace"),
        local=magic == MAGIC_LOCAL,
        dense=bool(config & _CONFIG_DENSE),
        block_size=block,
        sub_block_size=sub_block,
        metadata=alignment if six else 512,
        large_shift=shift if six else 0,
        zeroed_unit=zeroed if six else 0,
        first_cluster=first,
        clusters_per_group=clusters,
        second_pool=pool,
        checksums=raw[0x111] if six else 0,
    )
    _check(volume.name, found)
    return found


def _check(name: str, found: Superblock) -> None:
    if not _power(found.block_size) or not MIN_BLOCK <= found.block_size <= MAX_BLOCK:
        raise CorruptDisk(f"{name}: a VMFS block size of {found.block_size} bytes")
    if not _power(found.sub_block_size) or not 1024 <= found.sub_block_size <= found.block_size:
        raise CorruptDisk(f"{name}: VMFS sub-blocks of {found.sub_block_size} bytes")
    if found.six and found.metadata not in (4096, 65536):
        raise CorruptDisk(f"{name}: VMFS metadata aligned to {found.metadata} bytes")
    if found.six and not 0 < found.large_shift <= 13:
        raise CorruptDisk(f"{name}: large blocks of 2^{found.large_shift} small ones")
    if not 0 < found.clusters_per_group <= 4096 or found.first_cluster > 1 << 24:
        raise CorruptDisk(f"{name}: descriptors in groups of {found.clusters_per_group} clusters")
    if found.checksums:
        raise UnsupportedVersion(f"{name}: metadata with checksums of type {found.checksums}")


def _power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
