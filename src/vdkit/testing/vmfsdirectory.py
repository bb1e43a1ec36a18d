"""Directories of fixture volumes: the row of entries of VMFS-5, the hashed blocks of VMFS-6.

For :mod:`vdkit.testing.vmfsimage` alone. Source of facts: our notes on VMFS, section 2.10; the mix of the
hash is Bob Jenkins' lookup8, which is in the public domain.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vdkit.errors import UsageError
from vdkit.testing.vmfslayout import ALIGNMENT

_ALL: Final = (1 << 64) - 1
_PAD: Final = (0x739A75C28E61B017).to_bytes(8, "little")
_BUCKETS: Final = 16001
_ROOT_BUCKETS: Final = 15973
_HEADER: Final = 0x10000
_HEAD: Final = 64
_ENTRY: Final = 288
_PER_BLOCK: Final = (ALIGNMENT - _HEAD) // _ENTRY
_LINK: Final = 84
_LINKS_PER_BLOCK: Final = (ALIGNMENT - _HEAD) // _LINK
_PER_LINK: Final = 12
_ENTRIES, _LINKS, _MAP = 1, 2, 3
_HAS_FREE: Final = 4
_NEVER_WRITTEN: Final = 0x88
_SYSTEM_BUCKETS: Final = {
    f".{name}.sf": 0x3E66 + number
    for number, name in enumerate(("fbb", "fdc", "pbc", "sbc", "vh", "pb2", "sdd", "jbc", "unmap", "dfd"))
}


class Entry(NamedTuple):
    name: str
    type: int
    address: int
    generation: int


def name_hash(name: bytes) -> int:
    """64 bits, of a name in a directory of VMFS-6."""
    buffer = bytearray(256)
    buffer[: len(name)] = name
    start = (len(name) + 8) & ~7
    while start < 128:
        buffer[start : start + 8] = _PAD
        start += 8
    words = struct.unpack("<32Q", buffer)
    a = b = 42
    c = 0x9E3779B97F4A7C13
    for at in range(0, 30, 3):
        a, b, c = _mix((a + words[at]) & _ALL, (b + words[at + 1]) & _ALL, (c + words[at + 2]) & _ALL)
    return _mix((a + words[30]) & _ALL, (b + words[31]) & _ALL, (c + 32) & _ALL)[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for right, left, back in ((43, 9, 8), (38, 23, 5), (35, 49, 11), (12, 18, 22)):
        a = ((a - b - c) & _ALL) ^ (c >> right)
        b = ((b - c - a) & _ALL) ^ (a << left & _ALL)
        c = ((c - a - b) & _ALL) ^ (b >> back)
    return a, b, c


def encode_5(entries: Sequence[Entry]) -> bytes:
    """``entries`` begin with ``.`` and ``..``."""
    return b"".join(
        struct.pack("<III128s", e.type, e.address, e.generation, e.name.encode()[:127]) for e in entries
    )


def encode_6(entries: Sequence[Entry], *, root: bool) -> bytes:
    """``entries`` begin with ``.`` and ``..``, which are in the header. One map block: some 8000 blocks."""
    dot, dots, *rest = entries
    header = bytearray(_HEADER)
    places = _Places()
    buckets: dict[int, list[tuple[int, int]]] = {}
    for entry in rest:
        block, slot = places.entry()
        system = _SYSTEM_BUCKETS.get(entry.name) if root else None
        hashed = 0 if system is not None else name_hash(entry.name.encode())
        bucket = hashed % (_ROOT_BUCKETS if root else _BUCKETS) if system is None else system
        places.put_entry(block, slot, _entry(entry, hashed, _at(block, slot)))
        buckets.setdefault(bucket, []).append((_location(_ENTRIES, block, slot), hashed))
    for bucket, found in buckets.items():
        where = found[0][0] if len(found) == 1 else places.links(bucket, found)
        struct.pack_into("<I", header, 0x5F8 + 4 * bucket, where)
    blocks = places.finish()
    struct.pack_into("<5I", header, 0, 0xF50001, len(entries), len(entries), 1, 0)
    header[0x3B8 : 0x3B8 + _ENTRY] = _entry(dot, 0, 0x3B8)
    header[0x4D8 : 0x4D8 + _ENTRY] = _entry(dots, 0, 0x4D8)
    return bytes(header) + b"".join(blocks)


class _Places:
    """The blocks behind the header; the first is the map."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = [_block(_MAP, 0)]
        self._kinds = [_MAP]
        self._open: dict[int, tuple[int, int]] = {}
        """By kind: the block that is being filled, and the next slot."""

    def entry(self) -> tuple[int, int]:
        return self._take(_ENTRIES, _PER_BLOCK)

    def put_entry(self, block: int, slot: int, raw: bytes) -> None:
        start = _HEAD + slot * _ENTRY
        self._blocks[block][start : start + _ENTRY] = raw

    def links(self, bucket: int, found: Sequence[tuple[int, int]]) -> int:
        """The location of the first of the link groups that lead to ``found``."""
        following = 0
        groups = [found[at : at + _PER_LINK] for at in range(0, len(found), _PER_LINK)]
        for group in reversed(groups):
            block, slot = self._take(_LINKS, _LINKS_PER_BLOCK)
            raw = bytearray(_LINK)
            free = _PER_LINK - len(group)
            struct.pack_into("<HBBBB", raw, 0, bucket, _PER_LINK, free, len(group), 0)
            for index, (location, hashed) in enumerate(group):
                struct.pack_into("<IH", raw, 6 + 6 * index, location, hashed >> 16 & 0xFFFF)
            struct.pack_into("<I", raw, 78, following)
            start = _HEAD + slot * _LINK
            self._blocks[block][start : start + _LINK] = raw
            following = _location(_LINKS, block, slot)
        return following

    def finish(self) -> list[bytearray]:
        """All blocks, with the map filled in."""
        full = bytearray([_NEVER_WRITTEN]) * (ALIGNMENT - _HEAD)
        for number, kind in enumerate(self._kinds):
            free = struct.unpack_from("<H", self._blocks[number], 6)[0]
            nibble = kind | (_HAS_FREE if free and kind != _MAP else 0)
            byte, low = divmod(number, 2)
            full[byte] = full[byte] & 0xF0 | nibble if low else full[byte] & 0x0F | nibble << 4
        self._blocks[0][_HEAD:] = full
        return self._blocks

    def _take(self, kind: int, slots: int) -> tuple[int, int]:
        block, slot = self._open.get(kind, (0, slots))
        if slot == slots:
            block, slot = len(self._blocks), 0
            if block >= 2 * (ALIGNMENT - _HEAD):
                raise UsageError("a fixture's directory has one map block; this one needs two")
            self._blocks.append(_block(kind, slots))
            self._kinds.append(kind)
        raw = self._blocks[block]
        raw[8 + slot // 8] &= ~(1 << slot % 8)
        struct.pack_into("<H", raw, 6, slots - slot - 1)
        self._open[kind] = block, slot + 1
        return block, slot


def _block(kind: int, slots: int) -> bytearray:
    raw = bytearray(ALIGNMENT)
    struct.pack_into("<4H", raw, 0, 0 if kind == _MAP else 1, kind, slots, slots)
    bitmap = (1 << slots) - 1
    raw[8 : 8 + -(-slots // 8)] = bitmap.to_bytes(-(-slots // 8), "little")
    return raw


def _at(block: int, slot: int) -> int:
    return _HEADER + block * ALIGNMENT + _HEAD + slot * _ENTRY


def _location(kind: int, block: int, slot: int) -> int:
    return kind | block << 2 | slot << 24


def _entry(entry: Entry, hashed: int, at: int) -> bytes:
    return struct.pack(
        "<IIIIQ256sQ",
        entry.type,
        entry.address,
        entry.generation,
        hashed & 0xFFFFFFFF,
        at,
        entry.name.encode()[:127],
        0,
    )
