"""Chains seen as one table: against a model, against the links one by one, when damaged, and when closed."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdkit.block.chain import Chain
from vdkit.block.copy import copy
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.errors import Closed, CorruptDisk, OutOfRange, UsageError
from vdkit.vmdk import Disk, DiskType, StreamWriter, create_child, create_disk, open_disk

GRAIN = 1 << 12
CAPACITY = 5 * (1 << 20) + 3 * 512  # three tables of a sparse disk, and no whole grain at the end
BASES = (
    DiskType.MONOLITHIC_SPARSE,
    DiskType.MONOLITHIC_FLAT,
    DiskType.STREAM_OPTIMIZED,
    DiskType.SPLIT_SPARSE,
    DiskType.SPLIT_FLAT,
)
CHILDREN = (DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE)


def change(disk: Disk, model: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 6)):
        length = dice.choice([512, 4096, GRAIN, 3 * GRAIN + 512])
        offset = dice.choice([0, dice.randrange(CAPACITY), CAPACITY - length])
        offset = min(offset, CAPACITY - length) // 512 * 512
        if dice.random() < 0.25:
            disk.write_zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = dice.randbytes(length)
            disk.write_from(offset, data)
            model[offset : offset + length] = data


def grain_of(kind: DiskType) -> int | None:
    return GRAIN if kind in (DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE) else None


def build(folder: Path, seed: int, base: DiskType, children: list[DiskType]) -> tuple[Disk, bytearray]:
    """A chain with a little in each link, opened read-only, and what it must read as."""
    dice = random.Random(seed)
    store = FolderStore(folder)
    model = bytearray(CAPACITY)
    if base is DiskType.STREAM_OPTIMIZED:
        for _ in range(4):
            offset = dice.randrange(CAPACITY - GRAIN) // 512 * 512
            model[offset : offset + GRAIN] = dice.randbytes(GRAIN)
        with StreamWriter(store, "0.vmdk", CAPACITY) as writer:
            source = MemoryDevice(CAPACITY)
            source.write_from(0, model)
            copy(source, writer, target_is_zero=True)
            writer.finish()
    else:
        with create_disk(
            store, "0.vmdk", CAPACITY, disk_type=base, grain=grain_of(base), durable=False
        ) as disk:
            change(disk, model, dice)
    for number, kind in enumerate(children, 1):
        create_child(
            store, f"{number - 1}.vmdk", f"{number}.vmdk", disk_type=kind, grain=grain_of(kind), durable=False
        )
        with open_disk(store, f"{number}.vmdk", writable=True, durable=False) as disk:
            change(disk, model, dice)
    return open_disk(store, f"{len(children)}.vmdk"), model


def one_by_one(disk: Disk) -> list[tuple[Extent, int]]:
    """The map with its levels, asked of the links themselves."""
    chain = disk._device
    assert isinstance(chain, Chain)
    base = len(chain.links) - 1
    runs = chain._runs(0, disk.capacity)
    return joined([(Extent(r.offset, r.length, r.kind), min(r.link, base)) for r in runs])


def joined(layers: list[tuple[Extent, int]]) -> list[tuple[Extent, int]]:
    made: list[tuple[Extent, int]] = []
    for extent, level in layers:
        if made and made[-1][0].kind is extent.kind and made[-1][1] == level:
            made[-1] = (Extent(made[-1][0].offset, made[-1][0].length + extent.length, extent.kind), level)
        else:
            made.append((extent, level))
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.sampled_from(BASES), st.lists(st.sampled_from(CHILDREN), max_size=4))
def test_a_merged_chain_is_its_links(seed: int, base: DiskType, children: list[DiskType]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disk, model = build(Path(folder), seed, base, children)
        with disk:
            runs = list(disk.layers())
            assert joined([(Extent(*run[:3]), level) for run, level in runs]) == one_by_one(disk)
            for run, _ in runs:
                if run.kind is ExtentKind.DATA and run.file is not None:
                    there = bytearray(run.length)
                    run.file.read_into(run.position, there)
                    assert there == model[run.offset : run.offset + run.length]
            dice = random.Random(seed)
            for _ in range(150):
                length = dice.choice([1, 512, 4096, GRAIN, 2 * GRAIN + 1])
                offset = dice.choice([dice.randrange(CAPACITY - length), CAPACITY - length, 0])
                buffer = bytearray(length)
                disk.read_into(offset, buffer)
                assert buffer == model[offset : offset + length]
            whole = bytearray(CAPACITY)
            disk.read_into(0, whole)
            assert whole == model
            pieces = [(at, bytearray(5000)) for at in range(0, CAPACITY - 5000, 300_001)]
            disk.read_many(pieces)
            assert all(buffer == model[at : at + 5000] for at, buffer in pieces)
            for extent in disk.extents():
                if extent.kind is ExtentKind.ZERO:
                    assert not any(model[extent.offset : extent.end])


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Disk, bytearray]:
    return build(tmp_path, 7, DiskType.MONOLITHIC_SPARSE, [DiskType.MONOLITHIC_SPARSE] * 3)


def test_small_reads_refuse_what_all_reads_refuse(chain: tuple[Disk, bytearray]) -> None:
    disk, model = chain
    with disk:
        for _ in range(2):  # the second time the window is known
            buffer = bytearray(512)
            disk.read_into(0, buffer)
            assert buffer == model[:512]
            for offset, length in ((-512, 512), (CAPACITY, 1), (CAPACITY - 512, 513)):
                with pytest.raises(OutOfRange):
                    disk.read_into(offset, bytearray(length))
            with pytest.raises(UsageError, match="writable"):
                disk.read_into(0, memoryview(bytes(512)))


def test_small_reads_fill_views_of_any_type(chain: tuple[Disk, bytearray]) -> None:
    disk, model = chain
    with disk:
        for offset in (0, CAPACITY - 4096, 3 << 20):
            for code in ("B", "I", "Q"):
                held = bytearray(4096)
                disk.read_into(offset, memoryview(held).cast(code))
                disk.read_into(offset, memoryview(held).cast(code))
                assert held == model[offset : offset + 4096]


def test_a_damaged_table_hides_only_what_needs_it(tmp_path: Path) -> None:
    disk, model = build(tmp_path, 5, DiskType.MONOLITHIC_SPARSE, [DiskType.MONOLITHIC_SPARSE] * 2)
    disk.close()
    store = FolderStore(tmp_path)
    with open_disk(store, "2.vmdk", writable=True) as leaf:
        leaf.write_from(0, b"x" * GRAIN)
    with (tmp_path / "1.vmdk").open("r+b") as file:
        head = file.read(512)
        (directory,) = struct.unpack_from("<Q", head, 56)
        file.seek(directory * 512)
        file.write(struct.pack("<I", 0xFFFFFF00))
    with open_disk(store, "2.vmdk") as disk:
        for _ in range(2):
            buffer = bytearray(4096)
            disk.read_into(0, buffer)
            assert buffer == b"x" * 4096
            tail = bytearray(4096)
            disk.read_into(4 << 20, tail)
            assert tail == model[4 << 20 : (4 << 20) + 4096]
            with pytest.raises(CorruptDisk):
                disk.read_into(GRAIN, bytearray(4096))
        with pytest.raises(CorruptDisk):
            list(disk.extents())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_closes_the_files_and_ends_small_reads(tmp_path: Path) -> None:
    before = open_files()
    disk, _ = build(tmp_path, 3, DiskType.MONOLITHIC_SPARSE, [DiskType.VMFS_SPARSE])
    read_into = disk.read_into
    read_into(0, bytearray(512))
    assert open_files() > before
    disk.close()
    assert open_files() == before
    for call in (read_into, disk.read_into):
        with pytest.raises(Closed):
            call(0, bytearray(512))


def test_closing_waits_for_small_reads(tmp_path: Path) -> None:
    """Whatever number a closed file had, another file may get it: no read may reach that one."""
    disk, model = build(tmp_path, 9, DiskType.MONOLITHIC_SPARSE, [])
    disk.close()
    (tmp_path / "other").write_bytes(b"\xee" * (1 << 20))
    wrong: list[object] = []

    def hammer(opened: Disk) -> None:
        buffer = bytearray(512)
        try:
            while True:
                opened.read_into(0, buffer)
                if buffer != model[:512]:
                    wrong.append(bytes(buffer[:8]))
        except Closed:
            return
        except BaseException as error:  # noqa: BLE001  told to the main thread
            wrong.append(error)

    for _ in range(30):
        opened = open_disk(FolderStore(tmp_path), "0.vmdk")
        opened.read_into(0, bytearray(512))
        threads = [threading.Thread(target=hammer, args=(opened,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        opened.close()
        reused = [os.open(tmp_path / "other", os.O_RDONLY) for _ in range(4)]
        for thread in threads:
            thread.join()
        for number in reused:
            os.close(number)
    assert wrong == []


def test_a_writable_chain_sees_its_own_writes(tmp_path: Path) -> None:
    disk, model = build(tmp_path, 11, DiskType.MONOLITHIC_FLAT, [DiskType.VMFS_SPARSE] * 3)
    disk.close()
    dice = random.Random(1)
    with open_disk(FolderStore(tmp_path), "3.vmdk", writable=True, durable=False) as disk:
        for _ in range(20):
            change(disk, model, dice)
            at = dice.randrange(CAPACITY - 4096)
            buffer = bytearray(4096)
            disk.read_into(at, buffer)
            assert buffer == model[at : at + 4096]
