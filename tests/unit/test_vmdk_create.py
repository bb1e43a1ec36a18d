"""Creating: what each type is made of, every option, limits before anything is written, no half disks."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vdkit.block.device import WritableDevice
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import (
    AlreadyExists,
    ChainError,
    DiskFull,
    LimitExceeded,
    NotSupported,
    StoreError,
    UsageError,
    VixError,
)
from vdkit.testing.sesparse import write_sesparse
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place
from vdkit.vmdk.split import LARGE_SECTORS, SPARSE_SECTORS, piece_sectors, pieces
from vdkit.vmdk.template import Parent

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
SPLIT_TYPES = [DiskType.SPLIT_SPARSE, DiskType.SPLIT_FLAT]
BASES = [
    DiskType.MONOLITHIC_SPARSE,
    DiskType.MONOLITHIC_FLAT,
    *SPLIT_TYPES,
    DiskType.VMFS_FLAT,
    DiskType.VMFS_THIN,
]


def lines(store: FolderStore | MemoryStore, name: str) -> list[str]:
    return [str(line) for line in read_descriptor(Place(store, name))[0].extents]


@pytest.mark.parametrize(
    ("kind", "capacity", "expected"),
    [
        (
            DiskType.SPLIT_SPARSE,
            5 * GIB + 77 * 512,
            [
                'RW 4192256 SPARSE "d-s001.vmdk"',
                'RW 4192256 SPARSE "d-s002.vmdk"',
                'RW 2101325 SPARSE "d-s003.vmdk"',
            ],
        ),
        (
            DiskType.SPLIT_FLAT,
            5 * GIB + 512,
            [
                'RW 4193792 FLAT "d-f001.vmdk" 0',
                'RW 4193792 FLAT "d-f002.vmdk" 0',
                'RW 2098177 FLAT "d-f003.vmdk" 0',
            ],
        ),
        (DiskType.SPLIT_SPARSE, 512, ['RW 1 SPARSE "d-s001.vmdk"']),
        (DiskType.MONOLITHIC_FLAT, 3 * TIB, ['RW 6442450944 FLAT "d-flat.vmdk" 0']),
        (DiskType.VMFS_THIN, 62 * TIB, ['RW 133143986176 VMFS "d-flat.vmdk"']),
    ],
)
def test_extent_lines(kind: DiskType, capacity: int, expected: list[str]) -> None:
    store = MemoryStore()
    with create_disk(store, "d.vmdk", capacity, disk_type=kind) as disk:
        assert disk.capacity == capacity
        disk.write_from(capacity - 512, b"e" * 512)
    assert lines(store, "d.vmdk") == expected
    files = [line.split('"')[1] for line in expected]
    assert store.list() == sorted(["d.vmdk", *files])
    if "FLAT" in expected[0] or "VMFS" in expected[0]:
        assert [store.open(f).capacity // 512 for f in files] == [int(e.split()[1]) for e in expected]


@pytest.mark.parametrize(
    ("size", "directories"), [(10 * MIB, (1, 6)), (2047 * MIB, (1, 258)), (4064 * MIB, (1, 510))]
)
def test_pieces_are_laid_out_as_vmware_does(size: int, directories: tuple[int, int]) -> None:
    """No descriptor area, the tables behind the header; numbers of extents made by VMware and VirtualBox."""
    store = MemoryStore()
    create_disk(store, "d.vmdk", size, disk_type=DiskType.SPLIT_SPARSE, split=size).close()
    head = bytearray(512)
    store.open("d-s001.vmdk").read_into(0, head)
    magic, version, flags, capacity, grain, at, count, entries, redundant, primary, overhead = (
        struct.unpack_from("<4sIIQQQQIQQQ", head)
    )
    assert (magic, version, flags, capacity, grain) == (b"KDMV", 1, 3, size // 512, 128)
    assert (at, count, entries) == (0, 0, 512)
    assert (redundant, primary) == directories
    assert overhead % 128 == 0


def test_names_have_four_digits_after_999() -> None:
    names = [piece.file_name for piece in pieces("x/d.vmdk", 1001, 1, flat=True)]
    assert names[:2] == ["x/d-f001.vmdk", "x/d-f002.vmdk"]
    assert names[-3:] == ["x/d-f999.vmdk", "x/d-f1000.vmdk", "x/d-f1001.vmdk"]


@pytest.mark.parametrize("kind", SPLIT_TYPES)
def test_writes_cross_the_pieces(kind: DiskType) -> None:
    store = MemoryStore()
    capacity = 3 * MIB + 5 * 512
    with create_disk(store, "d.vmdk", capacity, disk_type=kind, split=MIB) as disk:
        disk.write_from(MIB - 700, b"x" * (MIB + 1400))
        disk.write_zeroes(2 * MIB - 100, 200)
        disk.write_from(capacity - 512, b"e" * 512)
    model = bytearray(capacity)
    model[MIB - 700 : 2 * MIB + 700] = b"x" * (MIB + 1400)
    model[2 * MIB - 100 : 2 * MIB + 100] = bytes(200)
    model[-512:] = b"e" * 512
    with open_disk(store, "d.vmdk") as disk:
        seen = bytearray(capacity)
        disk.read_into(0, seen)
    assert seen == model
    assert len(lines(store, "d.vmdk")) == 4


@pytest.mark.parametrize("grain", [4096, 8192, 65536, MIB, 1 << 30])
@pytest.mark.parametrize("kind", [DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE])
def test_grains(kind: DiskType, grain: int) -> None:
    store = MemoryStore()
    capacity = 2 * GIB + 3 * 512
    split = {"split": GIB} if kind is DiskType.SPLIT_SPARSE else {}
    with create_disk(store, "d.vmdk", capacity, disk_type=kind, grain=grain, **split) as disk:
        for start in (0, GIB - 100, capacity - 200):
            disk.write_from(start, b"data" * 50)
    with open_disk(store, "d.vmdk") as disk:
        for start in (0, GIB - 100, capacity - 200):
            seen = bytearray(200)
            disk.read_into(start, seen)
            assert seen == b"data" * 50
        data = sum(e.length for e in disk.extents() if e.kind.value == "data")
    assert data <= 4 * grain


def test_the_disk_database() -> None:
    store = MemoryStore()
    with create_disk(store, "d.vmdk", 8 * MIB, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        assert disk.info.hardware_version == "10" and disk.sector_size == 512
        assert disk.descriptor.get("ddb.logicalSectorSize") is None
        assert disk.info.long_content_id is not None
        assert disk.info.long_content_id.endswith(f"{disk.info.cid:08x}")
    with create_disk(
        store,
        "e.vmdk",
        8 * MIB,
        disk_type=DiskType.VMFS_FLAT,
        adapter="ide",
        hardware_version=21,
        sector_size=4096,
    ) as disk:
        assert disk.info.hardware_version == "21" and disk.info.adapter == "ide"
        assert disk.sector_size == 4096 == disk.info.sector_size
        assert disk.descriptor.get("ddb.physicalSectorSize") == "4096"
    create_child(store, "e.vmdk", "f.vmdk", disk_type=DiskType.SPLIT_SPARSE)
    with open_disk(store, "f.vmdk") as disk:
        assert disk.sector_size == 4096
    with StreamWriter(store, "s.vmdk", 8 * MIB, hardware_version=14, sector_size=4096) as writer:
        writer.finish()
    with open_disk(store, "s.vmdk") as disk:
        assert disk.info.hardware_version == "14" and disk.sector_size == 4096


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "split": GIB}, UsageError, "not split"),
        ({"disk_type": DiskType.VMFS_FLAT, "grain": 65536}, UsageError, "no grains"),
        ({"disk_type": DiskType.SPLIT_FLAT, "grain": 65536}, UsageError, "no grains"),
        ({"disk_type": DiskType.SPLIT_SPARSE, "split": 100000}, UsageError, "whole grains"),
        ({"disk_type": DiskType.SPLIT_SPARSE, "split": 65536, "grain": MIB}, UsageError, "whole grains"),
        ({"disk_type": DiskType.SPLIT_FLAT, "split": 1000}, UsageError, "whole sectors"),
        ({"disk_type": DiskType.SPLIT_FLAT, "split": 0}, UsageError, "whole sectors"),
        ({"disk_type": DiskType.SPLIT_FLAT, "split": -512}, UsageError, "whole sectors"),
        ({"disk_type": DiskType.SPLIT_SPARSE, "split": 65536, "capacity": 8 * GIB}, LimitExceeded, "65536"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 2048}, UsageError, "grain of 2048"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 12288}, UsageError, "grain of 12288"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 2 << 30}, UsageError, "grain"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 0}, UsageError, "grain of 0"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "preallocate": True}, UsageError, "reserved"),
        ({"disk_type": DiskType.VMFS_THIN, "preallocate": True}, UsageError, "reserved"),
        ({"disk_type": DiskType.VMFS_FLAT, "hardware_version": 2}, UsageError, "hardware version 2"),
        ({"disk_type": DiskType.VMFS_FLAT, "hardware_version": 100}, UsageError, "hardware version 100"),
        ({"disk_type": DiskType.VMFS_FLAT, "sector_size": 1024}, UsageError, "1024"),
        ({"disk_type": DiskType.VMFS_FLAT, "sector_size": 4096, "capacity": 512}, UsageError, "4096"),
        ({"disk_type": DiskType.VMFS_FLAT, "adapter": "pvscsi"}, UsageError, "pvscsi"),
        ({"disk_type": DiskType.VMFS_FLAT, "capacity": 62 * TIB + 512}, LimitExceeded, "62 TiB"),
        ({"disk_type": DiskType.SPLIT_SPARSE, "capacity": 62 * TIB + 512}, LimitExceeded, "62 TiB"),
        ({"disk_type": DiskType.MONOLITHIC_SPARSE, "capacity": 2 * TIB + 512}, LimitExceeded, "2 TiB"),
        (
            {"disk_type": DiskType.SPLIT_SPARSE, "capacity": 6 * TIB, "split": 3 * TIB},
            LimitExceeded,
            "2 TiB",
        ),
        ({"disk_type": DiskType.VMFS_FLAT, "capacity": 1000}, UsageError, "multiple of 512"),
        ({"disk_type": DiskType.VMFS_FLAT, "capacity": -512}, UsageError, "multiple of 512"),
        ({"disk_type": DiskType.VMFS_SPARSE}, NotSupported, "create_child"),
        ({"disk_type": DiskType.STREAM_OPTIMIZED}, NotSupported, "StreamWriter"),
    ],
)
def test_what_cannot_be_made_is_refused_first(
    options: dict[str, object], error: type[VixError], text: str
) -> None:
    store = MemoryStore()
    capacity = options.pop("capacity", 8 * MIB)
    with pytest.raises(error, match=text):
        create_disk(store, "d.vmdk", capacity, **options)  # type: ignore[arg-type]
    assert store.list() == []


def test_streams_over_62_tib() -> None:
    store = MemoryStore()
    with pytest.raises(LimitExceeded, match="62 TiB"):
        StreamWriter(store, "s.vmdk", 62 * TIB + 512)
    assert store.list() == []


def test_62_tib_in_pieces_needs_larger_ones() -> None:
    """16 thousand lines fit a descriptor, 32 thousand do not."""
    for tib, expected in ((30, SPARSE_SECTORS), (62, LARGE_SECTORS)):
        sectors = tib * TIB // 512
        size = piece_sectors(sectors, None, flat=False, unit=128, where="d")
        assert size == expected
        assert (
            sum(
                len(f'RW {p.sectors} SPARSE "{p.file_name}"') + 1
                for p in pieces("d.vmdk", sectors, size, flat=False)
            )
            < MIB - 4096
        )
    store = MemoryStore()
    with create_disk(store, "d.vmdk", 62 * TIB, disk_type=DiskType.SPLIT_FLAT, split=TIB) as disk:
        disk.write_from(61 * TIB - 100, b"across the pieces" * 20)
    with pytest.raises(LimitExceeded, match="larger pieces"):
        create_disk(store, "e" * 200 + ".vmdk", 8 * TIB, disk_type=DiskType.SPLIT_FLAT, split=GIB)


class Failing(MemoryStore):
    """Fails at the ``after``-th change of a file or making of one."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoreError("the store failed")

    def create(self, name: str, size: int = 0):  # type: ignore[no-untyped-def]
        self.tick()
        made = super().create(name, size)
        for method in ("_write_from", "_resize", "_flush"):
            self.wrap(made, method)
        return made

    def wrap(self, made: WritableDevice, method: str) -> None:
        plain = getattr(made, method)

        def failing(*args: object) -> None:
            self.tick()
            plain(*args)

        setattr(made, method, failing)

    def open_writable(self, name: str):  # type: ignore[no-untyped-def]
        self.tick()
        return super().open_writable(name)


