"""Disks that a check took for damaged, or a repair made worse, and must not."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from admintools import RecordingStore, Step
from checktools import (
    CONTENT,
    GRAIN,
    HELD,
    SIZE,
    Editor,
    contents,
    files,
    get,
    good_sparse,
    good_stream_tables_first,
    put,
    write_grains,
)
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, FileLocked, FormatError, NotSupported, StoreError, UsageError
from vdkit.vmdk import DiskType, create_child, create_disk, markers, open_disk
from vdkit.vmdk.admin import grow_disk, shrink_disk
from vdkit.vmdk.check import Verdict, check_disk, repair_disk, undo_repair
from vdkit.vmdk.check.undo import OPEN, mark
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
        with open_disk(there, "disk.vmdk") as disk:
            data = bytearray(SIZE)
            disk.read_into(0, data)
        assert data == CONTENT


def damaged() -> MemoryStore:
    store = MemoryStore()
    good_sparse(store)
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    return store


def test_an_interrupted_repair_is_not_undone_under_newer_data() -> None:
    # All of it was written but the word that it was; the disk was used; the next repair put old tables back.
    store = damaged()
    repair_disk(store, "disk.vmdk", in_place=True)
    mark(store, "disk.vmdk.undo", OPEN)
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(600 * GRAIN, b"N" * GRAIN)
    editor = Editor(store)
    editor.field("unclean", 1)
    editor.save()
    before = get(store, "disk.vmdk")
    with pytest.raises(UsageError, match="changed since"):
        repair_disk(store, "disk.vmdk", in_place=True)
    with pytest.raises(UsageError, match="changed since"):
        undo_repair(store, "disk.vmdk.undo")
    assert get(store, "disk.vmdk") == before
    store.remove("disk.vmdk.undo")
    repair_disk(store, "disk.vmdk", in_place=True)
    assert contents(store, "disk.vmdk")[600 * GRAIN : 601 * GRAIN] == b"N" * GRAIN


def test_a_repair_that_fails_half_way_puts_everything_back() -> None:
    before = get(damaged(), "disk.vmdk")
    store = damaged()
    recorded = RecordingStore(store)
    repair_disk(recorded, "disk.vmdk", in_place=True)
    count = len(recorded.steps)
    assert count > 6
    for number in range(count):
        store = MemoryStore()
        put(store, "disk.vmdk", before)
        with pytest.raises(StoreError, match="refused"):
            repair_disk(RecordingStore(store, fails_at=number), "disk.vmdk", in_place=True)
        assert get(store, "disk.vmdk") == before, number
        assert not store.exists("disk.vmdk.undo"), number


def test_a_disk_in_use_is_not_repaired(tmp_path: Path) -> None:
    store = damaged()
    put(store, "disk.vmdk.lck", b"x")
    with pytest.raises(FileLocked):
        repair_disk(store, "disk.vmdk", in_place=True)
    repair_disk(store, "disk.vmdk", target="copy.vmdk")  # touches nothing that somebody has open
    folder = FolderStore(tmp_path)
    put(folder, "disk.vmdk", get(store, "disk.vmdk"))
    with open_disk(folder, "disk.vmdk", writable=True) as disk:
        with pytest.raises(FileLocked, match="open for writing"):
            repair_disk(folder, "disk.vmdk", in_place=True)
        with pytest.raises(FileLocked, match="open for writing"):
            shrink_disk(folder, "disk.vmdk")
        disk.write_from(0, b"x")
    repair_disk(folder, "disk.vmdk", in_place=True)


@pytest.mark.witness("qemu-io")
def test_a_disk_that_qemu_has_open_is_not_touched(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put(store, "disk.vmdk", get(damaged(), "disk.vmdk"))
    command = ["qemu-io", "-f", "vmdk", str(tmp_path / "disk.vmdk")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None and qemu.stdout is not None
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        qemu.stdout.read(8)  # its prompt: the disk is open
        with pytest.raises(FileLocked):
            repair_disk(store, "disk.vmdk", in_place=True)
        qemu.stdin.close()
        qemu.wait(30)
    repair_disk(store, "disk.vmdk", in_place=True)


def test_a_child_without_a_hint_is_a_child() -> None:
    store = MemoryStore()
    good_sparse(store)
    create_child(store, "disk.vmdk", "child.vmdk")
    text = get(store, "child.vmdk")
    put(store, "child.vmdk", text.replace(b"parentFileNameHint", b"#arentFileNameHint"))
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    with pytest.raises(NotSupported, match="parent of child"):
        repair_disk(store, "disk.vmdk", in_place=True)


def test_a_repaired_copy_in_another_folder_keeps_its_parent() -> None:
    store = MemoryStore()
    create_disk(store, "base.vmdk", SIZE, disk_type=DiskType.MONOLITHIC_SPARSE, durable=False).close()
    create_child(store, "base.vmdk", "disk.vmdk", disk_type=DiskType.MONOLITHIC_SPARSE)
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(700 * GRAIN, b"child")
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    store.make_folder("sub")
    repair_disk(store, "disk.vmdk", target="sub/new.vmdk")
    with store.open("sub/new.vmdk") as file:
        assert file.capacity > SECTOR
    report = check_disk(store, "sub/new.vmdk")
    assert not report.counts.get("parent-missing"), report.findings
    with store.open("sub/new.vmdk") as file:
        text = bytearray(21 * SECTOR)
        file.read_into(0, text)
    assert b'parentFileNameHint="../base.vmdk"' in text


def test_what_follows_a_stream_is_really_made_an_end_marker() -> None:
    # The view that was checked read as zeroes there, the file kept what it had.
    store = MemoryStore()
    good_stream_tables_first(store)
    data = get(store, "disk.vmdk")[:-SECTOR]
    put(store, "disk.vmdk", data + b"x" * 100)
    repair_disk(store, "disk.vmdk", in_place=True, tidy=True)
    assert get(store, "disk.vmdk") == data + bytes(SECTOR)
    undo_repair(store, "disk.vmdk.undo")
    assert get(store, "disk.vmdk") == data + b"x" * 100


def test_half_a_grain_that_is_given_up_is_said_to_be_lost() -> None:
    store = MemoryStore()
    good_sparse(store)
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(5 * GRAIN, b"x" * GRAIN)  # the last one in the file
    editor = Editor(store)
    editor.gte(5, 0, redundant=True)
    editor.data = editor.data[: -GRAIN // 2]
    editor.save()
    report = repair_disk(store, "disk.vmdk", in_place=True)
    assert report.lost == ((5 * GRAIN, GRAIN),)
    assert contents(store, "disk.vmdk") == CONTENT


def test_an_overhead_that_is_too_high_empties_no_tables_that_lie_among_the_grains() -> None:
    store = MemoryStore()
    good_sparse(store)
    old = Editor(store)
    header = replace(old.header, flags=1, redundant_directory=0, directory=4096, overhead=4224)
    made = bytearray(4224 * SECTOR)
    made[SECTOR : 21 * SECTOR] = old.data[SECTOR : 21 * SECTOR]
    tables = [bytearray(2048) for _ in range(header.tables)]
    for number in HELD:
        struct.pack_into("<I", tables[number // 512], number % 512 * 4, len(made) // SECTOR)
        start = old.gte(number) * SECTOR
        made += old.data[start : start + GRAIN].ljust(GRAIN, b"\0")
    for index, table in enumerate(tables):
        struct.pack_into("<I", made, 4096 * SECTOR + index * 4, len(made) // SECTOR)
        made += table.ljust(GRAIN, b"\0")
    made[:SECTOR] = header.pack()
    put(store, "disk.vmdk", bytes(made))
    assert check_disk(store, "disk.vmdk").verdict is Verdict.CLEAN
    made[:SECTOR] = replace(header, overhead=5000).pack()
    put(store, "disk.vmdk", bytes(made))
    report = repair_disk(store, "disk.vmdk", in_place=True)
    assert report.before.counts.get("header-overhead")
    assert not report.lost
    assert contents(store, "disk.vmdk") == CONTENT
