"""Disks that a check took for damaged, or a repair made worse, and must not."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from admintools import RecordingStore, Step
from checktools import (
    CONTENT,
    GRAIN,
    SIZE,
    Editor,
    contents,
    files,
    get,
    good_sparse,
    put,
    write_grains,
)

from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, FormatError
from vdkit.vmdk import DiskType, create_disk, markers
from vdkit.vmdk.admin import grow_disk
from vdkit.vmdk.check import Verdict, check_disk, repair_disk
from vdkit.vmdk.header import GD_AT_END
from vdkit.vmdk.kinds import SECTOR


def tables_at_the_end(store: MemoryStore) -> int:
    """A plain extent as the specification allows it: tables behind the grains, a footer that says where.

    Returns the sector of the directory.
    """
    good_sparse(store)
    editor = Editor(store)
    header = editor.header
    place = editor.end
    area = header.directory_sectors + header.tables * 4
    tables = bytearray(editor.data[header.directory * SECTOR : (header.directory + area) * SECTOR])
    for index in range(header.tables):
        struct.pack_into("<I", tables, index * 4, place + header.directory_sectors + index * 4)
    footer = replace(header, flags=1, redundant_directory=0, directory=place)
    data = editor.data + tables + markers.metadata(markers.FOOTER, 1) + footer.pack() + bytes(SECTOR)
    start, end = header.redundant_directory * SECTOR, header.overhead * SECTOR
    data[start:end] = bytes(end - start)
    data[:SECTOR] = replace(footer, directory=GD_AT_END).pack()
    put(store, "disk.vmdk", bytes(data))
    return place


def test_a_plain_extent_with_its_tables_at_its_end_is_good() -> None:
    # The zeroes in front were taken for an empty directory, and the repair made the disk read as zeroes.
    store = MemoryStore()
    tables_at_the_end(store)
    before = get(store, "disk.vmdk")
    assert contents(store, "disk.vmdk") == CONTENT
    assert check_disk(store, "disk.vmdk").verdict is Verdict.CLEAN
    assert not repair_disk(store, "disk.vmdk", in_place=True).is_changed
    assert get(store, "disk.vmdk") == before


def test_a_damaged_extent_with_its_tables_at_its_end_is_left_alone() -> None:
    store = MemoryStore()
    place = tables_at_the_end(store)
    data = bytearray(get(store, "disk.vmdk"))
    struct.pack_into("<I", data, (place + 1) * SECTOR + 3 * 4, 40)
    put(store, "disk.vmdk", bytes(data))
    with pytest.raises(CorruptDisk, match="cannot be repaired"):
        repair_disk(store, "disk.vmdk", in_place=True)
    data = data[: -3 * SECTOR]  # without the footer nothing tells where the tables are
    put(store, "disk.vmdk", bytes(data))
    assert check_disk(store, "disk.vmdk").errors
    with pytest.raises(FormatError):
        repair_disk(store, "disk.vmdk", in_place=True)
    assert get(store, "disk.vmdk") == bytes(data)


def after(before: dict[str, bytes], steps: list[Step]) -> MemoryStore:
    """The files when exactly these steps have been made."""
    store = MemoryStore()
    for name, data in before.items():
        put(store, name, data)
    for step in steps:
        match step.act:
            case "create":
                store.create(step.name, step.at).close()
            case "write":
                with store.open_writable(step.name) as file:
                    file.write_from(step.at, step.data)
            case "resize":
                with store.open_writable(step.name) as file:
                    file.resize(step.at)
            case "rename":
                store.rename(step.name, step.other, replace=True)
            case "remove":
                store.remove(step.name)
    return store


@pytest.mark.parametrize("kind", [DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE])
@pytest.mark.parametrize("more", [3 * GRAIN, SIZE * 39])
def test_a_growth_that_was_killed_leaves_nothing_to_repair(kind: DiskType, more: int) -> None:
    # While the tables are parked behind the grains the overhead was called wrong; the repair that "corrected"
    # it emptied every entry.
    store = MemoryStore()
    create_disk(store, "disk.vmdk", SIZE, disk_type=kind, durable=False).close()
    write_grains(store, "disk.vmdk")
    before = files(store)
    recorded = RecordingStore(store)
    grow_disk(recorded, "disk.vmdk", SIZE + more)
    for count in range(len(recorded.steps) + 1):
        there = after(before, recorded.steps[:count])
        assert check_disk(there, "disk.vmdk").errors == 0, count
        assert contents(there, "disk.vmdk")[:SIZE] == CONTENT