@pytest.mark.parametrize("kind", BASES)
def test_a_failure_at_any_step_leaves_nothing_behind(kind: DiskType) -> None:
    split = {"split": 4 * MIB} if kind in SPLIT_TYPES else {}
    for step in range(1, 100):
        store = Failing(step)
        try:
            create_disk(store, "d.vmdk", 10 * MIB, disk_type=kind, **split).close()
        except StoreError:
            assert store.list() == [], f"after step {step}"
            continue
        assert step > 4
        assert (
            len(store.list()) == {True: 4, False: 1 + (kind is not DiskType.MONOLITHIC_SPARSE)}[bool(split)]
        )
        return
    pytest.fail("never succeeded")


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE])
def test_children_leave_nothing_behind_either(kind: DiskType) -> None:
    split = {"split": 4 * MIB} if kind is DiskType.SPLIT_SPARSE else {}
    for step in range(1, 100):
        store = Failing(-1)
        create_disk(store, "base.vmdk", 10 * MIB, disk_type=DiskType.VMFS_FLAT).close()
        store.left = step
        try:
            create_child(store, "base.vmdk", "base-000001.vmdk", disk_type=kind, **split)
        except StoreError:
            assert store.list() == ["base-flat.vmdk", "base.vmdk"]
            continue
        assert step > 3
        return
    pytest.fail("never succeeded")


