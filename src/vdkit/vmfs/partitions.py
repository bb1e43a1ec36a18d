"""Where on a LUN VMFS may begin: MBR and GPT partitions of its type, or the whole device.

Source of facts: our notes on VMFS, section 1.1, and the UEFI specification (partition tables).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from vdkit.block.device import BlockDevice
from vdkit.errors import CorruptDisk

MBR_TYPE: Final = 0xFB
_PROTECTIVE: Final = 0xEE
_GPT_TYPE: Final = bytes.fromhex("2ae031aa0f40db119590000c2911d1b8")
_GPT_SIGNATURE: Final = b"EFI PART"
#: Bytes of a partition table that are believed; the usual one has 16 KiB.
MAX_TABLE: Final = 1 << 20
_SECTOR: Final = 512
_MBR_ENTRY = struct.Struct("<B3xB3xII")


class Partition(NamedTuple):
    """``number`` is 0 for a whole device; ``offset`` and ``length`` are bytes."""

    number: int
    offset: int
    length: int


def find_partitions(device: BlockDevice) -> list[Partition]:
    """The partitions that may hold VMFS; a device without a table is one itself. Raises CorruptDisk."""
    whole = Partition(0, 0, device.capacity)
    if device.capacity < _SECTOR:
        return [whole]
    sector = _read(device, 0, _SECTOR)
    if sector[510:] != b"\x55\xaa":
        return [whole]
    entries = [_MBR_ENTRY.unpack_from(sector, 446 + 16 * i) for i in range(4)]
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        return _gpt(device)
    if not any(kind and count for _, kind, _, count in entries):
        return [whole]
    return [
        _inside(device, Partition(i + 1, start * _SECTOR, count * _SECTOR))
        for i, (_, kind, start, count) in enumerate(entries)
        if kind == MBR_TYPE and count
    ]


def _gpt(device: BlockDevice) -> list[Partition]:
    """From the first of the two copies of the table that is whole."""
    damage = ""
    for size in (512, 4096):
        for place in (size, device.capacity // size * size - size):
            if device.capacity < 3 * size:
                continue
            header = _read(device, place, size)
            if header[:8] != _GPT_SIGNATURE:
                continue
            damage = _header_damage(header) or ""
            if damage:
                continue
            entries = _gpt_table(device, header, size)
            if entries is not None:
                return list(_gpt_entries(device, header, size, entries))
            damage = "its entries do not match their checksum"
    raise CorruptDisk(
        f"{device.name}: a protective MBR without a partition table"
        + (f": {damage}, and so in its second copy" if damage else " behind it")
    )


def _header_damage(header: bytes) -> str | None:
    """What is wrong with a header, by its checksum."""
    size, expected = struct.unpack_from("<II", header, 12)
    if not 92 <= size <= len(header):
        return f"a header of {size} bytes"
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != expected:
        return "the header does not match its checksum"
    return None


def _gpt_table(device: BlockDevice, header: bytes, size: int) -> bytes | None:
    """The entries; None if they are not what the header says."""
    table, count, length, expected = struct.unpack_from("<QIII", header, 72)
    if length < 128 or length % 8 or count * length > MAX_TABLE:
        raise CorruptDisk(f"{device.name}: a partition table of {count} entries of {length} bytes")
    if (table * size) + count * length > device.capacity:
        raise CorruptDisk(f"{device.name}: its partition table is outside the device")
    data = _read(device, table * size, count * length)
    return data if zlib.crc32(data) == expected else None


def _gpt_entries(device: BlockDevice, header: bytes, size: int, data: bytes) -> Iterator[Partition]:
    count, length = struct.unpack_from("<II", header, 80)
    for index in range(count):
        entry = data[index * length : index * length + 48]
        if entry[:16] != _GPT_TYPE:
            continue
        first, last = struct.unpack_from("<QQ", entry, 32)
        if last < first:
            raise CorruptDisk(f"{device.name}: partition {index + 1} ends before it begins")
        yield _inside(device, Partition(index + 1, first * size, (last - first + 1) * size))


def _inside(device: BlockDevice, partition: Partition) -> Partition:
    if partition.offset + partition.length > device.capacity:
        raise CorruptDisk(
            f"{device.name}: partition {partition.number} reaches past the device's {device.capacity} bytes"
        )
    return partition


def _read(device: BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(offset, data)
    return bytes(data)
