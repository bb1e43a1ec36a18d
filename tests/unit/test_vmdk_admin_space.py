"""What a clone takes is no more than was said before, and hardly less."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from admintools import files_of, make_flat
from vdkit.block.copy import copy
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import NotSupported
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, list_files, open_disk
from vdkit.vmdk.admin import space_needed

MIB = 1 << 20
GRAIN = 65536


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("m")


UNCOMPRESSED = [
    DiskType.MONOLITHIC_SPARSE,
    DiskType.MONOLITHIC_FLAT,
    DiskType.SPLIT_SPARSE,
    DiskType.SPLIT_FLAT,
    DiskType.VMFS_FLAT,
    DiskType.VMFS_THIN,
]


def source_disk(store: Store, size: int) -> None:
    """Data that no zero test makes smaller: what the map says is what a clone needs."""
    with create_disk(store, "d.vmdk", size, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        rnd = random.Random(size)
        for _ in range(40):
            at = rnd.randrange(size // GRAIN - 4) * GRAIN
            disk.write_from(at, rnd.randbytes(rnd.randrange(1, 4) * GRAIN))
        disk.write_from(size - 512, b"e" * 512)


@pytest.mark.parametrize("kind", UNCOMPRESSED)
def test_a_clone_needs_no_more_than_it_was_said_to(tmp_path: Path, kind: DiskType) -> None:
    store = FolderStore(tmp_path)
    size = 4200 * MIB + 512
    source_disk(store, size)
    with open_disk(store, "d.vmdk") as source:
        needed = space_needed(source, kind)
        with create_disk(store, "clone.vmdk", size, disk_type=kind) as clone:
            copy(source, clone, target_is_zero=True)
    thin = kind is DiskType.VMFS_THIN
    status = [os.stat(tmp_path / name) for name in list_files(store, "clone.vmdk")]  # noqa: PTH116
    real = sum(s.st_blocks * 512 if thin else s.st_size for s in status)
    slack = 2 * 4096 * len(status) if thin else 0  # what a file system rounds up to
    assert real <= needed + slack
    assert needed <= real * 1.02


def test_a_stream_needs_no_more_even_of_noise(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    size = 80 * MIB + 512
    source_disk(store, size)
    with open_disk(store, "d.vmdk") as source:
        needed = space_needed(source, DiskType.STREAM_OPTIMIZED)
        with StreamWriter(store, "s.vmdk", size) as writer:
            copy(source, writer, target_is_zero=True)
            writer.finish()
        assert space_needed(source) == space_needed(source, DiskType.MONOLITHIC_SPARSE)
    assert (tmp_path / "s.vmdk").stat().st_size <= needed
    assert needed <= (tmp_path / "s.vmdk").stat().st_size * 1.02


def test_a_delta_and_a_raw_image(store: MemoryStore) -> None:
    make_flat(store, "d.vmdk", 8 * MIB)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        disk.write_from(0, b"x" * MIB)
    create_child(store, "d.vmdk", "c.vmdk")
    with open_disk(store, "d.vmdk") as disk, open_disk(store, "c.vmdk", writable=True) as child:
        needed = space_needed(disk, DiskType.VMFS_SPARSE)
        copy(disk, child, skip_zeroes=True)
    files = files_of(store)
    real = len(files["c-delta.vmdk"]) + len(files["c.vmdk"])
    assert real <= needed
    with store.open("d-flat.vmdk") as raw:
        assert space_needed(raw, DiskType.MONOLITHIC_FLAT) >= 8 * MIB
        with pytest.raises(NotSupported, match="raw"):
            space_needed(raw)
