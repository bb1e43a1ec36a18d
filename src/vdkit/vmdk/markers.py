"""Markers of a streamOptimized extent: what the next sectors of the stream are.

Source of facts: VMware's "Virtual Disk Format 5.0" and streams exported by ESXi.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vdkit.vmdk.kinds import SECTOR

EOS, GT, GD, FOOTER, PROGRESS = range(5)
KINDS = range(5)

#: Bytes before the compressed data of a grain: its first sector and its size.
GRAIN_HEAD = 12
_GRAIN = struct.Struct("<QI")
_METADATA = struct.Struct("<QII")


class Marker(NamedTuple):
    """``size`` > 0: a grain of so many compressed bytes, ``value`` is its first sector; else metadata of
    ``kind`` and ``value`` sectors.
    """

    value: int
    size: int
    kind: int


def parse(data: bytes | bytearray | memoryview, position: int = 0) -> Marker:
    """The marker at ``position``; at least 16 bytes must be there."""
    value, size, kind = _METADATA.unpack_from(data, position)
    return Marker(value, size, kind)


def metadata(kind: int, sectors: int) -> bytes:
    """A whole sector."""
    return _METADATA.pack(sectors, 0, kind).ljust(SECTOR, b"\0")


def grain_record(lba: int, packed: bytes | bytearray) -> list[bytes | bytearray]:
    """Marker, compressed data and padding to a whole sector, as pieces to join."""
    used = GRAIN_HEAD + len(packed)
    return [_GRAIN.pack(lba, len(packed)), packed, bytes(-used % SECTOR)]


def record_sectors(size: int) -> int:
    """Sectors that a grain of ``size`` compressed bytes takes."""
    return -(-(GRAIN_HEAD + size) // SECTOR)


def largest_size(grain: int) -> int:
    """Compressed size, in bytes, that is believed of a grain of ``grain`` bytes."""
    return 2 * grain + 1024


def is_zlib(data: bytes | bytearray | memoryview, position: int) -> bool:
    """True if a zlib stream (RFC 1950) may begin at ``position``: deflate in a window of 256 bytes to 32 KiB,
    without a dictionary.
    """
    method, flags = data[position], data[position + 1]
    return method & 0x8F == 8 and not flags & 0x20 and (method << 8 | flags) % 31 == 0
