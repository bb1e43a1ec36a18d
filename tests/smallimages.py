"""VMDKs of a few KiB, built field by field: seeds for the fuzzers and clay for the tests of hostile files.

Grains are 1 to 8 sectors instead of 128, so that a whole image fits where mutations hit something. Built from
the layouts in VMware's "Virtual Disk Format 5.0", not with the package's own writers, which only write the
usual sizes.
"""

from __future__ import annotations

import struct
import zlib
from array import array

from vdkit.block.memory import MemoryStore

SECTOR = 512
GD_AT_END = (1 << 64) - 1


def text(
    kind: str = "monolithicSparse",
    *lines: str,
    cid: str = "0000abcd",
    parent: str = "ffffffff",
    hint: str | None = None,
) -> bytes:
    """A descriptor with the given extent lines (default: one SPARSE extent of 16 sectors)."""
    rows = ["# Disk DescriptorFile", "version=1", f"CID={cid}", f"parentCID={parent}", f'createType="{kind}"']
    if hint is not None:
        rows.append(f'parentFileNameHint="{hint}"')
    rows += lines or ('RW 16 SPARSE "d.vmdk"',)
    return ("\n".join(rows) + "\n").encode()


def header(**fields: int) -> bytes:
    """A KDMV header; any field of the specification by name."""
    known = {
        "version": 1,
        "flags": 1,
        "capacity": 16,
        "grain": 1,
        "descriptor": 1,
        "descriptor_sectors": 1,
        "entries": 512,
        "redundant": 0,
        "directory": 2,
        "overhead": 7,
        "unclean": 0,
        "newlines": int.from_bytes(b"\n \r\n", "little"),
        "compression": 0,
    }
    unknown = fields.keys() - known.keys()
    assert not unknown, unknown
    values = {**known, **fields}
    return struct.pack("<4sIIQQQQIQQQBIH", b"KDMV", *values.values()).ljust(SECTOR, b"\0")


def numbers(*values: int) -> bytes:
    return array("I", values).tobytes()


def sector(data: bytes) -> bytes:
    """``data`` padded to whole sectors."""
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")


def table(entries: dict[int, int], count: int = 512) -> bytes:
    made = array("I", bytes(count * 4))
    for index, value in entries.items():
        made[index] = value
    return made.tobytes()


def sparse(*, parent: str = "ffffffff", hint: str | None = None, zero_grains: bool = False) -> bytes:
    """monolithicSparse: 16 sectors, grains of one sector, both copies of the tables, three grains."""
    entries = {0: 12, 5: 13, 15: 14} | ({7: 1} if zero_grains else {})
    head = header(
        version=2 if zero_grains else 1,
        flags=3 | (4 if zero_grains else 0),
        redundant=2,
        directory=7,
        overhead=12,
    )
    parts = [head, sector(text(parent=parent, hint=hint))]
    parts += [sector(numbers(3)), table(entries), sector(numbers(8)), table(entries)]
    return b"".join([*parts, b"a" * SECTOR, b"b" * SECTOR, b"c" * SECTOR])


def grain_record(lba: int, plain: bytes) -> bytes:
    packed = zlib.compress(plain, 1)
    return sector(struct.pack("<QI", lba, len(packed)) + packed)


def marker(kind: int, sectors: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def stream(*, at_end: bool = True, grains: tuple[int, ...] = (0, 2, 3), closed: bool = True) -> bytes:
    """streamOptimized: 32 sectors, grains of 8; tables behind the grains with a footer, or up front."""
    kind = text("streamOptimized", 'RW 32 SPARSE "d.vmdk"')
    fields = {"version": 3, "flags": 0x30001, "capacity": 32, "grain": 8, "compression": 1}
    first = 2 if at_end else 7
    body, entries = b"", {}
    for number in grains:
        entries[number] = first + len(body) // SECTOR
        body += grain_record(number * 8, bytes([65 + number]) * 8 * SECTOR)
    if not at_end:
        head = header(**fields, directory=2, overhead=7)
        return head + sector(kind) + sector(numbers(3)) + table(entries) + body + bytes(SECTOR)
    made = header(**fields, directory=GD_AT_END, overhead=2) + sector(kind) + body
    if not closed:
        return made
    made += marker(1, 4)
    table_at = len(made) // SECTOR
    made += table(entries) + marker(2, 1)
    directory = len(made) // SECTOR
    made += sector(numbers(table_at)) + marker(3, 1)
    return made + header(**fields, directory=directory, overhead=2) + bytes(SECTOR)


def cowd(entries: dict[int, int] | None = None) -> bytes:
    """A COWD delta of 16 sectors, one table, two grains; its parent is 16 sectors too."""
    entries = {1: 37, 9: 38} if entries is None else entries
    head = bytearray(4 * SECTOR)
    struct.pack_into("<4sIIIIIII", head, 0, b"COWD", 1, 3, 16, 1, 4, 1, 39)
    return bytes(head) + sector(numbers(5)) + table(entries, 4096) + b"d" * SECTOR + b"e" * SECTOR


#: Of :func:`sesparse`: sectors of the directory, the tables and the grains.
SESPARSE_DIRECTORY, SESPARSE_TABLES, SESPARSE_GRAINS = 4, 5, 71


def sesparse(entries: dict[int, int] | None = None, **fields: int) -> bytes:
    """A seSparse delta of 16 sectors (two grains of 4 KiB), all areas as small as they may be."""
    values = {
        "version": 2 << 32 | 1,
        "capacity": 16,
        "grain": 8,
        "table": 64,
        "flags": 0,
        "replay": 0,
        **fields,
    }
    areas = [1, 1, 2, 1, 3, 1, SESPARSE_DIRECTORY, 1, SESPARSE_TABLES, 64, 69, 1, 70, 1, SESPARSE_GRAINS, 16]
    head = struct.pack(
        "<26Q", 0xCAFEBABE, values["version"], values["capacity"], values["grain"], values["table"],
        values["flags"], 0, 0, 0, 0, *areas,
    )  # fmt: skip
    volatile = struct.pack("<4Q", 0xCAFECAFE, 1, 0, values["replay"])
    table = array("Q", bytes(4096 * 8))
    for index, entry in ({1: 3 << 60} if entries is None else entries).items():
        table[index] = entry
    body = b"".join([sector(head), sector(volatile), bytes(2 * SECTOR), sector(struct.pack("<Q", 1 << 60))])
    return body + table.tobytes() + bytes(2 * SECTOR) + b"s" * 8 * SECTOR


def stored(files: dict[str, bytes]) -> MemoryStore:
    """A store in memory that holds these files."""
    store = MemoryStore("m")
    for name, data in files.items():
        with store.create(name, len(data)) as file:
            if data:
                file.write_from(0, data)
    return store
