"""File descriptors: type, length, times, and where the data is.

Source of facts: our notes on VMFS, sections 2.3 and 2.7.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from vdkit.errors import CorruptDisk, UnsupportedVersion
from vdkit.vmfs.superblock import Superblock

_LOCK_TYPE: Final = 0x10C00001
#: Bytes of the largest file that VMFS takes: its map has no more entries than can be walked.
MAX_LENGTH: Final = 1 << 46


class FileType(IntEnum):
    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4
    SYSTEM = 5
    RDM = 6


class Layout(IntEnum):
    """How a descriptor leads to the data (``ZLA``)."""

    NONE = 0
    BLOCKS = 1
    SUB_BLOCKS = 2
    ONE_LEVEL = 3
    ONE_LEVEL_POOL_2 = 5
    TWO_LEVELS = 0x10D0
    RESIDENT = 0x10D1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Sizes are bytes, times seconds since 1970."""

    address: int
    generation: int
    links: int
    type: FileType
    length: int
    block_size: int
    blocks: int
    """Allocated."""
    mtime: int
    ctime: int
    atime: int
    uid: int
    gid: int
    mode: int
    layout: Layout
    zeroed_blocks: int
    shared_blocks: int
    large_blocks: int
    zeroed_unit: int
    lock_mode: int
    lock_version: int
    raw: bytes = field(repr=False)
    """All of it, for the addresses or the data at its end."""

    def pointers(self, super_block: Superblock) -> array[int]:
        start = super_block.pointers_at
        return addresses(
            self.raw[start : start + super_block.pointers * super_block.address_size], super_block
        )

    def resident(self, super_block: Superblock) -> bytes:
        start = super_block.resident_at
        return self.raw[start : start + self.length]

    @property
    def stamp(self) -> bytes:
        """What changes when the file does: its lock's version, and all behind the lock."""
        return self.raw[0x1C:0x24] + self.raw[512:]


def addresses(raw: bytes, super_block: Superblock) -> array[int]:
    """The addresses in ``raw``, which is a whole number of them."""
    made = array("Q" if super_block.six else "I")
    made.frombytes(raw)
    if sys.byteorder == "big":
        made.byteswap()
    return made


def parse_descriptor(raw: bytes, super_block: Superblock, address: int, place: int, where: str) -> Descriptor:
    """What was read at volume offset ``place``; ``where`` names the volume and the file in messages.

    Raises CorruptDisk, UnsupportedVersion.
    """
    lock_type, own_place, _, _, version, mode = struct.unpack_from("<IQQQQI", raw)
    if lock_type != _LOCK_TYPE:
        raise CorruptDisk(f"{where}: no file descriptor at address {address:#010x}")
    if own_place != place:
        raise CorruptDisk(
            f"{where}: the descriptor at volume offset {place} says that it is at {own_place}",
            remedy="the volume is damaged, or its LUNs do not belong together",
        )
    base = super_block.metadata
    own, generation, links, kind, _ = struct.unpack_from("<IIIII", raw, base)
    if own != address:
        raise CorruptDisk(f"{where}: the descriptor at {address:#010x} says that it is {own:#010x}")
    length, block_size, blocks = struct.unpack_from("<QQQ", raw, base + 0x14)
    mtime, ctime, atime, uid, gid, permissions, layout = struct.unpack_from("<7I", raw, base + 0x2C)
    zeroed, shared = (
        struct.unpack_from("<I", raw, base + low)[0] | struct.unpack_from("<I", raw, base + high)[0] << 32
        for low, high in ((0x48, 0x54), (0x4C, 0x58))
    )
    (unit_shift,) = struct.unpack_from("<I", raw, base + 0x6C)
    (large,) = struct.unpack_from("<I", raw, base + 0x8C)
    try:
        file_type = FileType(kind)
        found_layout = Layout(layout)
    except ValueError as error:
        raise UnsupportedVersion(
            f"{where}: a descriptor of type {kind} and layout {layout}, which are not known"
        ) from error
    if length > MAX_LENGTH:
        raise CorruptDisk(f"{where}: a length of {length} bytes")
    if not _sound(found_layout, block_size, super_block):
        raise CorruptDisk(f"{where}: blocks of {block_size} bytes")
    if found_layout is Layout.RESIDENT and length > super_block.resident_size:
        raise CorruptDisk(f"{where}: {length} bytes said to be inside the descriptor")
    return Descriptor(
        address=own,
        generation=generation,
        links=links,
        type=file_type,
        length=length,
        block_size=block_size,
        blocks=blocks,
        mtime=mtime,
        ctime=ctime,
        atime=atime,
        uid=uid,
        gid=gid,
        mode=permissions & 0o7777,
        layout=found_layout,
        zeroed_blocks=zeroed if super_block.six else zeroed & 0xFFFFFFFF,
        shared_blocks=shared if super_block.six else shared & 0xFFFFFFFF,
        zeroed_unit=1 << unit_shift if super_block.six and 9 <= unit_shift <= 30 else super_block.zeroed_unit,
        large_blocks=large if super_block.six else 0,
        lock_mode=mode,
        lock_version=version,
        raw=raw,
    )


def _sound(layout: Layout, block_size: int, super_block: Superblock) -> bool:
    match layout:
        case Layout.NONE | Layout.RESIDENT:
            return True
        case Layout.SUB_BLOCKS:
            return block_size == super_block.sub_block_size
        case Layout.BLOCKS | Layout.ONE_LEVEL | Layout.ONE_LEVEL_POOL_2 | Layout.TWO_LEVELS:
            large = super_block.block_size << super_block.large_shift
            return block_size in (super_block.block_size, large)
