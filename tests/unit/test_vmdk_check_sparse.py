"""Check and repair of hosted sparse disks: every class of damage, found, mended, undone."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import pytest

from checktools import (
    CONTENT,
    GRAIN,
    SECTOR,
    SIZE,
    SPARSE_CASES,
    Case,
    Editor,
    contents,
    files,
    get,
    good_sparse,
    put,
)
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import AlreadyExists, CorruptDisk, NotADisk, NotSupported, UnsupportedVersion, UsageError
from vdkit.testing.bigsparse import write_big_sparse
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.check import (
    CheckExit,
    Duplicates,
    Severity,
    Verdict,
    check_disk,
    check_exit_code,
    repair_disk,
    undo_repair,
)
from vdkit.vmdk.sparse import read_header
from vdkit.vmdk.tables import u32s


@pytest.fixture(scope="module")
def good() -> bytes:
    store = MemoryStore()
    good_sparse(store)
    return get(store, "disk.vmdk")


@pytest.fixture
def store(good: bytes) -> MemoryStore:
    made = MemoryStore()
    put(made, "disk.vmdk", good)
    return made


def damaged(store: MemoryStore, case: Case) -> None:
    editor = Editor(store)
    case.damage(editor)
    editor.save()


def expected(case: Case) -> bytes:
    made = bytearray(CONTENT)
    for number in case.lost:
        end = min(SIZE, (number + 1) * GRAIN)
        made[number * GRAIN : end] = bytes(end - number * GRAIN)
    return bytes(made)


def test_a_good_disk_has_no_findings(store: MemoryStore) -> None:
    report = check_disk(store, "disk.vmdk")
    assert report.findings == ()
    assert report.verdict is Verdict.CLEAN
    assert report.exit_code == CheckExit.CLEAN == 0
    assert report.capacity == SIZE
    (file,) = report.files
    assert (file.grains, file.allocated, file.leaked) == (1101, 9, 0)


@pytest.mark.parametrize("case", SPARSE_CASES, ids=lambda case: case.name)
def test_damage_is_found_and_mended(store: MemoryStore, case: Case) -> None:
    damaged(store, case)
    bad = files(store)
    report = check_disk(store, "disk.vmdk")
    assert report.counts.get(case.kind), report.counts
    assert report.verdict.value == case.verdict
    found = next(report.of_kind(case.kind))
    assert found.message
    assert found.place == "memory/disk.vmdk"
    assert found.repair
    json.dumps(report.as_json())

    repaired = repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert {name: data for name, data in files(store).items() if name != "new.vmdk"} == bad
    assert repaired.after.errors == 0
    json.dumps(repaired.as_json())
    again = check_disk(store, "new.vmdk")
    assert again.errors == 0
    assert again.verdict is (Verdict.LEAKS if case.lost else Verdict.CLEAN)
    assert contents(store, "new.vmdk") == expected(case)
    assert {start // GRAIN for start, _ in repaired.lost} == set(case.lost)


@pytest.mark.parametrize("case", SPARSE_CASES, ids=lambda case: case.name)
def test_a_repair_in_place_is_undone_byte_for_byte(store: MemoryStore, case: Case) -> None:
    damaged(store, case)
    bad = files(store)
    repaired = repair_disk(store, "disk.vmdk", in_place=True)
    assert repaired.undo == "disk.vmdk.undo"
    assert contents(store, "disk.vmdk") == expected(case)
    with pytest.raises(AlreadyExists, match="earlier repair"):
        repair_disk(store, "disk.vmdk", in_place=True)
    undo_repair(store, "disk.vmdk.undo")
    assert files(store) == bad


@pytest.mark.parametrize("case", SPARSE_CASES, ids=lambda case: case.name)
def test_a_trial_changes_nothing(store: MemoryStore, case: Case) -> None:
    damaged(store, case)
    bad = files(store)
    trial = repair_disk(store, "disk.vmdk", dry_run=True)
    assert trial.dry_run
    assert trial.after.errors == 0
    assert trial.is_changed
    assert files(store) == bad


def test_a_good_disk_is_not_touched(store: MemoryStore) -> None:
    before = files(store)
    for how in ({"in_place": True}, {"target": "new.vmdk"}, {"dry_run": True}):
        done = repair_disk(store, "disk.vmdk", **how)  # type: ignore[arg-type]
        assert not done.is_changed
        assert done.target is None
        assert done.undo is None
    assert files(store) == before


def test_shared_grains(store: MemoryStore) -> None:
    editor = Editor(store)
    editor.both(5, editor.gte(1))
    editor.save()
    report = check_disk(store, "disk.vmdk")
    (found,) = report.findings
    assert (found.code, found.kind, found.start, found.length) == ("T1", "grain-shared", 5 * GRAIN, GRAIN)
    model = bytearray(CONTENT)
    repair_disk(store, "disk.vmdk", target="first.vmdk", duplicates=Duplicates.KEEP_FIRST)
    assert contents(store, "first.vmdk") == bytes(model)
    model[5 * GRAIN : 6 * GRAIN] = model[GRAIN : 2 * GRAIN]
    cloned = repair_disk(store, "disk.vmdk", target="clone.vmdk")
    assert cloned.lost == ()
    assert contents(store, "clone.vmdk") == bytes(model)
    assert check_disk(store, "clone.vmdk").findings == ()
    with open_disk(store, "clone.vmdk", writable=True) as disk:
        disk.write_from(5 * GRAIN, b"mine")
    model[5 * GRAIN : 5 * GRAIN + 4] = b"mine"
    assert contents(store, "clone.vmdk") == bytes(model)
    with pytest.raises(Exception, match="copies of shared grains"):
        repair_disk(store, "disk.vmdk", target="big.vmdk", max_clone=GRAIN - 1)
    assert not store.exists("big.vmdk")


def test_truncated_last_grain(store: MemoryStore) -> None:
    data = get(store, "disk.vmdk")
    put(store, "disk.vmdk", data[: len(data) - GRAIN - 1000])
    report = check_disk(store, "disk.vmdk")
    assert report.counts == {"grain-outside-file": 1, "grain-truncated": 1, "odd-size": 1}
    done = repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert check_disk(store, "new.vmdk").errors == 0
    got = contents(store, "new.vmdk")
    lost = b"".join(bytes(length) for _, length in done.lost)
    assert len(lost) == 1000 + 5 * SECTOR
    for start, length in done.lost:
        assert got[start : start + length] == bytes(length)
    kept = bytearray(CONTENT)
    for start, length in done.lost:
        kept[start : start + length] = bytes(length)
    assert got == bytes(kept)


def test_a_table_that_both_copies_have_lost_needs_consent(store: MemoryStore) -> None:
    editor = Editor(store)
    # No layout either: most entries lead elsewhere.
    for index in range(3):
        editor.gde(index, 0x7FFF0000 + index * 64)
        editor.gde(index, 0x7FFF8000 + index * 64, redundant=True)
    editor.save()
    assert check_disk(store, "disk.vmdk").verdict is Verdict.CORRUPT
    done = repair_disk(store, "disk.vmdk", target="new.vmdk", accept_loss=True)
    assert done.after.errors == 0
    assert contents(store, "new.vmdk") == CONTENT, "the tables lie right behind their directories"


def test_unused_space_is_a_leak(store: MemoryStore) -> None:
    with store.open_writable("disk.vmdk") as file:
        file.resize(file.capacity + 3 * GRAIN)
    report = check_disk(store, "disk.vmdk")
    assert report.verdict is Verdict.LEAKS
    assert report.exit_code == CheckExit.LEAKS == 3
    (found,) = report.findings
    assert (found.code, found.severity) == ("O1", Severity.LEAK)
    assert report.files[0].leaked == 3 * GRAIN
    assert not repair_disk(store, "disk.vmdk", in_place=True).is_changed


@pytest.mark.parametrize(("field", "value"), [("version", 9), ("flags", 0x400003)])
def test_unknown_versions_are_rebuilt_only_when_asked(store: MemoryStore, field: str, value: int) -> None:
    editor = Editor(store)
    editor.field(field, value)
    editor.save()
    assert check_disk(store, "disk.vmdk").counts == {f"header-{field}": 1}
    with pytest.raises(CorruptDisk, match="rebuild_header"):
        repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert not store.exists("new.vmdk")
    repair_disk(store, "disk.vmdk", target="new.vmdk", rebuild_header=True)
    assert contents(store, "new.vmdk") == CONTENT


def test_text_mode_transfer_is_undone_in_a_copy(store: MemoryStore) -> None:
    good = get(store, "disk.vmdk")
    put(store, "disk.vmdk", good.replace(b"\n", b"\r\n"))
    assert check_disk(store, "disk.vmdk").counts == {"text-mode-transfer": 1}
    with pytest.raises(NotSupported, match="only in a copy"):
        repair_disk(store, "disk.vmdk", in_place=True)
    repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert contents(store, "new.vmdk") == CONTENT
    assert check_disk(store, "new.vmdk").findings == ()
    lossy = MemoryStore()
    put(lossy, "disk.vmdk", good.replace(b"\r\n", b"\n"))
    with pytest.raises(CorruptDisk, match="cannot be repaired"):
        repair_disk(lossy, "disk.vmdk", target="new.vmdk")
    assert lossy.list() == ["disk.vmdk"]


def test_children_are_not_pulled_from_under(store: MemoryStore) -> None:
    create_child(store, "disk.vmdk", "child.vmdk")
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    with pytest.raises(NotSupported, match=r"parent of child\.vmdk"):
        repair_disk(store, "disk.vmdk", in_place=True)
    repair_disk(store, "disk.vmdk", in_place=True, force=True)
    assert contents(store, "child.vmdk") == CONTENT


def test_what_was_written_since_is_not_undone(store: MemoryStore) -> None:
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    repair_disk(store, "disk.vmdk", in_place=True, undo="mine.undo")
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(10 * GRAIN, b"new data")
    with pytest.raises(UsageError, match="changed since"):
        undo_repair(store, "mine.undo")
    undo_repair(store, "mine.undo", force=True)
    assert not store.exists("mine.undo")


def test_undo_files_are_not_believed(store: MemoryStore) -> None:
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    repair_disk(store, "disk.vmdk", in_place=True)
    whole = get(store, "disk.vmdk.undo")
    for at in (100, 600, len(whole) - 1):
        spoiled = bytearray(whole)
        spoiled[at] ^= 1
        put(store, "bad.undo", bytes(spoiled))
        if at == 100:
            continue  # behind the head, not used
        with pytest.raises(CorruptDisk, match="undo"):
            undo_repair(store, "bad.undo")
    put(store, "bad.undo", whole[:700])
    with pytest.raises(CorruptDisk, match="undo"):
        undo_repair(store, "bad.undo")
    put(store, "bad.undo", b"something else")
    with pytest.raises(NotADisk, match="no undo file"):
        undo_repair(store, "bad.undo")
    with pytest.raises(NotADisk, match="no undo file"):
        repair_disk(store, "disk.vmdk", in_place=True, undo="bad.undo")


def test_how_it_is_asked(store: MemoryStore) -> None:
    for how in ({}, {"target": "a", "in_place": True}, {"target": "a", "dry_run": True}):
        with pytest.raises(UsageError, match="target"):
            repair_disk(store, "disk.vmdk", **how)  # type: ignore[arg-type]
    editor = Editor(store)
    editor.gte(700, 0)
    editor.save()
    put(store, "there.vmdk", b"mine")
    with pytest.raises(AlreadyExists):
        repair_disk(store, "disk.vmdk", target="there.vmdk")
    assert get(store, "there.vmdk") == b"mine"


def test_exit_codes_of_what_cannot_be_checked() -> None:
    assert check_exit_code(NotSupported("x")) == CheckExit.UNSUPPORTED == 63
    assert check_exit_code(UnsupportedVersion("x")) == 63
    assert check_exit_code(NotADisk("x")) == CheckExit.FAILED == 1


def test_split_disk() -> None:
    store = MemoryStore()
    size = 40 * GRAIN
    data = CONTENT[: 3 * GRAIN]
    with create_disk(
        store, "s.vmdk", size, disk_type=DiskType.SPLIT_SPARSE, split=16 * GRAIN, durable=False
    ) as disk:
        disk.write_from(15 * GRAIN, data)
    assert check_disk(store, "s.vmdk").findings == ()
    names = [name for name in store.list() if name != "s.vmdk"]
    with store.open_writable(names[1]) as file:
        file.write_from(0, bytes(512))
    report = check_disk(store, "s.vmdk")
    assert report.counts["header-magic"] == 1
    done = repair_disk(store, "s.vmdk", target="n.vmdk")
    assert done.after.errors == 0
    assert contents(store, "n.vmdk")[15 * GRAIN : 18 * GRAIN] == data
    assert check_disk(store, "n.vmdk").findings == ()
    repair_disk(store, "s.vmdk", in_place=True)
    store.remove("s.vmdk.undo")
    store.remove(names[2])
    assert check_disk(store, "s.vmdk").counts.get("extent-missing") == 1
    with pytest.raises(CorruptDisk, match="accept_loss"):
        repair_disk(store, "s.vmdk", in_place=True)
    done = repair_disk(store, "s.vmdk", in_place=True, accept_loss=True)
    assert done.lost == ((32 * GRAIN, 8 * GRAIN),)
    assert contents(store, "s.vmdk")[15 * GRAIN : 18 * GRAIN] == data
    undo_repair(store, "s.vmdk.undo")
    assert not store.exists(names[2])


def test_a_large_disk_is_checked_in_little_memory(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    count = 200_000
    write_big_sparse(store, "big.vmdk", 64 << 30, count)
    check_disk(store, "big.vmdk")  # what is imported now is not the check's memory
    tracemalloc.start()
    report = check_disk(store, "big.vmdk")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.findings == ()
    assert report.files[0].allocated == count
    assert peak < 32 << 20


def test_many_tables_are_mended_as_few_are(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    write_big_sparse(store, "big.vmdk", 4 << 30, 1000)
    with store.open_writable("big.vmdk") as file:
        header = read_header(file)
        size = header.tables * 2048
        places = [
            (directory + header.directory_sectors) * SECTOR
            for directory in (header.directory, header.redundant_directory)
        ]
        tables = bytearray(size)
        file.read_into(places[0], tables)
        entries = u32s(tables)
        held = [number for number, entry in enumerate(entries) if entry]
        free = [number for number, entry in enumerate(entries) if not entry]
        for at, number, value in (
            (0, free[0], entries[held[3]]),  # primary only: another's
            (1, held[5], 0),  # the redundant copy is behind
            (0, held[7], 0xFFFFFFF0),  # outside, the redundant copy is right
        ):
            file.write_from(places[at] + number * 4, struct.pack("<I", value))
        for place in places:
            file.write_from(place + held[9] * 4, struct.pack("<I", entries[held[11]]))  # shared
            file.write_from(place + free[9] * 4, struct.pack("<I", 5))  # in the header
    report = check_disk(store, "big.vmdk")
    # The grain that lost its entry to a shared one is used by nothing.
    assert report.counts == {
        "tables-differ": 3,
        "grain-shared": 2,
        "grain-in-metadata": 1,
    } | ({"unreferenced": 1} if report.leaks else {})
    done = repair_disk(store, "big.vmdk", target="new.vmdk")
    assert {start // GRAIN for start, _ in done.lost} == {free[9]}
    assert check_disk(store, "new.vmdk").errors == 0
    with store.open("new.vmdk") as file:
        made = bytearray(size)
        file.read_into(places[0], made)
        other = bytearray(size)
        file.read_into(places[1], other)
    assert made == other
    mended = u32s(made)
    changed = {number for number in range(len(entries)) if mended[number] != entries[number]}
    assert changed <= {held[9], held[11]}
    assert changed
