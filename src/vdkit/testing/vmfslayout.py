"""What a fixture volume of VMFS is made of below its files: partitions, members, geometry, addresses.

For :mod:`vdkit.testing.vmfsimage` alone. Source of facts: our notes on VMFS, sections 1 and 2.1 to 2.6.
Written beside the reader and not with its code, so that one may judge the other.
"""

from __future__ import annotations

import random
import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vdkit.block.device import WritableDevice
from vdkit.errors import UsageError

MIB: Final = 1 << 20
#: What members give to a volume, they give in pieces of this size.
EXTENT: Final = 256 * MIB
#: Where the data of a member begins.
DATA: Final = 17 * MIB
#: Where a partition begins on its device, and what is left behind it for the second copy of a GPT.
START: Final = MIB
_HEADER: Final = 0x100000
_GPT_TYPE: Final = uuid.UUID("aa31e02a-400f-11db-9590-000c2911d1b8").bytes_le
#: Metadata blocks of VMFS-6.
ALIGNMENT: Final = 4096
TIME: Final = 1_700_000_000

Version = Literal[5, 6]
Table = Literal["none", "mbr", "gpt", "gpt4k"]


@dataclass(frozen=True, slots=True)
class VmfsOptions:
    """``members``: how many pieces of 256 MiB each device gives. ``dense``: 8 KiB sub-blocks (VMFS-5).

    ``managed``: members of a volume manager; otherwise the file system is all of its partition. ``indirect``:
    the volume's own files reach their blocks through pointer blocks, as on large volumes.
    """

    version: Version = 6
    label: str = "fixture"
    members: tuple[int, ...] = (4,)
    table: Table = "none"
    block_size: int = MIB
    dense: bool = True
    managed: bool = True
    indirect: bool = False
    seed: int = 0

    @property
    def six(self) -> bool:
        return self.version == 6

    @property
    def start(self) -> int:
        """Offset of the partition on its device."""
        return 0 if self.table == "none" else START

    @property
    def data(self) -> int:
        """Offset of the volume's bytes in a partition."""
        return DATA if self.managed else 0

    def partition_size(self, member: int) -> int:
        return self.data + self.members[member] * EXTENT

    def device_size(self, member: int) -> int:
        return self.partition_size(member) + (2 * START if self.table != "none" else 0)

    @property
    def volume_size(self) -> int:
        return sum(self.members) * EXTENT

    def uuid(self, what: str) -> bytes:
        """16 bytes that depend on the seed."""
        return random.Random(f"{self.seed}/{what}").randbytes(16)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a resource file: ``per_cluster`` resources of ``size`` bytes, ``clusters`` of them in a group."""

    per_cluster: int
    clusters: int
    size: int
    header: int
    """Bytes of a cluster's header."""
    lock_type: int
    flags: int = 4

    @property
    def group(self) -> int:
        return self.clusters * (self.header + self.per_cluster * self.size)

    def header_at(self, cluster: int) -> int:
        group, inside = divmod(cluster, self.clusters)
        return 0x10000 + group * self.group + inside * self.header

    def offset(self, index: int) -> int:
        cluster, resource = divmod(index, self.per_cluster)
        group, inside = divmod(cluster, self.clusters)
        return (
            0x10000
            + group * self.group
            + self.clusters * self.header
            + (inside * self.per_cluster + resource) * self.size
        )

    def count_in(self, length: int) -> int:
        """Resources that fit a file of ``length`` bytes."""
        count = 0
        while self.per_cluster and self.offset(count) + self.size <= length:
            count += 1
        return count


def geometries(options: VmfsOptions) -> dict[str, Geometry]:
    if options.six:
        header = 2 * ALIGNMENT
        return {
            "fdc": Geometry(256, 8, 8192, header, 0x10C00005),
            "sbc": Geometry(256, 8, 65536, header, 0x10C00003),
            # There, pointer blocks are sub-blocks; the file for them is empty.
            "pbc": Geometry(0, 8, 65536, header, 0x10C00004),
            "pb2": Geometry(32, 8, 65536, header, 0x10C00006),
            "jbc": Geometry(8, 4, 2 * MIB, header, 0x10C00007, flags=0),
        }
    return {
        "fdc": Geometry(200, 64, 2048, 1024, 0x10C00005),
        "sbc": Geometry(64, 64, 8192, 1024, 0x10C00003)
        if options.dense
        else Geometry(16, 64, 32768, 1024, 0x10C00003),
        "pbc": Geometry(16, 64, 4096, 1024, 0x10C00004),
        "pb2": Geometry(16, 64, 4096, 1024, 0x10C00006),
    }


