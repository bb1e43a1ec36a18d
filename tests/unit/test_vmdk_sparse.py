"""Sparse extents: huge disks cost nothing, threads write together, the order of writes survives a crash."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc
from pathlib import Path

import pytest

from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.workers import WorkerScope
from vdkit.block.wrappers import Stats
from vdkit.errors import CorruptDisk, LimitExceeded, NotADisk, UnsupportedVersion, VixError
from vdkit.vmdk import DiskType, create_disk, open_disk
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.sparse import SparseExtent, new_header, read_header
from vdkit.vmdk.template import new_descriptor

GRAIN = 65536
TIB = 1 << 40


def huge(store: FolderStore, *, preallocated: bool) -> dict[int, bytes]:
    """A sparse extent of 62 TiB with a few grains, as a file with holes; what it holds, by offset."""
    header = new_header(62 * TIB // 512)
    held: dict[int, bytes] = {}
    with store.create("huge", 0) as file:
        file.resize((header.overhead + 128 * 64) * 512)
        tables = range(header.tables)
        first = header.directory + header.directory_sectors
        if preallocated:
            step = 1 << 16
            for start in range(0, header.tables, step):
                part = tables[start : start + step]
                data = struct.pack(f"<{len(part)}I", *(first + 4 * i for i in part))
                file.write_from(header.directory * 512 + start * 4, data)
                if header.redundant_directory:
                    file.write_from(header.redundant_directory * 512 + start * 4, data)
        for i, grain in enumerate((0, 1, 511, 12345678, 62 * TIB // GRAIN - 1)):
            table, entry = divmod(grain, 512)
            place = first + 4 * table
            file.write_from(header.directory * 512 + table * 4, struct.pack("<I", place))
            sector = header.overhead + i * 128
            file.write_from(place * 512 + entry * 4, struct.pack("<I", sector))
            held[grain * GRAIN] = bytes([i + 1]) * GRAIN
            file.write_from(sector * 512, held[grain * GRAIN])
        file.write_from(512, descriptor_of(header).to_bytes())
        file.write_from(0, header.pack())
    return held


def descriptor_of(header: SparseHeader) -> Descriptor:
    return new_descriptor(
        where="huge",
        create_type="monolithicSparse",
        extents=[ExtentLine(Access.RW, header.capacity, "SPARSE", "huge")],
        cid=1,
        ddb={},
    )


@pytest.mark.parametrize("preallocated", [False, True])
def test_62_tib_is_opened_and_walked_without_reading_it(tmp_path: Path, preallocated: bool) -> None:
    store = FolderStore(tmp_path)
    held = huge(store, preallocated=preallocated)
    tracemalloc.start()
    stats = Stats(store.open("huge"))
    with SparseExtent(stats, read_header(stats), capacity=62 * TIB) as extent:
        assert stats.reads.length <= 4096, "opening reads the header, nothing else"
        for offset, content in held.items():
            seen = bytearray(GRAIN)
            extent.read_into(offset, seen)
            assert seen == content
        found = [e for e in extent.extents() if e.kind is ExtentKind.DATA]
        assert found == [
            Extent(0, 2 * GRAIN, ExtentKind.DATA),
            *(Extent(offset, GRAIN, ExtentKind.DATA) for offset in list(held)[2:]),
        ]
        # The directory is 7.75 MiB; of 4 GiB of grain tables only those that hold something are read.
        assert stats.reads.length < 10 << 20
        assert stats.reads.calls < 600
    with open_disk(store, "huge") as disk:
        assert [e for e in disk.extents() if e.kind is ExtentKind.DATA] == found
        assert disk.capacity == 62 * TIB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_threads_may_write_together(tmp_path: Path) -> None:
    """Pieces smaller than a grain, so that several threads want the same new grain at once."""
    store = FolderStore(tmp_path)
    capacity = 24 * GRAIN
    content = random.Random(5).randbytes(capacity)
    offsets = list(range(0, capacity, 4096))
    random.Random(6).shuffle(offsets)
    barrier = threading.Barrier(8)

    def write(mine: list[int]) -> None:
        barrier.wait()
        for offset in mine:
            disk.write_from(offset, content[offset : offset + 4096])

    with create_disk(store, "disk.vmdk", capacity, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        with WorkerScope("test") as scope:
            for i in range(8):
                scope.spawn(lambda part=offsets[i::8]: write(part))
        seen = bytearray(capacity)
        disk.read_into(0, seen)
        assert seen == content
    with open_disk(store, "disk.vmdk") as disk:
        disk.read_into(0, seen)
        assert seen == content
    # No grain was allocated twice.
    assert (tmp_path / "disk.vmdk").stat().st_size == new_header(capacity // 512).overhead * 512 + capacity


class Recorder(MemoryDevice):
    """Notes the order of writes and flushes."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, name="recorder")
        self.log: list[tuple[str, int, int]] = []

    def _write_from(self, offset: int, view: memoryview) -> None:
        self.log.append(("write", offset, len(view)))
        super()._write_from(offset, view)

    def _flush(self) -> None:
        self.log.append(("flush", 0, 0))


