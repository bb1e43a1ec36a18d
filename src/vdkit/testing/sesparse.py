"""Writes seSparse deltas as fixtures for tests of readers, and for nothing else.

What it writes has the headers, directory, tables and grains that every public reader goes by. It lacks what
only VMware knows how to write: free bitmap, back map and journal are left zero. It does not claim that an
ESXi host would read such a file, let alone write to it safely.

Source of facts: see :mod:`vdkit.vmdk.sesparse`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from enum import Enum

from vdkit.block.store import Store
from vdkit.errors import UsageError
from vdkit.vmdk.cid import new_cid
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import base_name, stem
from vdkit.vmdk.sesparse import (
    ABSENT,
    ALLOCATED,
    AREAS,
    ENTRIES_PER_TABLE,
    GRAIN_SECTORS,
    TABLE_MARK,
    TABLE_SECTORS,
    UNMAPPED,
    ZERO,
    SeSparseHeader,
)
from vdkit.vmdk.template import Parent, new_descriptor
from vdkit.vmdk.textfile import write_text

GRAIN = GRAIN_SECTORS * SECTOR
#: Areas are multiples of this many sectors, as in the example that is public.
_AREA = 2048


class Hollow(Enum):
    """A grain that is in the delta and reads as zeroes."""

    ZERO = ZERO
    UNMAPPED = UNMAPPED


def write_sesparse(
    store: Store,
    name: str,
    capacity: int,
    grains: Mapping[int, bytes | Hollow],
    *,
    parent: Parent | None = None,
    cid: int | None = None,
    journal_waits: bool = False,
    seed: int = 0,
) -> None:
    """Make the delta ``name`` and its extent file ``<name>-sesparse.vmdk``.

    ``capacity`` in bytes; ``grains`` are the 4 KiB grains that the delta holds, by number. Tables and grains
    are dealt out in an order that ``seed`` shuffles, because ESXi hands them out as guests write.
    """
    sectors = capacity // SECTOR
    if capacity % SECTOR or sectors == 0:
        raise UsageError(f"{name}: a capacity of {capacity} bytes is not a positive multiple of {SECTOR}")
    data_name = f"{stem(name)}-sesparse.vmdk"
    descriptor = new_descriptor(
        where=name,
        create_type="seSparse",
        extents=[ExtentLine(Access.RW, sectors, "SESPARSE", base_name(data_name))],
        cid=new_cid() if cid is None else cid,
        ddb={"grain": str(GRAIN_SECTORS)},
        parent=parent,
    )
    with store.create(name) as text:
        write_text(text, descriptor.to_bytes())
    _write_extent(store, data_name, sectors, grains, journal_waits=journal_waits, seed=seed)


def _write_extent(
    store: Store,
    name: str,
    sectors: int,
    grains: Mapping[int, bytes | Hollow],
    *,
    journal_waits: bool,
    seed: int,
) -> None:
    tables: dict[int, list[int]] = {}
    order = list(grains)
    random.Random(seed).shuffle(order)
    places: dict[int, int] = {}
    for slot, number in enumerate(order):
        index, at = divmod(number, ENTRIES_PER_TABLE)
        kind = ALLOCATED
        content = grains[number]
        if isinstance(content, Hollow):
            kind = content.value
        else:
            places[number] = slot
        table = tables.setdefault(index, [ABSENT] * ENTRIES_PER_TABLE)
        # Unmapped grains keep their slot, for the host to take back later.
        table[at] = entry(kind, 0 if kind == ZERO else slot)
    header = layout(sectors, next_table=len(tables), journal_waits=journal_waits)
    directory, _ = header.areas["grain directory"]
    first_table, _ = header.areas["grain tables"]
    first_grain, _ = header.areas["grains"]
    end = first_grain * SECTOR + len(order) * GRAIN
    const, volatile = header.pack()
    with store.create(name, end) as file:
        file.write_from(0, const)
        file.write_from(header.areas["volatile header"][0] * SECTOR, volatile)
        for slot, (index, table) in enumerate(tables.items()):
            file.write_from(directory * SECTOR + index * 8, struct.pack("<II", slot, TABLE_MARK))
            file.write_from(
                (first_table + slot * TABLE_SECTORS) * SECTOR, struct.pack(f"<{len(table)}Q", *table)
            )
        for number, slot in places.items():
            content = grains[number]
            if isinstance(content, bytes):
                file.write_from(first_grain * SECTOR + slot * GRAIN, content.ljust(GRAIN, b"\0")[:GRAIN])


def entry(kind: int, slot: int) -> int:
    """A table's entry as it is stored."""
    return kind << 60 | (slot & 0xFFF) << 48 | slot >> 12


def layout(sectors: int, *, next_table: int = 0, journal_waits: bool = False) -> SeSparseHeader:
    """Headers of a disk of ``sectors`` sectors, laid out as in the public example of a 100 MiB disk."""
    bare = SeSparseHeader(sectors, {})
    tables = _rounded(bare.tables * TABLE_SECTORS)
    grains = -(-sectors // GRAIN_SECTORS) * GRAIN_SECTORS
    sizes = (1, 2, _AREA, _rounded(-(-bare.tables * 8 // SECTOR)), tables, _AREA, _AREA, grains)
    areas: dict[str, tuple[int, int]] = {}
    start = 1
    for name, size in zip(AREAS, sizes, strict=True):
        if size >= _AREA:
            start = _rounded(start)
        areas[name] = (start, size)
        start += size
    return SeSparseHeader(sectors, areas, next_table, journal_waits)


def _rounded(sectors: int) -> int:
    return -(-sectors // _AREA) * _AREA