def resource_header(
    geometry: Geometry, count: int, *, bits: int = 1, child: int = 0, group: int | None = None
) -> bytearray:
    """The header of a resource file with ``count`` resources."""
    raw = bytearray(0x100)
    clusters = -(-count // geometry.per_cluster) if count else 0
    struct.pack_into(
        "<9I",
        raw,
        0,
        geometry.per_cluster,
        geometry.clusters,
        0x10000,
        geometry.size,
        geometry.group if group is None else group,
        count & 0xFFFFFFFF,
        -(-clusters // geometry.clusters),
        count >> 32,
        0x72666D64 if geometry.header > 1024 else 0,
    )
    struct.pack_into("<IIHH", raw, 0x24, 1, geometry.flags, geometry.per_cluster, 1)
    struct.pack_into("<II", raw, 0x30, bits, child)
    return raw


def lock(lock_type: int, at: int) -> bytearray:
    """The lock at the start of a descriptor or a cluster; nobody holds it."""
    raw = bytearray(512)
    struct.pack_into("<IQQQQI", raw, 0, lock_type, at, 0, 0, 1, 0)
    return raw


# -- addresses -----------------------------------------------------------------------------------


def block_address(version: Version, block: int, *, mask: int = 0, shared: bool = False) -> int:
    """Of a file block, a small one in VMFS-6; ``mask`` are its to-be-zeroed bits."""
    if version == 5:
        return 1 | shared << 4 | bool(mask) << 5 | block << 6
    cluster, resource = divmod(block, 512)
    return 1 | shared << 5 | mask << 7 | cluster << 15 | resource << 51


def large_address(number: int, *, mask: int = 0, shared: bool = False) -> int:
    return 7 | shared << 5 | mask << 7 | number << 15


def sub_block_address(version: Version, cluster: int, resource: int, *, dense: bool = True) -> int:
    if version == 6:
        return 2 | cluster << 6 | resource << 56
    return 2 | (resource >> 4 & 3 if dense else 0) << 3 | cluster << 6 | (resource & 0xF) << 28


def pointer_address(version: Version, kind: int, cluster: int, resource: int) -> int:
    """``kind`` 3, or 5 for the second pool."""
    return kind | cluster << 6 | resource << (56 if version == 6 else 28)


def descriptor_address(cluster: int, resource: int) -> int:
    return 4 | cluster << 6 | resource << 22


# -- members -------------------------------------------------------------------------------------


class Space:
    """The volume's bytes, on the partitions of its members."""

    def __init__(self, devices: Sequence[WritableDevice], options: VmfsOptions) -> None:
        if len(devices) != len(options.members) or (not options.managed and len(devices) != 1):
            raise UsageError(f"{len(devices)} devices for {len(options.members)} members")
        for number, device in enumerate(devices):
            if device.capacity < options.device_size(number):
                raise UsageError(
                    f"{device.name}: {device.capacity} bytes; {options.device_size(number)} needed"
                )
        self.devices = tuple(devices)
        self.options = options

    def place(self, offset: int) -> tuple[int, int]:
        """The member, and the offset on its device, of a byte of the volume."""
        for number, extents in enumerate(self.options.members):
            if offset < extents * EXTENT:
                return number, self.options.start + self.options.data + offset
            offset -= extents * EXTENT
        raise UsageError(f"the volume ends {offset} bytes before that")

    def write(self, offset: int, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            part = min(len(view), EXTENT - offset % EXTENT)
            member, at = self.place(offset)
            self.devices[member].write_from(at, view[:part])
            offset, view = offset + part, view[part:]

    def format_members(self) -> None:
        """Partition tables, and the volume manager's headers and tables."""
        for number, device in enumerate(self.devices):
            _write_table(device, self.options, number)
            if self.options.managed:
                _write_member(device, self.options, number)


def _write_table(device: WritableDevice, options: VmfsOptions, number: int) -> None:
    size = options.partition_size(number)
    match options.table:
        case "none":
            return
        case "mbr":
            device.write_from(0, _mbr(0xFB, START // 512, size // 512))
        case "gpt" | "gpt4k":
            sector = 512 if options.table == "gpt" else 4096
            device.write_from(0, _mbr(0xEE, 1, min(device.capacity // sector - 1, 0xFFFFFFFF)))
            entry = bytearray(128)
            entry[:16] = _GPT_TYPE
            entry[16:32] = options.uuid(f"partition {number}")
            struct.pack_into("<QQQ", entry, 32, START // sector, (START + size) // sector - 1, 0)
            table = bytes(entry) + bytes(127 * 128)
            last = device.capacity // sector - 1
            table_sectors = -(-len(table) // sector)
            for own, other, at in ((1, last, 2), (last, 1, last - table_sectors)):
                header = _gpt_header(options, number, own, other, at, last - 1 - table_sectors, table)
                device.write_from(own * sector, header)
                device.write_from(at * sector, table)


def _mbr(kind: int, first: int, count: int) -> bytes:
    raw = bytearray(512)
    struct.pack_into("<B3sB3sII", raw, 446, 0, b"\0\x02\0", kind, b"\xff\xff\xff", first, count)
    raw[510:] = b"\x55\xaa"
    return bytes(raw)


def _gpt_header(
    options: VmfsOptions, number: int, own: int, other: int, table_at: int, last_usable: int, table: bytes
) -> bytes:
    raw = bytearray(92)
    struct.pack_into("<8sIIII", raw, 0, b"EFI PART", 0x10000, 92, 0, 0)
    struct.pack_into("<QQQQ", raw, 24, own, other, 34, last_usable)
    raw[56:72] = options.uuid(f"disk {number}")
    struct.pack_into("<QIII", raw, 72, table_at, 128, 128, zlib.crc32(table))
    struct.pack_into("<I", raw, 16, zlib.crc32(raw))
    return bytes(raw)


def disk_id(number: int) -> bytes:
    """The SCSI identity of a made-up disk: serial number and the start of its model."""
    serial = b"FIX%05d            VDKIT " % number
    return struct.pack("<BBHBB8s16s4s44s", 1, 26, 0, 0, 5, b"VDKIT   ", b"VDKIT FIXTURE   ", b"1.0 ", serial)


def _write_member(device: WritableDevice, options: VmfsOptions, number: int) -> None:
    alignment = ALIGNMENT if options.six else 512
    extents = options.members[number]
    entries = 1 if options.six else extents
    if entries > 8192:
        raise UsageError(f"a member of {extents} extents needs more than one table")
    header = bytearray(512)
    struct.pack_into("<III", header, 0, 0xC001D00D, options.version, 21)
    header[0x0C:0x5A] = disk_id(number)
    size = options.partition_size(number)
    struct.pack_into("<IQIIIQQ", header, 0x5A, 512, size, 1, entries, entries - 1, 1, DATA)
    header[0x82:0x92] = options.uuid(f"device {number}")
    struct.pack_into("<QQ", header, 0x92, TIME * 10**6, TIME * 10**6)
    struct.pack_into("<I", header, 0xBE, 0 if options.six else 1)
    if options.six:
        struct.pack_into("<II", header, 0xCA, ALIGNMENT, extents)
    first = sum(options.members[:number])
    base = options.start + _HEADER
    device.write_from(base, header)
    device.write_from(base + alignment, _volume_entry(options, first, extents))
    bitmap_at = base + alignment + 0x80000
    if number == 0:
        for index in range(len(options.members)):
            name = f"t10.VDKIT___FIXTURE_{index:05d}:1".encode()
            device.write_from(bitmap_at - 32 * 256 + index * 256, name)
    used = (1 << entries) - 1
    device.write_from(bitmap_at, used.to_bytes(1024, "little"))
    step = extents * EXTENT if options.six else EXTENT
    table = b"".join(
        struct.pack("<BIIQQQI91x", 1, i, 0, DATA + i * step, first * EXTENT + i * step, step, 1)
        for i in range(entries)
    )
    device.write_from(bitmap_at + max(alignment if options.six else 0, 1024), table)


def _volume_entry(options: VmfsOptions, first: int, extents: int) -> bytes:
    raw = bytearray(512)
    struct.pack_into("<QQI", raw, 0, options.volume_size, 1, 1)
    volume = options.uuid("volume")
    low, high, middle = struct.unpack_from("<IIH", volume)
    text = f"{low:08x}-{high:08x}-{middle:04x}-{volume[10:].hex()}".encode()
    raw[0x14 : 0x14 + len(text)] = text
    raw[0x54:0x64] = volume
    struct.pack_into("<IQII", raw, 0x64, 1, TIME * 10**6, 0, extents)
    struct.pack_into("<QQQI", raw, 0x78, first, first + extents - 1, TIME * 10**6, len(options.members))
    struct.pack_into("<I", raw, 0x110, 1 if options.six else 0)
    return bytes(raw)


def superblock(options: VmfsOptions, root: int) -> bytes:
    """``root``: volume offset of the first descriptor."""
    raw = bytearray(512)
    six, step = options.six, 2 * ALIGNMENT if options.six else 2048
    struct.pack_into("<IIB", raw, 0, 0x2FABF15E, 24 if six else 14, 82 if six else 81)
    raw[0x09:0x19] = options.uuid("datastore")
    struct.pack_into("<I", raw, 0x19, 0x4006 if six else 0x6 if options.dense else 0x2)
    label = options.label.encode()[:127]
    raw[0x1D : 0x1D + len(label)] = label
    struct.pack_into("<IQII", raw, 0x9D, 512, options.block_size, TIME, 1)
    if options.managed:
        raw[0xB1:0xC1] = options.uuid("volume")
        struct.pack_into("<I", raw, 0xC1, 1)
    geometry = geometries(options)
    fdc, sbc = geometry["fdc"], geometry["sbc"]
    slots = 0x4000 if six else 0x2000
    struct.pack_into("<IIII", raw, 0xD1, 0x10000, fdc.clusters, sbc.size, slots)
    struct.pack_into("<QI", raw, 0xE1, root + 6 * step, 0x01800004)
    raw[0xED:0xFD] = options.uuid("host")
    struct.pack_into("<QQI", raw, 0xFD, 1, root + 7 * step, 0x01C00004)
    if six:
        struct.pack_into("<H", raw, 0x112, 1)
        struct.pack_into("<IIH", raw, 0x130, 512, ALIGNMENT, 9)
        struct.pack_into("<HHIII", raw, 0x13E, 16, 44, MIB, 2 * MIB, 16000)
    return bytes(raw)