def test_order_of_writes(tmp_path: Path) -> None:
    """Mark, sync; data, sync; primary and redundant table, sync; unmark last."""
    header = new_header(1 << 20)
    with create_disk(MemoryStore("m"), "d.vmdk", 1 << 29, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        size = header.overhead * 512
        image = bytearray(size)
        disk._links[0].device._file.read_into(0, image)
    file = Recorder(size)
    file.write_from(0, image)
    file.log.clear()
    extent = SparseExtent(file, header, capacity=1 << 29)
    extent.write_from(GRAIN * 3, b"x" * GRAIN)
    assert file.log == [("write", 72, 1), ("flush", 0, 0), ("write", size, GRAIN)]
    file.log.clear()
    extent.flush()
    primary = (header.directory + header.directory_sectors) * 512
    redundant = (header.redundant_directory + header.directory_sectors) * 512
    assert file.log == [
        ("flush", 0, 0),
        ("write", primary, 2048),
        ("write", redundant, 2048),
        ("flush", 0, 0),
    ]
    file.log.clear()
    marked = bytearray(1)
    file.read_into(72, marked)
    assert marked == b"\1"
    extent._close()
    assert file.log[-2:] == [("write", 72, 1), ("flush", 0, 0)]
    assert all(what == "flush" for what, _, _ in file.log[:-2])


def test_a_disk_that_was_not_closed_is_noted_and_stays_marked(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    create_disk(store, "disk.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    with store.open_writable("disk.vmdk") as file:
        file.write_from(72, b"\1")
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        assert disk.info.unclean and "not closed properly" in disk.info.notes[0]
        disk.write_from(0, b"x")
    with open_disk(store, "disk.vmdk") as disk:
        assert disk.info.unclean


def test_too_large_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(LimitExceeded, match="2 TiB"):
        create_disk(store, "disk.vmdk", 2 * TIB + 512, disk_type=DiskType.MONOLITHIC_SPARSE)
    assert store.list() == []
    create_disk(store, "disk.vmdk", 2 * TIB, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    # 128 MiB of tables twice, but only the directories take space.
    assert (tmp_path / "disk.vmdk").stat().st_blocks * 512 < 2 << 20


def image(**changes: int) -> bytes:
    """A small sparse extent with one grain, its header changed."""
    header = new_header(2048)
    fields = {name: getattr(header, name) for name in SparseHeader.__slots__}
    made = SparseHeader(**{**fields, **changes})
    body = bytearray(header.overhead * 512 + GRAIN)
    for directory in (header.redundant_directory, header.directory):
        struct.pack_into("<I", body, directory * 512, directory + 1)
        struct.pack_into("<I", body, (directory + 1) * 512, header.overhead)
    body[:79] = made.pack()[:79]
    body[header.overhead * 512 :] = b"g" * GRAIN
    return bytes(body)


def opened(data: bytes) -> SparseExtent:
    file: BlockDevice = MemoryDevice.from_bytes(data, name="image")
    return SparseExtent(file, read_header(file), capacity=2048 * 512)


def test_the_helper_makes_a_good_image() -> None:
    seen = bytearray(GRAIN)
    opened(image()).read_into(0, seen)
    assert seen == b"g" * GRAIN


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"version": 4}, UnsupportedVersion, "version 4"),
        ({"version": 0}, UnsupportedVersion, "version 0"),
        ({"flags": 0x40003}, UnsupportedVersion, "0x40000"),
        ({"flags": 0x20003}, CorruptDisk, "contradict"),
        ({"compression": 2}, UnsupportedVersion, "compression algorithm 2"),
        ({"compression": 1}, CorruptDisk, "contradict"),
        ({"grain": 0}, CorruptDisk, "power of two"),
        ({"grain": 100}, CorruptDisk, "power of two"),
        ({"grain": 1 << 40}, LimitExceeded, "grain size"),
        ({"capacity": 0}, LimitExceeded, "capacity"),
        ({"capacity": (1 << 64) - 1}, LimitExceeded, "capacity"),
        ({"capacity": 1 << 53}, LimitExceeded, "grain tables"),
        ({"capacity": 1 << 40}, CorruptDisk, "grain directory"),
        ({"directory": 1 << 50}, CorruptDisk, "ends past"),
        ({"directory": 0}, CorruptDisk, "overlaps"),
        ({"directory": 5}, CorruptDisk, "overlaps"),
        ({"redundant_directory": 26}, CorruptDisk, "overlaps"),
        ({"descriptor": 1 << 60}, CorruptDisk, "ends past"),
        ({"descriptor_sectors": 1 << 60}, CorruptDisk, "ends past"),
        ({"overhead": 0}, CorruptDisk, "overhead"),
        ({"overhead": 1 << 30}, CorruptDisk, "overhead"),
        ({"capacity": 1024}, CorruptDisk, "header only 1024"),
    ],
)
def test_bad_headers_are_refused_by_name(changes: dict[str, int], error: type[VixError], text: str) -> None:
    with pytest.raises(error, match=text):
        opened(image(**changes))


