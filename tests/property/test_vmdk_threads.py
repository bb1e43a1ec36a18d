"""Many threads write one disk, allocate its grains, clear and flush at once; a model says what is there."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.memory import MemoryStore
from vdkit.block.workers import WorkerScope
from vdkit.vmdk import Disk, DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.check import Verdict, check_disk

SECTOR = 512
SECTORS = 2 * 4096 + 3
CAPACITY = SECTORS * SECTOR
THREADS = 4
KINDS = {
    "monolithicSparse": {"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 4096},
    "split": {"disk_type": DiskType.SPLIT_SPARSE, "grain": 4096, "split": 1 << 20},
    "split flat": {"disk_type": DiskType.SPLIT_FLAT, "split": 1 << 20},
    "sparse child": {"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 4096},
    "split child": {"disk_type": DiskType.SPLIT_SPARSE, "grain": 4096, "split": 1 << 20},
    "COWD child": {"disk_type": DiskType.VMFS_SPARSE, "grain": 4096},
}


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=8)
@given(
    seed=st.integers(0, 1 << 32),
    stripe=st.sampled_from([1, 3, 8, 40]),
    spread=st.sampled_from([300, SECTORS]),
)
def test_threads_see_their_own_writes(kind: str, seed: int, stripe: int, spread: int) -> None:
    """Each thread has its own stripes of sectors, so that all of them want the same grains."""
    store = MemoryStore()
    model = bytearray(CAPACITY)
    if kind.endswith("child"):
        model[:] = random.Random(seed).randbytes(1 << 16) * (CAPACITY >> 16) + model[CAPACITY >> 16 << 16 :]
        with create_disk(store, "base.vmdk", CAPACITY, disk_type=DiskType.VMFS_THIN) as base:
            base.write_from(0, model)
        create_child(store, "base.vmdk", "d.vmdk", **KINDS[kind])
    else:
        create_disk(store, "d.vmdk", CAPACITY, **KINDS[kind]).close()
    barrier = threading.Barrier(THREADS)

    def work(number: int) -> None:
        rnd = random.Random(seed + number)
        barrier.wait()
        for _ in range(40):
            first = rnd.randrange(spread) // stripe // THREADS * stripe * THREADS + number * stripe
            first += rnd.randrange(stripe)
            end = min(SECTORS, (first // stripe + 1) * stripe)
            if first >= end:
                continue
            start, length = first * SECTOR, (rnd.randint(first + 1, end) - first) * SECTOR
            action = rnd.random()
            if action < 0.2:
                disk.write_zeroes(start, length)
                model[start : start + length] = bytes(length)
            elif action < 0.9:
                data = rnd.randbytes(length)
                disk.write_from(start, data)
                model[start : start + length] = data
            elif action < 0.95:
                disk.flush()
            seen = bytearray(length)
            disk.read_into(start, seen)
            assert seen == model[start : start + length]

    with open_disk(store, "d.vmdk", writable=True) as disk:
        with WorkerScope("writers") as scope:
            for number in range(THREADS):
                scope.spawn(lambda number=number: work(number))
        check(disk, model)
    with open_disk(store, "d.vmdk") as disk:
        check(disk, model)
    assert check_disk(store, "d.vmdk").verdict is Verdict.CLEAN


def check(disk: Disk, model: bytearray) -> None:
    seen = bytearray(CAPACITY)
    disk.read_into(0, seen)
    assert seen == model
