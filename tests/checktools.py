"""Good disks, and one function for every way in which a disk can be damaged."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from vdkit.block.store import Store
from vdkit.vmdk import DiskType, StreamWriter, create_disk, open_disk
from vdkit.vmdk.header import LAYOUT, SparseHeader
from vdkit.vmdk.sparse import new_header, read_header

SECTOR = 512
GRAIN = 65536
SIZE = 1100 * GRAIN + 5 * SECTOR  # three grain tables, a short last grain
#: Grains that hold something: in all tables, first and last ones, neighbours.
HELD = (0, 1, 2, 511, 512, 700, 1024, 1099, 1100)


def content(size: int = SIZE, held: tuple[int, ...] = HELD) -> bytes:
    dice = random.Random(7)
    made = bytearray(size)
    for number in held:
        piece = dice.randbytes(GRAIN)
        made[number * GRAIN : (number + 1) * GRAIN] = piece[: max(0, min(GRAIN, size - number * GRAIN))]
    return bytes(made)


CONTENT = content()


def write_grains(store: Store, name: str, data: bytes = CONTENT) -> None:
    with open_disk(store, name, writable=True) as disk:
        for number in HELD:
            piece = data[number * GRAIN : (number + 1) * GRAIN]
            disk.write_from(number * GRAIN, piece)


def good_sparse(store: Store, name: str = "disk.vmdk") -> None:
    create_disk(store, name, SIZE, disk_type=DiskType.MONOLITHIC_SPARSE, durable=False).close()
    write_grains(store, name)


def good_stream(store: Store, name: str = "disk.vmdk") -> None:
    with StreamWriter(store, name, SIZE, durable=False) as writer:
        for number in HELD:
            piece = memoryview(CONTENT)[number * GRAIN : (number + 1) * GRAIN]
            writer.append(writer.encode(number * GRAIN, piece))
        writer.finish()


def good_stream_tables_first(store: Store, name: str = "disk.vmdk") -> None:
    """Layout B: directory and tables up front, no footer. Made from our own stream, grain by grain."""
    good_stream(store, "other.vmdk")
    old = get(store, "other.vmdk")
    store.remove("other.vmdk")
    header = SparseHeader.parse(old[:SECTOR], "other")
    tables = header.tables
    header = replace(header, directory=21)
    front = bytearray(128 * SECTOR)
    body = bytearray()
    directory = array("I", range(22, 22 + 4 * tables, 4))
    entries = array("I", bytes(4 * 512 * tables))
    position = 128 * SECTOR
    while position + SECTOR <= len(old):
        lba, size = struct.unpack_from("<QI", old, position)
        if size == 0:
            kind = struct.unpack_from("<I", old, position + 12)[0]
            if kind == 0:
                break
            position += SECTOR * (1 + lba)
            continue
        length = -(-(size + 12) // SECTOR) * SECTOR
        entries[lba // 128] = (len(front) + len(body)) // SECTOR
        body += old[position : position + length]
        position += length
    front[: 21 * SECTOR] = old[: 21 * SECTOR]
    front[:SECTOR] = header.pack()
    front[21 * SECTOR : 21 * SECTOR + 4 * tables] = directory.tobytes()
    front[22 * SECTOR : 22 * SECTOR + len(entries) * 4] = entries.tobytes()
    put(store, name, bytes(front + body + bytes(SECTOR)))


def get(store: Store, name: str) -> bytes:
    with store.open(name) as file:
        data = bytearray(file.capacity)
        file.read_into(0, data)
        return bytes(data)


def put(store: Store, name: str, data: bytes) -> None:
    if store.exists(name):
        store.remove(name)
    with store.create(name, len(data)) as file:
        file.write_from(0, data)


def files(store: Store) -> dict[str, bytes]:
    return {name: get(store, name) for name in store.list()}


def contents(store: Store, name: str) -> bytes:
    with open_disk(store, name) as disk:
        data = bytearray(disk.capacity)
        disk.read_into(0, data)
        return bytes(data)


class Editor:
    """Changes a monolithic sparse disk's bytes by meaning."""

    def __init__(self, store: Store, name: str = "disk.vmdk") -> None:
        self._store, self._name = store, name
        self.data = bytearray(get(store, name))
        with store.open(name) as file:
            self.header = read_header(file)

    def save(self) -> None:
        put(self._store, self._name, bytes(self.data))

    def u32(self, offset: int, value: int | None = None) -> int:
        if value is not None:
            struct.pack_into("<I", self.data, offset, value)
        return int(struct.unpack_from("<I", self.data, offset)[0])

    def directory(self, *, redundant: bool = False) -> int:
        return (self.header.redundant_directory if redundant else self.header.directory) * SECTOR

    def gde(self, index: int, value: int | None = None, *, redundant: bool = False) -> int:
        return self.u32(self.directory(redundant=redundant) + index * 4, value)

    def gte(self, number: int, value: int | None = None, *, redundant: bool = False) -> int:
        table = new_header(SIZE // SECTOR)
        first = (table.redundant_directory if redundant else table.directory) + table.directory_sectors
        index, at = divmod(number, 512)
        return self.u32((first + index * 4) * SECTOR + at * 4, value)

    def both(self, number: int, value: int) -> None:
        self.gte(number, value)
        self.gte(number, value, redundant=True)

    def field(self, name: str, value: int) -> None:
        fields = list(LAYOUT.unpack_from(self.data))
        names = [
            "magic", "version", "flags", "capacity", "grain", "descriptor", "descriptor_sectors", "entries",
            "redundant_directory", "directory", "overhead", "unclean", "newlines", "compression",
        ]  # fmt: skip
        fields[names.index(name)] = value
        LAYOUT.pack_into(self.data, 0, *fields)

    @property
    def end(self) -> int:
        return len(self.data) // SECTOR


class Case(NamedTuple):
    """``lost``: grains whose content the repair cannot bring back; ``kind``: a finding that must be made."""

    name: str
    kind: str
    damage: Callable[[Editor], object]
    lost: tuple[int, ...] = ()
    verdict: str = "corrupt"


def _swap_table(e: Editor) -> None:
    start = e.gde(1) * SECTOR
    e.data[start : start + 2048] = random.Random(1).randbytes(2048)


def _zero_descriptor(e: Editor) -> None:
    e.data[SECTOR : 21 * SECTOR] = bytes(20 * SECTOR)


def _replace(e: Editor, old: bytes, new: bytes) -> None:
    room = bytes(e.data[SECTOR : 21 * SECTOR])
    assert old in room
    e.data[SECTOR : 21 * SECTOR] = room.replace(old, new).rstrip(b"\0").ljust(20 * SECTOR, b"\0")


def _insert(e: Editor, line: bytes) -> None:
    _replace(e, b"# Extent description", line + b"\n# Extent description")


#: Grain 1 is at the second place of the file, and so on; the last one is HELD's last.
SPARSE_CASES = [
    Case("unclean", "unclean", lambda e: e.field("unclean", 1), verdict="clean"),
    Case("primary entry missing", "tables-differ", lambda e: e.gte(700, 0)),
    Case("redundant entry missing", "tables-differ", lambda e: e.gte(700, 0, redundant=True)),
    Case("primary entry outside", "tables-differ", lambda e: e.gte(700, 0x7FFFFFFF)),
    Case("redundant entry outside", "tables-differ", lambda e: e.gte(700, 0x7FFFFFFF, redundant=True)),
    Case("both non-zero", "tables-differ", lambda e: e.gte(700, e.gte(1), redundant=True)),
    Case("primary of another", "tables-differ", lambda e: e.gte(3, e.gte(1))),
    Case("redundant of another", "tables-differ", lambda e: e.gte(3, e.gte(1), redundant=True)),
    Case("primary table garbage", "tables-differ", _swap_table),
    Case("directory entry outside", "directory-entry", lambda e: e.gde(1, 0x7FFFFFF0)),
    Case("directory entry zero", "directory-entry", lambda e: e.gde(1, 0)),
    Case("directory entry in header", "directory-entry", lambda e: e.gde(1, 3)),
    Case("directory entry twice", "directory-entry", lambda e: e.gde(1, e.gde(0))),
    Case("directory entry moved", "directory-entry", lambda e: e.gde(1, e.end - 128)),
    Case("redundant entry outside the file", "directory-entry", lambda e: e.gde(2, 1 << 31, redundant=True)),
    Case(
        "both directory entries",
        "directory-entry",
        lambda e: (e.gde(1, 1 << 31), e.gde(1, 1 << 31, redundant=True)),
    ),
    Case("both entries zero", "directory-entry", lambda e: (e.gde(1, 0), e.gde(1, 0, redundant=True))),
    Case("entry past the end", "grain-outside-file", lambda e: e.both(700, e.end + 1280), lost=(700,)),
    Case("entry in metadata", "grain-in-metadata", lambda e: e.both(700, 40), lost=(700,)),
    Case("zero mark without flag", "zero-mark-without-flag", lambda e: e.both(3, 1)),
    Case("version", "header-version", lambda e: e.field("version", 0)),
    Case("grain size", "header-grain", lambda e: e.field("grain", 100)),
    Case("entries per table", "header-entries", lambda e: e.field("entries", 1024)),
    Case("capacity", "header-capacity", lambda e: e.field("capacity", 128)),
    Case("capacity zero", "header-capacity", lambda e: e.field("capacity", 0)),
    Case("directory", "header-directory", lambda e: e.field("directory", 1 << 40)),
    Case("directory in grains", "header-directory", lambda e: e.field("directory", e.end - 100)),
    Case(
        "redundant directory", "header-redundant-directory", lambda e: e.field("redundant_directory", 1 << 33)
    ),
    Case("overhead", "header-overhead", lambda e: e.field("overhead", 3)),
    Case("overhead high", "header-overhead", lambda e: e.field("overhead", 512)),
    Case("overhead past the end", "header-overhead", lambda e: e.field("overhead", 1 << 40)),
    Case("flags", "header-flags", lambda e: e.field("flags", 1)),
    Case("compression", "header-compression", lambda e: e.field("compression", 7)),
    Case("descriptor place", "header-descriptor", lambda e: e.field("descriptor", 1 << 40)),
    Case("newlines", "header-newlines", lambda e: e.data.__setitem__(slice(73, 77), b"abcd")),
    Case("magic", "header-magic", lambda e: e.data.__setitem__(slice(0, 4), b"XXXX")),
    Case("header zero", "header-magic", lambda e: e.data.__setitem__(slice(0, 512), bytes(512))),
    Case(
        "header garbage",
        "header-magic",
        lambda e: e.data.__setitem__(slice(0, 512), random.Random(3).randbytes(512)),
    ),
    Case("descriptor zero", "descriptor-lost", _zero_descriptor),
    Case("descriptor line", "descriptor-line", lambda e: _insert(e, b"nonsense without meaning")),
    Case("CID twice", "descriptor-line", lambda e: _insert(e, b"CID=12345678")),
    Case("no version", "descriptor-version", lambda e: _replace(e, b"version=1\n", b"")),
    Case("unknown charset", "descriptor-encoding", lambda e: _replace(e, b'"UTF-8"', b'"klingon"')),
    Case("CID not hex", "cid-invalid", lambda e: _insert_cid(e)),
    Case("extent line", "extents-missing", lambda e: _drop_extent(e)),
]


def _insert_cid(e: Editor) -> None:
    room = bytes(e.data[SECTOR : 21 * SECTOR])
    at = room.index(b"\nCID=") + 5
    e.data[SECTOR + at : SECTOR + at + 8] = b"zzzzzzzz"


def _drop_extent(e: Editor) -> None:
    room = bytes(e.data[SECTOR : 21 * SECTOR])
    start = room.index(b"\nRW ") + 1
    end = room.index(b"\n", start) + 1
    e.data[SECTOR : 21 * SECTOR] = (room[:start] + room[end:]).rstrip(b"\0").ljust(20 * SECTOR, b"\0")
