"""Whatever is done to a disk's metadata: a check says something, and a repair makes it no worse."""

from __future__ import annotations

import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from checktools import CONTENT, GRAIN, SIZE, Editor, contents, files, get, good_sparse, good_stream, put
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.errors import CorruptDisk, LimitExceeded, VixError
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.check import Verdict, check_disk, repair_disk, undo_repair
from vdkit.vmdk.check.kdmv import read_directories, shape_of
from vdkit.vmdk.check.tablescan import TableScan
from vdkit.vmdk.sparse import new_header


def _good(kind: str) -> tuple[dict[str, bytes], str]:
    store = MemoryStore()
    match kind:
        case "sparse":
            good_sparse(store)
        case "stream":
            good_stream(store)
        case _:
            good_sparse(store, "base.vmdk")
            create_child(store, "base.vmdk", "disk.vmdk")
            with open_disk(store, "disk.vmdk", writable=True) as disk:
                for number in (3, 511, 900):
                    disk.write_from(number * GRAIN, bytes([number % 251]) * GRAIN)
    return files(store), "disk-delta.vmdk" if kind == "delta" else "disk.vmdk"


GOOD = {kind: _good(kind) for kind in ("sparse", "stream", "delta")}
#: Numbers that mean something to tables and headers.
VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 21, 26, 127, 128, 129, 256, 384, 1 << 16, 1 << 31, 0xFFFFFFFF]),
    st.integers(0, 3000),
    st.integers(0, 0xFFFFFFFF),
)
CHANGES = st.lists(
    st.tuples(st.one_of(st.integers(0, 40), st.integers(0, 128 * 128), st.integers(-600, -1)), VALUES),
    min_size=1,
    max_size=6,
)


def _mutated(kind: str, changes: list[tuple[int, int]], cut: int) -> MemoryStore:
    good, name = GOOD[kind]
    store = MemoryStore()
    for other, data in good.items():
        made = bytearray(data)
        if other == name:
            for word, value in changes:
                at = (word * 4) % (len(made) - 4)
                struct.pack_into("<I", made, at, value)
            if cut:
                del made[len(made) - min(cut, len(made)) :]
        put(store, other, bytes(made))
    return store


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["sparse", "stream", "delta"]),
    changes=CHANGES,
    cut=st.one_of(st.just(0), st.integers(0, 200000)),
)
@example(kind="sparse", changes=[(3, 0xFFFFFFFF)], cut=0)
def test_any_change_is_survived(kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    store = _mutated(kind, changes, cut)
    before = files(store)
    try:
        report = check_disk(store, "disk.vmdk", deep=True)
    except VixError:
        return
    try:
        done = repair_disk(store, "disk.vmdk", target="new.vmdk", accept_loss=True, rebuild_header=True)
    except (CorruptDisk, LimitExceeded):
        assert files(store) == before, "nothing is left of a repair that could not be made"
        return
    kept = {name: data for name, data in files(store).items() if not name.startswith("new")}
    assert kept == before
    if not done.is_changed:
        assert report.errors == 0
        return
    again = check_disk(store, "new.vmdk", deep=True)
    assert again.errors == done.after.errors
    assert again.errors < report.errors or report.errors == 0
    if again.errors == 0:
        assert len(contents(store, "new.vmdk")) == done.after.capacity


@settings(max_examples=60)
@given(kind=st.sampled_from(["sparse", "stream", "delta"]), changes=CHANGES)
def test_any_repair_in_place_is_undone(kind: str, changes: list[tuple[int, int]]) -> None:
    store = _mutated(kind, changes, 0)
    before = files(store)
    try:
        done = repair_disk(store, "disk.vmdk", in_place=True, accept_loss=True, rebuild_header=True)
    except VixError:
        assert files(store) == before
        return
    if done.is_changed:
        undo_repair(store, "disk.vmdk.undo")
    assert files(store) == before


@settings(max_examples=60)
@given(
    numbers=st.lists(st.integers(0, 1100), unique=True, max_size=12),
    copy=st.sampled_from(["primary", "redundant"]),
)
def test_tables_of_one_copy_lose_nothing(numbers: list[int], copy: str) -> None:
    """A crash between the two copies: whatever one of them lacks, the other has."""
    store = MemoryStore()
    put(store, "disk.vmdk", GOOD["sparse"][0]["disk.vmdk"])
    editor = Editor(store)
    for number in numbers:
        editor.gte(number, 0, redundant=copy == "redundant")
    editor.save()
    done = repair_disk(store, "disk.vmdk", in_place=True)
    assert done.lost == ()
    assert contents(store, "disk.vmdk") == CONTENT


@settings(max_examples=25)
@given(
    writes=st.lists(st.tuples(st.integers(0, SIZE // 512 - 1), st.integers(1, 300)), max_size=10),
    kind=st.sampled_from([DiskType.MONOLITHIC_SPARSE, DiskType.MONOLITHIC_FLAT, DiskType.VMFS_THIN]),
    child=st.sampled_from([None, DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE]),
)
def test_good_disks_are_clean_and_stay_as_they_are(
    writes: list[tuple[int, int]], kind: DiskType, child: DiskType | None
) -> None:
    store = MemoryStore()
    create_disk(store, "base.vmdk", SIZE, disk_type=kind, durable=False).close()
    name = "base.vmdk"
    if child is not None:
        create_child(store, name, "child.vmdk", disk_type=child)
        name = "child.vmdk"
    with open_disk(store, name, writable=True, durable=False) as disk:
        for sector, count in writes:
            length = min(count * 512, SIZE - sector * 512)
            disk.write_from(sector * 512, b"w" * length)
    before = files(store)
    report = check_disk(store, name, deep=True)
    assert report.findings == ()
    assert report.verdict is Verdict.CLEAN
    assert not repair_disk(store, name, in_place=True).is_changed
    assert files(store) == before


ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 1100), st.one_of(st.sampled_from([0, 1, 40, 256, 384, 512, 700, 1 << 30]), VALUES)
    ),
    max_size=12,
)


@settings(max_examples=80)
@given(primary=ENTRIES, redundant=ENTRIES)
def test_loop_and_numpy_see_the_same(
    primary: list[tuple[int, int]], redundant: list[tuple[int, int]]
) -> None:
    store = MemoryStore()
    put(store, "disk.vmdk", GOOD["sparse"][0]["disk.vmdk"])
    editor = Editor(store)
    for number, value in primary:
        editor.gte(number, value)
    for number, value in redundant:
        editor.gte(number, value, redundant=True)
    file = MemoryDevice.from_bytes(bytes(editor.data))
    header = new_header(SIZE // 512)
    shape = shape_of(file, header, 0)
    seen = []
    for bulk in (False, True):
        copies = read_directories(file, header, shape)
        scan = TableScan(file, shape, copies, bulk=bulk)
        odd: list[tuple[int, int]] = []
        totals = scan.run(
            lambda index, one, two, odd=odd: odd.extend(  # type: ignore[misc]
                (number, decision.entry) for number, decision in shape.decisions(index, one, two)
            )
        )
        shared = sorted(scan.shared(totals.allocated)) if totals.shared else []
        free = None if totals.shared else totals.first_orphan
        seen.append((totals.allocated, bool(shared), odd, shared, free if shared else None))
    assert seen[0] == seen[1]


def test_the_good_ones_are_good() -> None:
    for kind, (good, _) in GOOD.items():
        store = MemoryStore()
        for name, data in good.items():
            put(store, name, data)
        assert check_disk(store, "disk.vmdk", deep=True).findings == (), kind
        assert get(store, "disk.vmdk") == good["disk.vmdk"]
