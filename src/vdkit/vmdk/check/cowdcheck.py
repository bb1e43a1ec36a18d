"""Check of a COWD extent (vmfsSparse): header, free sector, directory, tables.

Source of facts: VMware's "Virtual Disk Format" papers, and public reports of VMware's own checker, which
takes ``freeSector`` for authoritative and calls what lies between the last grain and it a hole.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

from vdkit.block.device import BlockDevice
from vdkit.errors import FormatError
from vdkit.vmdk import cowd
from vdkit.vmdk.check.context import Context, read
from vdkit.vmdk.check.directory import Area, Directory, examine, read_directory, slabs
from vdkit.vmdk.check.report import Severity
from vdkit.vmdk.check.shape import Shape
from vdkit.vmdk.check.tablecheck import check_tables
from vdkit.vmdk.cowd import ENTRIES_PER_TABLE, HEADER_SECTORS, TABLE_SECTORS, CowdHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import u32s

#: The fields that a repair may write, and where.
FIELDS = {
    "magic": 0,
    "version": 4,
    "flags": 8,
    "capacity": 12,
    "grain": 16,
    "directory": 20,
    "tables": 24,
}
_HEAD = struct.Struct("<4sIIIIIII")


@dataclass(slots=True)
class CowdView:
    """``header`` is what it says or must have said; ``changes`` are names of :data:`FIELDS`."""

    raw: bytes
    header: CowdHeader | None
    changes: list[str]

    @property
    def is_right(self) -> bool:
        return self.header is not None and not self.changes


def look_at_header(ctx: Context, file: BlockDevice, *, sectors: int | None) -> CowdView:
    view = diagnose(file, sectors)
    where = file.name
    if view.header is None:
        ctx.error(
            "H5", "header-unusable", where, "the header is damaged beyond what can be inferred", offset=0,
            found=view.raw[:32].hex(),
        )  # fmt: skip
        return view
    for name in view.changes:
        ctx.error(
            "H1" if name in ("magic", "version", "flags") else "H3",
            f"header-{name}",
            where,
            f"the header's {name} does not fit the file",
            offset=FIELDS[name],
            found=view.raw[FIELDS[name] : FIELDS[name] + 4].hex(),
            expected=view.header.pack()[FIELDS[name] : FIELDS[name] + 4].hex(),
            repair="rewrite the header from the descriptor and the layout",
        )
    return view


def diagnose(file: BlockDevice, sectors: int | None) -> CowdView:
    raw = bytes(read(file, 0, HEADER_SECTORS * SECTOR))
    if len(raw) < HEADER_SECTORS * SECTOR:
        return CowdView(raw, None, [])
    try:
        header = CowdHeader.parse(raw, file.capacity, file.name)
        if (sectors is None or sectors <= header.capacity) and header.directory == HEADER_SECTORS:
            return CowdView(raw, header, [])
    except FormatError:
        pass
    found = _inferred(file, raw, sectors)
    if found is None:
        return CowdView(raw, None, [])
    right = found.pack()
    return CowdView(raw, found, [n for n, at in FIELDS.items() if raw[at : at + 4] != right[at : at + 4]])


def _inferred(file: BlockDevice, raw: bytes, sectors: int | None) -> CowdHeader | None:
    _, _, _, capacity, grain, _, _, free = _HEAD.unpack_from(raw)
    unclean = struct.unpack_from("<I", raw, 1648)[0] != 0
    capacity = sectors if sectors is not None else capacity
    if not capacity or capacity > cowd.MAX_SECTORS:
        return None
    grains = [grain] if 0 < grain <= cowd.MAX_GRAIN_SECTORS and not grain & (grain - 1) else []
    for size in dict.fromkeys([*grains, cowd.GRAIN_SECTORS]):
        header = CowdHeader(capacity, size, HEADER_SECTORS, cowd.tables_for(capacity, size), free, unclean)
        if header.lowest * SECTOR <= file.capacity and _is_directory(file, header):
            return header
    return None


def _is_directory(file: BlockDevice, header: CowdHeader) -> bool:
    """No entry leads out of the file, and behind the last one there is nothing."""
    size = header.directory_sectors * SECTOR
    if size > 1 << 24:
        return False
    entries = u32s(read(file, header.directory * SECTOR, size))
    end = file.capacity // SECTOR
    inside = all(e == 0 or header.lowest <= e <= end - TABLE_SECTORS for e in entries[: header.tables])
    return inside and not any(entries[header.tables :])


def shape_of(file: BlockDevice, header: CowdHeader, start: int) -> Shape:
    return Shape(
        where=file.name,
        entries=ENTRIES_PER_TABLE,
        grain=header.grain,
        capacity=header.capacity,
        lowest=header.lowest,
        file_bytes=file.capacity,
        zero_entries=True,
        start=start,
    )


def read_directories(file: BlockDevice, header: CowdHeader, shape: Shape) -> list[Directory]:
    copies = [read_directory(file, shape, "grain directory", header.directory)]
    areas = [
        Area(0, HEADER_SECTORS, "header"),
        Area(header.directory, header.lowest, "grain directory"),
    ]
    examine(file, shape, copies, areas)
    # Tables are made as they are needed, among the grains: a row of them is chance, not layout.
    copies[0].base = None
    return copies


def highest_used(file: BlockDevice, shape: Shape, copies: list[Directory]) -> int:
    """The sector behind the last table or grain that is referenced."""
    ends = [copies[0].usable(i) + TABLE_SECTORS for i in range(len(copies[0].entries)) if copies[0].usable(i)]
    highest = max(ends, default=shape.lowest)
    for slab in slabs(file, shape, copies):
        assert slab.primary is not None
        highest = max(highest, _highest(u32s(slab.primary), shape))
    return highest


def _highest(entries: array[int], shape: Shape) -> int:
    top = max(entries)
    if top > shape.last_whole:
        top = max((entry for entry in entries if entry <= shape.last_whole), default=0)
    return top + shape.grain if top >= shape.lowest else 0


def check_cowd(ctx: Context, file: BlockDevice, header: CowdHeader, *, start: int) -> None:
    shape = shape_of(file, header, start)
    where = file.name
    if header.unclean:
        ctx.note(
            "U1", "unclean", where, "the delta was not closed when it was last written", offset=1648,
            repair="clear the mark once everything else is right",
        )  # fmt: skip
    copies = read_directories(file, header, shape)
    highest = highest_used(file, shape, copies)
    if header.free < highest:
        ctx.error(
            "O1",
            "free-sector",
            where,
            f"the first free sector is {header.free}, but sectors up to {highest} are in use: "
            "new grains would overwrite old ones",
            offset=28,
            expected=f"at least {highest}",
            found=header.free,
            repair=f"set it to {highest}",
        )
    elif header.free > -(-file.capacity // SECTOR):
        ctx.error(
            "O1",
            "free-sector",
            where,
            f"the first free sector is {header.free}, past the end of the file at {file.capacity // SECTOR}",
            offset=28,
            expected=f"{highest}",
            found=header.free,
            repair=f"set it to {highest}",
            severity=Severity.LEAK,
        )
    check_tables(ctx, file, shape, copies, has_parent=True, used_end=max(header.free, highest), aligned=False)