@pytest.mark.parametrize("taken", ["d.vmdk", "d-s001.vmdk", "d-s003.vmdk"])
def test_no_piece_replaces_a_file(taken: str) -> None:
    store = MemoryStore()
    with store.create(taken) as file:
        file.resize(4)
        file.write_from(0, b"mine")
    with pytest.raises(AlreadyExists, match=taken):
        create_disk(store, "d.vmdk", 3 * MIB, disk_type=DiskType.SPLIT_SPARSE, split=MIB)
    assert store.list() == [taken]
    seen = bytearray(4)
    store.open(taken).read_into(0, seen)
    assert seen == b"mine"


@pytest.mark.parametrize("kind", [DiskType.MONOLITHIC_FLAT, DiskType.VMFS_FLAT, DiskType.SPLIT_FLAT])
def test_preallocated(tmp_path: Path, kind: DiskType) -> None:
    store = FolderStore(tmp_path)
    used = []
    for name, preallocate in (("thin.vmdk", False), ("thick.vmdk", True)):
        create_disk(store, name, 4 * MIB, disk_type=kind, preallocate=preallocate).close()
        files = list(tmp_path.glob(f"{name[:-5]}-*"))
        assert sum(path.stat().st_size for path in files) == 4 * MIB
        used.append(sum(path.stat().st_blocks * 512 for path in files))
        with open_disk(store, name) as disk:
            seen = bytearray(b"?" * 4 * MIB)
            disk.read_into(0, seen)
            assert not any(seen)
    assert used[0] < MIB and used[1] >= 4 * MIB


