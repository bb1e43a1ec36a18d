"""Directories of VMFS-5 (a row of entries) and VMFS-6 (blocks of entries, found through a map).

Source of facts: our notes on VMFS, section 2.10. Looking up goes by reading all entries: no hash is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from vdkit.errors import CorruptDisk, LimitExceeded

_ENTRY_5: Final = 140
_NAME_5: Final = 128
_ENTRY_6: Final = 288
_HEADER_6: Final = 0x10000
_VERSIONS_6: Final = (0xF50001, 0xFDC001)
_MAP_BLOCKS: Final = 128
_BLOCK_HEAD: Final = 64
_ENTRIES, _LINKS, _MAP = 1, 2, 3
_NEVER_WRITTEN: Final = 8
#: Entries of one directory, and bytes of one, that are believed.
MAX_ENTRIES: Final = 1 << 20
MAX_BYTES: Final = 1 << 30

#: Reads ``length`` bytes of the directory file at ``offset``.
Reader = Callable[[int, int], bytes]


class Entry(NamedTuple):
    """``type`` as in the descriptor."""

    name: str
    type: int
    address: int
    generation: int


def entries_5(read: Reader, length: int, where: str) -> Iterator[Entry]:
    """All but ``.`` and ``..``. Raises CorruptDisk, LimitExceeded."""
    if length > MAX_ENTRIES * _ENTRY_5:
        raise LimitExceeded(f"{where}: a directory of {length} bytes")
    whole = length // _ENTRY_5 * _ENTRY_5
    step = 4096 * _ENTRY_5
    for start in range(0, whole, step):
        data = read(start, min(step, whole - start))
        for kind, address, generation, name in struct.iter_unpack("<III128s", data):
            if address:
                yield from _entry(kind, address, generation, name, where)


def entries_6(read: Reader, length: int, block: int, where: str) -> Iterator[Entry]:
    """All but ``.`` and ``..``; ``block`` is the metadata block's size. Raises CorruptDisk, LimitExceeded."""
    if length > MAX_BYTES:
        raise LimitExceeded(f"{where}: a directory of {length} bytes")
    if length < _HEADER_6:
        raise CorruptDisk(f"{where}: a directory of {length} bytes, less than its header")
    header = read(0, 0x10 + 4 * _MAP_BLOCKS)
    version, _, _, maps = struct.unpack_from("<4I", header)
    if version not in _VERSIONS_6 or maps > _MAP_BLOCKS:
        raise CorruptDisk(f"{where}: a directory of version {version:#x} with {maps} maps")
    count = 0
    for number in _entry_blocks(read, length, block, header, maps, where):
        for entry in _block_entries(read, number, block, where):
            count += 1
            if count > MAX_ENTRIES:
                raise LimitExceeded(f"{where}: a directory of more than {MAX_ENTRIES} entries")
            yield entry


def _entry_blocks(
    read: Reader, length: int, block: int, header: bytes, maps: int, where: str
) -> Iterator[int]:
    """Numbers of the blocks that hold entries."""
    blocks = (length - _HEADER_6) // block
    covered = 2 * (block - _BLOCK_HEAD)
    for place in range(maps):
        (number,) = struct.unpack_from("<I", header, 0x10 + 4 * place)
        if number >= blocks:
            raise CorruptDisk(f"{where}: map {place} of the directory is outside it")
        data = read(_HEADER_6 + number * block, block)
        if struct.unpack_from("<H", data, 2)[0] != _MAP:
            raise CorruptDisk(f"{where}: block {number} of the directory is no map")
        for index, byte in enumerate(data[_BLOCK_HEAD:]):
            for inside, nibble in enumerate((byte >> 4, byte & 0xF)):
                at = place * covered + 2 * index + inside
                if nibble != _NEVER_WRITTEN and nibble & 3 == _ENTRIES and at < blocks:
                    yield at


def _block_entries(read: Reader, number: int, block: int, where: str) -> Iterator[Entry]:
    start = _HEADER_6 + number * block
    data = read(start, block)
    _, kind, slots, _ = struct.unpack_from("<4H", data)
    if kind != _ENTRIES or slots * _ENTRY_6 + _BLOCK_HEAD > block:
        raise CorruptDisk(f"{where}: block {number} of the directory does not hold {slots} entries")
    for slot in range(slots):
        if data[8 + slot // 8] >> slot % 8 & 1:
            continue  # free
        at = _BLOCK_HEAD + slot * _ENTRY_6
        entry_type, address, generation = struct.unpack_from("<3I", data, at)
        (own,) = struct.unpack_from("<Q", data, at + 16)
        if own != start + at:
            raise CorruptDisk(f"{where}: the entry at {start + at} of the directory says that it is at {own}")
        yield from _entry(entry_type, address, generation, data[at + 24 : at + 24 + 256], where)


def _entry(kind: int, address: int, generation: int, raw: bytes, where: str) -> Iterator[Entry]:
    name = raw.split(b"\0")[0].decode("utf-8", "backslashreplace")
    if name in (".", ".."):
        return
    if not name or "/" in name:
        raise CorruptDisk(f"{where}: the directory holds an entry named {name!r}")
    yield Entry(name, kind, address, generation)
