"""Streams in the layouts that other programs write, made by hand from the specification."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

GRAIN = 65536
SECTOR = 512
AT_END = (1 << 64) - 1


def header(
    sectors: int, *, flags: int, rgd: int, gd: int, overhead: int, room: int, version: int = 3
) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, sectors, 128, 1, room, 512, rgd, gd, overhead, 0,
        b"\n \r\n", 1,
    ).ljust(SECTOR, b"\0")  # fmt: skip


def descriptor(sectors: int, room: int, cid: str = "0000abcd", parent: str = "ffffffff") -> bytes:
    text = (
        f"# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent}\n"
        + ("" if parent == "ffffffff" else 'parentFileNameHint="base.vmdk"\n')
        + f'createType="streamOptimized"\n\nRDONLY {sectors} SPARSE "generated-stream.vmdk"\n\n'
        '#DDB\n\nddb.adapterType = "lsilogic"\n'
    )
    return text.encode().ljust(room * SECTOR, b"\0")


def record(number: int, plain: bytes, level: int = 1) -> bytes:
    packed = zlib.compress(plain, level)
    data = struct.pack("<QI", number * 128, len(packed)) + packed
    return data + bytes(-len(data) % SECTOR)


def marker(kind: int, sectors: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def _tables(sectors: int) -> int:
    return -(-sectors // (128 * 512))


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def front(
    grains: Mapping[int, bytes],
    sectors: int,
    *,
    redundant: bool = False,
    pad: bool = True,
    end: bytes = bytes(512),
) -> bytes:
    """Tables up front (layout B), as Workstation, open-vmdk and, with redundant ones, qemu write it."""
    count = _tables(sectors)
    size = -(-count * 4 // SECTOR) + 4 * count
    gd = 21 + (size if redundant else 0)
    tables_end = gd + size
    overhead = -(-tables_end // 128) * 128 if pad else tables_end
    table = {index: [0] * 512 for index in range(count)}
    body = b""
    for number, plain in grains.items():
        table[number // 512][number % 512] = overhead + len(body) // SECTOR
        body += record(number, plain)

    def area(start: int) -> bytes:
        first = start + -(-count * 4 // SECTOR)
        directory = struct.pack(f"<{count}I", *(first + 4 * index for index in range(count)))
        return _pad(directory) + b"".join(struct.pack("<512I", *table[index]) for index in range(count))

    flags = 0x30003 if redundant else 0x30001
    head = header(sectors, flags=flags, rgd=21 if redundant else 0, gd=gd, overhead=overhead, room=20)
    head += descriptor(sectors, 20) + (area(21) if redundant else b"") + area(gd)
    return head.ljust(overhead * SECTOR, b"\0") + body + end


def behind(grains: Mapping[int, bytes], sectors: int, *, values: bool = True, twice: bool = False) -> bytes:
    """Tables behind the grains (layout A), as ESXi exports it.

    Without ``values`` and ``twice``: as Xen Orchestra writes it, markers that tell no length, all tables
    behind one of them, and everything a second time.
    """
    count = _tables(sectors)
    data = header(sectors, flags=0x30003 if twice else 0x30001, rgd=0, gd=AT_END, overhead=128, room=1)
    data = (data + descriptor(sectors, 1)).ljust(128 * SECTOR, b"\0")
    table: dict[int, list[int]] = {}
    places = [0] * count
    groups: dict[int, list[int]] = {}
    for number in grains:
        groups.setdefault(number // 512, []).append(number)
    for group, numbers in groups.items():
        table[group] = [0] * 512
        for number in numbers:
            table[group][number % 512] = len(data) // SECTOR
            data += record(number, grains[number])
        if not twice:
            data += marker(1, 4 if values else 0)
            places[group] = len(data) // SECTOR
            data += struct.pack("<512I", *table[group])
    directories = []
    for _ in range(2 if twice else 1):
        if twice and table:
            data += marker(1, 4 * len(table) if values else 0)
            for group in table:
                places[group] = len(data) // SECTOR
                data += struct.pack("<512I", *table[group])
        data += marker(2, -(-count * 4 // SECTOR) if values else 0)
        directories.append(len(data) // SECTOR)
        data += _pad(struct.pack(f"<{count}I", *places))
    data += marker(3, 1 if values else 0)
    data += header(
        sectors,
        flags=0x30003 if twice else 0x30001,
        rgd=directories[0] if twice else 0,
        gd=directories[-1],
        overhead=128,
        room=1,
    )
    return data + bytes(512)