def test_text_mode_transfer_is_told() -> None:
    data = bytearray(image())
    data[73:77] = b"\n \n\n"
    with pytest.raises(CorruptDisk, match="text mode"):
        opened(bytes(data))


def test_other_magic() -> None:
    with pytest.raises(NotADisk, match="never finished"):
        opened(b"kdmv" + image()[4:])
    data = bytearray(image())
    struct.pack_into("<I", data, 44, 1024)
    with pytest.raises(UnsupportedVersion, match="1024 entries"):
        opened(bytes(data))


@pytest.mark.parametrize("entry", [1, 2, 127, 256, 0xFFFFFFFF])
def test_grains_outside_the_file_are_damage(entry: int) -> None:
    data = bytearray(image())
    struct.pack_into("<I", data, 27 * 512, entry)
    with pytest.raises(CorruptDisk), opened(bytes(data)) as extent:
        list(extent.extents())
        extent.read_into(0, bytearray(GRAIN))


@pytest.mark.parametrize("entry", [0xFFFFFFFF, 1 << 20])
def test_tables_outside_the_file_are_damage(entry: int) -> None:
    data = bytearray(image())
    struct.pack_into("<I", data, 26 * 512, entry)
    with pytest.raises(CorruptDisk, match="grain table 0"), opened(bytes(data)) as extent:
        extent.read_into(0, bytearray(GRAIN))


