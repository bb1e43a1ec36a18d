"""A writer that is killed at any write leaves a disk that opens with every flushed byte intact.

Every change that a writer makes is recorded and any prefix of the record replayed, with what a crash may do
to it (``tests/crashtools.py``). The steps come from hypothesis; each example is cut at several moments.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashtools import RecordingStore, Versions, after_crash, contents, cuts
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, NotADisk, NotFound
from vdkit.vmdk import Disk, DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.check import Verdict, check_disk, repair_disk
from vdkit.vmdk.sparse import new_header

SECTOR = 512
#: Two whole grain tables and a piece of a third, where grains have 4 KiB, or one sector in a COWD delta.
SECTORS = 2 * 4096 + 3
CAPACITY = SECTORS * SECTOR
GRAIN = 4096
SPLIT = 1 << 18
CUTS = 15

#: ``(first sector, sectors, value, then)``; value 0 is a write_zeroes.
STEPS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, SECTORS - 1), st.sampled_from([0, 2040, 2047, 4090, SECTORS - 1])),
        st.one_of(st.integers(1, 20), st.sampled_from([8, 64, 3000])),
        st.sampled_from([0, 1, 1, 1]),
        st.sampled_from(["", "", "flush", "flush", "reopen"]),
    ),
    min_size=1,
    max_size=8,
)

BASES = {
    "monolithicSparse": {"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": GRAIN},
    "splitSparse": {"disk_type": DiskType.SPLIT_SPARSE, "grain": GRAIN, "split": SPLIT},
    "monolithicFlat": {"disk_type": DiskType.MONOLITHIC_FLAT},
    "splitFlat": {"disk_type": DiskType.SPLIT_FLAT, "split": SPLIT},
    "vmfsThin": {"disk_type": DiskType.VMFS_THIN},
}
CHILDREN = {
    "vmfsSparse": {"disk_type": DiskType.VMFS_SPARSE},
    "vmfsSparse of 8 sectors": {"disk_type": DiskType.VMFS_SPARSE, "grain": GRAIN},
    "monolithicSparse": {"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": GRAIN},
    "splitSparse": {"disk_type": DiskType.SPLIT_SPARSE, "grain": GRAIN, "split": SPLIT},
}


def filling(number: int, first: int, sectors: int) -> bytes:
    """Every sector of every write tells itself apart."""
    return b"".join(
        struct.pack("<IQ", number, sector).ljust(SECTOR, bytes([number % 255 + 1]))
        for sector in range(first, first + sectors)
    )


def drive(
    store: RecordingStore, name: str, disk: Disk, versions: Versions, steps: list[tuple[int, int, int, str]]
) -> None:
    """Do the steps, and tell ``versions`` what may be there when."""
    for number, (first, wanted, value, then) in enumerate(steps, 1):
        sectors = min(wanted, SECTORS - first)
        data = filling(number, first, sectors) if value else bytes(sectors * SECTOR)
        versions.write(len(store.log), first * SECTOR, data)
        if value:
            disk.write_from(first * SECTOR, data)
        else:
            disk.write_zeroes(first * SECTOR, len(data))
        if then == "flush":
            disk.flush()
            versions.flushed(len(store.log))
        elif then == "reopen":
            disk.close()
            versions.flushed(len(store.log))
            disk = open_disk(store, name, writable=True)
    disk.close()
    versions.flushed(len(store.log))


def mended(store: MemoryStore, name: str, versions: Versions, cut: int) -> bytearray:
    """What the disk holds after a repair, where a check finds something to mend."""
    if check_disk(store, name).verdict is Verdict.CORRUPT:
        repair_disk(store, name, in_place=True)
        report = check_disk(store, name)
        assert report.verdict is not Verdict.CORRUPT, report.findings
    with open_disk(store, name) as disk:
        seen = contents(disk)
    versions.check(cut, seen)
    return seen


def judge(store: MemoryStore, name: str, versions: Versions, cut: int, seed: int) -> None:
    """What is left opens and holds what it must, before a repair and after it, and can be written on."""
    with open_disk(store, name) as disk:
        versions.check(cut, contents(disk))
    seen = mended(store, name, versions, cut)
    rnd = random.Random(seed)
    with open_disk(store, name, writable=True) as disk:
        for _ in range(3):
            first = rnd.randrange(SECTORS)
            data = filling(200, first, min(30, SECTORS - first))
            disk.write_from(first * SECTOR, data)
            seen[first * SECTOR : first * SECTOR + len(data)] = data
        disk.flush()
    with open_disk(store, name) as disk:
        assert contents(disk) == seen, f"crash after {cut}: writing on changed something else"


@pytest.mark.parametrize("kind", list(BASES))
@settings(max_examples=20)
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_bases(kind: str, steps: list[tuple[int, int, int, str]], seed: int) -> None:
    store = RecordingStore()
    versions = Versions(CAPACITY)
    disk = create_disk(store, "d.vmdk", CAPACITY, **BASES[kind])
    made = len(store.log)
    versions.flushed(made)
    drive(store, "d.vmdk", disk, versions, steps)
    for cut in cuts(len(store.log), CUTS, seed, made):
        judge(after_crash(store.log, cut, seed + cut), "d.vmdk", versions, cut, seed)


@pytest.mark.parametrize("kind", list(CHILDREN))
@settings(max_examples=20)
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_children(kind: str, steps: list[tuple[int, int, int, str]], seed: int) -> None:
    store = RecordingStore()
    versions = Versions(CAPACITY)
    with create_disk(store, "base.vmdk", CAPACITY, disk_type=DiskType.VMFS_THIN) as base:
        for first in (0, 1000, 2044, 4094, SECTORS - 1):
            data = filling(100, first, min(700, SECTORS - first))
            base.write_from(first * SECTOR, data)
            versions.write(0, first * SECTOR, data)
    below = bytes(versions.now)
    create_child(store, "base.vmdk", "d.vmdk", **CHILDREN[kind])
    made = len(store.log)
    versions.flushed(made)
    drive(store, "d.vmdk", open_disk(store, "d.vmdk", writable=True), versions, steps)
    for cut in cuts(len(store.log), CUTS, seed, made):
        left = after_crash(store.log, cut, seed + cut)
        judge(left, "d.vmdk", versions, cut, seed)
        with open_disk(left, "base.vmdk") as base:
            assert contents(base) == below


def bare(store: RecordingStore, *, flags: int) -> None:
    """Turn d.vmdk into what other products make: no table is there, zero entries perhaps allowed."""
    with store.open_writable("d.vmdk") as file:
        header = new_header(SECTORS, grain=GRAIN // SECTOR)
        for directory in (header.directory, header.redundant_directory):
            file.write_zeroes(directory * SECTOR, header.directory_sectors * SECTOR)
        file.write_from(4, struct.pack("<II", 2 if flags & 4 else 1, flags))
        file.flush()


@pytest.mark.parametrize("flags", [3, 7, 1])
@pytest.mark.parametrize("child", [False, True])
@settings(max_examples=15)
@given(steps=STEPS, seed=st.integers(0, 1 << 32))
def test_layouts_of_others(
    child: bool, flags: int, steps: list[tuple[int, int, int, str]], seed: int
) -> None:
    """Tables are made on the way, with and without a second copy; zero entries where they are allowed."""
    store = RecordingStore()
    versions = Versions(CAPACITY)
    if child:
        with create_disk(store, "base.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_FLAT) as base:
            data = filling(100, 0, SECTORS)
            base.write_from(0, data)
            versions.write(0, 0, data)
        create_child(store, "base.vmdk", "d.vmdk", disk_type=DiskType.MONOLITHIC_SPARSE, grain=GRAIN)
    else:
        create_disk(store, "d.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_SPARSE, grain=GRAIN).close()
    bare(store, flags=flags)
    made = len(store.log)
    versions.flushed(made)
    drive(store, "d.vmdk", open_disk(store, "d.vmdk", writable=True), versions, steps)
    for cut in cuts(len(store.log), CUTS, seed, made):
        left = after_crash(store.log, cut, seed + cut)
        judge(left, "d.vmdk", versions, cut, seed)


#: What opening may say of a disk that was never finished.
NO_DISK = (NotFound, NotADisk, CorruptDisk)


@pytest.mark.parametrize("kind", list(BASES))
def test_creating(kind: str) -> None:
    """Half a disk is no disk; one that opens is complete."""
    store = RecordingStore()
    create_disk(store, "d.vmdk", CAPACITY, **BASES[kind]).close()
    opened = 0
    for cut in range(len(store.log) + 1):
        for seed in range(30):
            left = after_crash(store.log, cut, seed)
            try:
                with open_disk(left, "d.vmdk") as disk:
                    opened += 1
                    assert disk.capacity == CAPACITY
                    assert not any(contents(disk))
            except NO_DISK:
                assert cut < len(store.log)
                continue
            if seed < 8:
                judge(left, "d.vmdk", Versions(CAPACITY), 0, seed)
    assert opened


@pytest.mark.parametrize("kind", list(CHILDREN))
def test_creating_children(kind: str) -> None:
    store = RecordingStore()
    with create_disk(store, "base.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_FLAT) as base:
        below = filling(100, 0, SECTORS)
        base.write_from(0, below)
    before = len(store.log)
    create_child(store, "base.vmdk", "d.vmdk", **CHILDREN[kind])
    opened = 0
    for cut in range(before, len(store.log) + 1):
        for seed in range(12):
            left = after_crash(store.log, cut, seed)
            with open_disk(left, "base.vmdk") as base:
                assert contents(base) == below
            try:
                with open_disk(left, "d.vmdk") as disk:
                    opened += 1
                    assert contents(disk) == below
            except NO_DISK:
                assert cut < len(store.log)
    assert opened


@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 32), grains=st.sets(st.integers(0, 60), max_size=10))
def test_streams(seed: int, grains: set[int]) -> None:
    """Until it is finished a stream is no disk, and then it is all of it."""
    rnd = random.Random(seed)
    store = RecordingStore()
    writer = StreamWriter(store, "s.vmdk", CAPACITY)
    model = bytearray(CAPACITY)
    for grain in sorted(grains):
        data = rnd.randbytes(min(65536, CAPACITY - grain * 65536))
        writer.append(writer.encode(grain * 65536, memoryview(data)))
        model[grain * 65536 : grain * 65536 + len(data)] = data
    writer.finish()
    for cut in cuts(len(store.log), CUTS, seed):
        try:
            with open_disk(after_crash(store.log, cut, seed + cut), "s.vmdk") as disk:
                assert contents(disk) == model
        except NO_DISK:
            assert cut < len(store.log)


@pytest.mark.parametrize("kind", ["monolithicSparse", "monolithicFlat"])
@pytest.mark.parametrize("cid", ["59b560f", "0000000059b560f1", "1"])
@pytest.mark.parametrize("padding", [0, 300, 1500])
def test_a_stamp_that_is_cut_short_loses_no_descriptor(kind: str, cid: str, padding: int) -> None:
    """Other products write content ids of any length, so that the new one moves everything behind it."""
    store = RecordingStore()
    with create_disk(store, "d.vmdk", CAPACITY, **BASES[kind]) as disk:
        old = disk.descriptor.cid
        text = disk.descriptor.to_bytes()
    text = text.replace(f"CID={old:08x}".encode(), f"CID={cid}".encode(), 1)
    text = text.replace(b"# The Disk", b"# " + b"x" * padding + b"\n# The Disk")
    with store.open_writable("d.vmdk") as file:
        offset = SECTOR if kind == "monolithicSparse" else 0
        if not offset:
            file.resize(len(text))
        file.write_from(offset, text.ljust(len(text) if not offset else 20 * SECTOR, b"\0"))
        file.flush()
    with open_disk(store, "d.vmdk") as disk:
        known = {disk.info.cid}
        uuid = disk.info.uuid
    before = len(store.log)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        disk.write_from(0, filling(1, 0, 1))
        known.add(disk.info.cid)
    found = set()
    for cut in range(before, len(store.log) + 1):
        for seed in range(10):
            left = after_crash(store.log, cut, seed)
            with open_disk(left, "d.vmdk") as disk:
                found.add(disk.info.cid)
                assert disk.info.uuid == uuid and disk.capacity == CAPACITY
            with open_disk(left, "d.vmdk", writable=True) as disk:
                disk.write_from(0, filling(2, 0, 1))
                again = disk.info.cid
            with open_disk(left, "d.vmdk") as disk:
                assert disk.info.cid == again and disk.info.uuid == uuid
    assert found == known


def test_the_model_of_a_crash() -> None:
    """The harness itself: it finds a writer that does not flush, and believes one that does."""
    store = RecordingStore()
    with store.create("f", 4 * SECTOR) as file:
        file.flush()
        file.write_from(0, b"a" * 3 * SECTOR)
        before = len(store.log)
        file.flush()
        after = len(store.log)
    seen = {bytes(contents(after_crash(store.log, before, seed).open("f"))) for seed in range(60)}
    assert bytes(4 * SECTOR) in seen and b"a" * 3 * SECTOR + bytes(SECTOR) in seen
    assert any(b"a" * SECTOR in state and state.count(b"a") < 3 * SECTOR for state in seen), "never torn"
    for seed in range(20):
        assert contents(after_crash(store.log, after, seed).open("f")) == b"a" * 3 * SECTOR + bytes(SECTOR)
    versions = Versions(SECTOR)
    versions.write(0, 0, b"x" * SECTOR)
    versions.flushed(5)
    versions.check(3, bytes(SECTOR))
    versions.check(3, b"x" * SECTOR)
    versions.check(5, b"x" * SECTOR)
    for cut, wrong in ((5, bytes(SECTOR)), (3, b"y" * SECTOR)):
        with pytest.raises(AssertionError, match="sector 0"):
            versions.check(cut, wrong)