def test_preallocating_without_space_or_without_a_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotSupported, match="cannot reserve"):
        create_disk(MemoryStore(), "d.vmdk", MIB, disk_type=DiskType.VMFS_FLAT, preallocate=True)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DiskFull, match="reserving"):
        create_disk(FolderStore(tmp_path), "d.vmdk", MIB, disk_type=DiskType.VMFS_FLAT, preallocate=True)
    assert list(tmp_path.iterdir()) == []


def test_split_children_of_every_parent() -> None:
    for kind in BASES:
        store = MemoryStore()
        with create_disk(store, "vm.vmdk", 3 * MIB, disk_type=kind) as disk:
            disk.write_from(MIB - 50, b"parent" * 20)
        before = {name: data(store, name) for name in store.list()}
        create_child(store, "vm.vmdk", "vm-000001.vmdk", disk_type=DiskType.SPLIT_SPARSE, split=MIB)
        assert [line.split('"')[1] for line in lines(store, "vm-000001.vmdk")] == [
            f"vm-000001-s00{i}.vmdk" for i in (1, 2, 3)
        ]
        with open_disk(store, "vm-000001.vmdk", writable=True) as disk:
            disk.write_from(MIB - 10, b"child" * 4)
            disk.write_zeroes(MIB + 40, 10)
            seen = bytearray(120)
            disk.read_into(MIB - 50, seen)
        expected = bytearray(b"parent" * 20)
        expected[40:60] = b"child" * 4
        expected[90:100] = bytes(10)
        assert seen == expected
        assert {name: data(store, name) for name in before} == before


def data(store: MemoryStore, name: str) -> bytes:
    file = store.open(name)
    content = bytearray(file.capacity)
    file.read_into(0, content)
    return bytes(content)


def test_children_that_cannot_be() -> None:
    store = MemoryStore()
    create_disk(store, "d.vmdk", MIB, disk_type=DiskType.VMFS_FLAT).close()
    for kind in (
        DiskType.VMFS_FLAT,
        DiskType.SPLIT_FLAT,
        DiskType.MONOLITHIC_FLAT,
        DiskType.STREAM_OPTIMIZED,
    ):
        with pytest.raises(NotSupported, match="cannot be made"):
            create_child(store, "d.vmdk", "c.vmdk", disk_type=kind)
    with pytest.raises(UsageError, match="not split"):
        create_child(store, "d.vmdk", "c.vmdk", split=MIB)
    with pytest.raises(UsageError, match="grain of 2097152"):
        create_child(store, "d.vmdk", "c.vmdk", grain=2 * MIB)
    text = data(store, "d.vmdk")
    at = text.index(b"CID=") + 4
    with store.open_writable("d.vmdk") as file:
        file.write_from(at, b"ffffffff")
    with pytest.raises(ChainError, match="no parent"):
        create_child(store, "d.vmdk", "c.vmdk")
    assert store.list() == ["d-flat.vmdk", "d.vmdk"]