def test_zeroed_grains_hide_the_parent_and_can_be_written() -> None:
    data = bytearray(image(version=2, flags=7))
    struct.pack_into("<I", data, 27 * 512, 1)
    file = MemoryDevice.from_bytes(bytes(data), name="image")
    extent = SparseExtent(file, read_header(file), capacity=2048 * 512, has_parent=True)
    assert list(extent.extents(0, 2 * GRAIN)) == [
        Extent(0, GRAIN, ExtentKind.ZERO),
        Extent(GRAIN, GRAIN, ExtentKind.ABSENT),
    ]
    seen = bytearray(b"?" * GRAIN)
    extent.read_into(0, seen)
    assert seen == bytes(GRAIN)
    extent.write_from(100, b"new")
    extent.read_into(0, seen)
    assert seen == bytes(100) + b"new" + bytes(GRAIN - 103)
    extent.close()


class Kept(MemoryDevice):
    """Survives the closing of the extent over it."""

    def _close(self) -> None:
        return


def test_a_missing_table_reads_as_zero_and_is_made_when_it_is_needed() -> None:
    """Other products leave tables out until something is written there."""
    data = bytearray(image())
    struct.pack_into("<I", data, 26 * 512, 0)
    struct.pack_into("<I", data, 21 * 512, 0)
    file = Kept.from_bytes(bytes(data), name="image")
    with SparseExtent(file, read_header(file), capacity=2048 * 512) as extent:
        assert [e.kind for e in extent.extents()] == [ExtentKind.ZERO]
        extent.write_from(3 * GRAIN + 100, b"new")
        seen = bytearray(103)
        extent.read_into(3 * GRAIN, seen)
        assert seen == bytes(100) + b"new"
    again = MemoryDevice._on(file._content, name="again", writable=False)
    directories = []
    for directory in (21, 26):
        entry = bytearray(4)
        again.read_into(directory * 512, entry)
        table = bytearray(2048)
        again.read_into(int.from_bytes(entry, "little") * 512, table)
        directories.append((entry, table))
    (primary, first), (redundant, second) = directories
    assert primary != redundant and first == second and any(first)
    with SparseExtent(again, read_header(again), capacity=2048 * 512) as extent:
        extent.read_into(3 * GRAIN, seen)
        assert seen == bytes(100) + b"new"
        assert [e.kind for e in extent.extents()].count(ExtentKind.DATA) == 1


def test_a_table_that_only_one_directory_knows() -> None:
    """The first copy decides; what only the second one knows may be all that is left of something."""
    data = bytearray(image())
    struct.pack_into("<I", data, 26 * 512, 0)
    with opened(bytes(data)) as extent:
        assert [e.kind for e in extent.extents()] == [ExtentKind.ZERO]
        with pytest.raises(CorruptDisk, match="redundant directory only"):
            extent.write_from(0, b"x" * GRAIN)
    data = bytearray(image())
    struct.pack_into("<I", data, 21 * 512, 0)
    file = Kept.from_bytes(bytes(data), name="image")
    with SparseExtent(file, read_header(file), capacity=2048 * 512) as extent:
        extent.write_from(GRAIN, b"x" * GRAIN)
    again = MemoryDevice._on(file._content, name="again", writable=False)
    entry, table = bytearray(4), bytearray(8)
    again.read_into(21 * 512, entry)
    again.read_into(int.from_bytes(entry, "little") * 512, table)
    assert struct.unpack("<II", table) == (128, 256)


def test_short_last_grain_is_read_and_grown_on_writing(tmp_path: Path) -> None:
    sectors = 130
    store = FolderStore(tmp_path)
    with create_disk(store, "d.vmdk", sectors * 512, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(128 * 512, b"y" * 1024)
    with store.open_writable("d.vmdk") as file:
        file.resize(new_header(sectors).overhead * 512 + 1024)
    seen = bytearray(1024)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        disk.read_into(128 * 512, seen)
        assert seen == b"y" * 1024
        disk.write_from(0, b"z" * GRAIN)
        disk.read_into(128 * 512, seen)
        assert seen == b"y" * 1024