def test_the_largest_delta() -> None:
    """COWD counts sectors in 32 bits: one sector below 2 TiB."""
    store = MemoryStore()
    for sectors, fits in (((1 << 32) - 1, True), (1 << 32, False)):
        name = f"d{sectors}.vmdk"
        create_disk(store, name, sectors * 512, disk_type=DiskType.VMFS_THIN).close()
        if fits:
            create_child(store, name, "c.vmdk")
            with open_disk(store, "c.vmdk", writable=True) as disk:
                disk.write_from(disk.capacity - 512, b"e" * 512)
        else:
            with pytest.raises(LimitExceeded, match="2 TiB"):
                create_child(store, name, "x.vmdk")


def test_deltas_of_larger_grains_have_no_holes() -> None:
    """What VMware's checker asks for: everything below the free sector is used, and nothing above it."""
    store = MemoryStore()
    create_disk(store, "d.vmdk", 64 * MIB, disk_type=DiskType.VMFS_FLAT).close()
    create_child(store, "d.vmdk", "c.vmdk", grain=4096)
    with open_disk(store, "c.vmdk", writable=True) as disk:
        for start in (0, 40 * MIB, 17 * MIB + 5000):
            disk.write_from(start, b"x" * 600)
    delta = data(store, "c-delta.vmdk")
    grain, directory, count, free = struct.unpack_from("<4I", delta, 16)
    assert (grain, free * 512) == (8, len(delta))
    used = set(range(4 + -(-count * 4 // 512)))
    for table in struct.unpack_from(f"<{count}I", delta, directory * 512):
        if table:
            used |= set(range(table, table + 32))
            for entry in struct.unpack_from("<4096I", delta, table * 512):
                if entry:
                    used |= set(range(entry, entry + 8))
    assert used == set(range(free))


def test_the_saved_generation_follows_the_generation() -> None:
    store = MemoryStore()
    create_disk(store, "d.vmdk", MIB, disk_type=DiskType.VMFS_FLAT).close()
    create_child(store, "d.vmdk", "c.vmdk")
    with store.open_writable("c-delta.vmdk") as file:
        file.write_from(1060, struct.pack("<I", 7))
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_from(0, b"x" * 512)
        disk.flush()
        assert struct.unpack_from("<I", data(store, "c-delta.vmdk"), 1636) == (0,)
    assert struct.unpack_from("<I", data(store, "c-delta.vmdk"), 1636) == (7,)
    assert struct.unpack_from("<I", data(store, "c-delta.vmdk"), 1060) == (7,)


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE])
def test_zeroes_over_a_parent_are_not_stored(tmp_path: Path, kind: DiskType) -> None:
    store = FolderStore(tmp_path)
    with create_disk(store, "d.vmdk", 16 * MIB, disk_type=DiskType.VMFS_FLAT) as disk:
        disk.write_from(0, b"p" * 16 * MIB)
    create_child(store, "d.vmdk", "c.vmdk", disk_type=kind)
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_zeroes(1000, 15 * MIB)
    with open_disk(store, "c.vmdk") as disk:
        seen = bytearray(16 * MIB)
        disk.read_into(0, seen)
    assert seen == b"p" * 1000 + bytes(15 * MIB) + b"p" * (MIB - 1000)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.glob("c*")) < 2 * MIB


def test_a_child_of_an_sesparse_delta() -> None:
    store = MemoryStore()
    with create_disk(store, "vm.vmdk", MIB, disk_type=DiskType.VMFS_FLAT) as disk:
        disk.write_from(0, b"b" * 8192)
        cid = disk.info.cid
    write_sesparse(store, "vm-000001.vmdk", MIB, {1: b"s" * 4096}, parent=Parent(cid, "vm.vmdk"))
    for kind in (DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE):
        name = f"{kind.value}.vmdk"
        create_child(store, "vm-000001.vmdk", name, disk_type=kind)
        with open_disk(store, name, writable=True) as disk:
            disk.write_from(8190, b"child")
            seen = bytearray(8196)
            disk.read_into(0, seen)
        assert seen == b"b" * 4096 + b"s" * 4094 + b"child" + b"\0"
