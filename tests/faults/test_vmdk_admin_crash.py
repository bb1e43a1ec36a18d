"""Administration of disks is cut at every write: what is left opens, with all that was in the disk."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from admintools import (
    SMALL_GRAIN,
    content,
    crashes,
    failures,
    files_of,
    fill,
    make_flat,
    make_small,
    make_split,
    make_split_flat,
)
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.vmdk import DiskType, create_child, open_disk
from vdkit.vmdk.admin import AdminResult, defragment_disk, grow_disk, shrink_disk

MIB = 1 << 20
TABLE = 512 * SMALL_GRAIN


def grown_ok(model: bytes, capacity: int) -> Callable[[MemoryStore], None]:
    def check(store: MemoryStore) -> None:
        seen = content(store, "d.vmdk")
        assert len(seen) in (len(model), capacity)
        assert seen == model.ljust(len(seen), b"\0")

    return check


GROWTHS: dict[str, tuple[Callable[[Store], None], int]] = {
    # Two tables become nine: the first grains are in the way.
    "sparse": (lambda store: make_small(store, "d.vmdk", TABLE + 5 * SMALL_GRAIN + 512), 8 * TABLE + 512),
    # The tables stay where they are.
    "sparse in its tables": (
        lambda store: make_small(store, "d.vmdk", 9 * SMALL_GRAIN + 512),
        90 * SMALL_GRAIN,
    ),
    "split": (lambda store: make_split(store, "d.vmdk", [TABLE, 3 * SMALL_GRAIN]), 3 * TABLE + 512),
    "flat": (lambda store: make_flat(store, "d.vmdk", 9 * SMALL_GRAIN), 90 * SMALL_GRAIN),
    "split flat": (
        lambda store: make_split_flat(store, "d.vmdk", [9 * SMALL_GRAIN, SMALL_GRAIN]),
        30 * SMALL_GRAIN + 512,
    ),
}


@pytest.mark.parametrize("kind", GROWTHS)
def test_growing_survives_a_crash_and_can_be_repeated(kind: str) -> None:
    make, capacity = GROWTHS[kind]
    base = MemoryStore("m")
    make(base)
    model = fill(base, "d.vmdk", seed=1)
    ok = grown_ok(model, capacity)

    def check(store: MemoryStore) -> None:
        ok(store)
        if len(content(store, "d.vmdk")) < capacity:
            grow_disk(store, "d.vmdk", capacity)
        assert content(store, "d.vmdk") == model.ljust(capacity, b"\0")

    crashes(files_of(base), lambda store: grow_disk(store, "d.vmdk", capacity), check)


@pytest.mark.parametrize("kind", GROWTHS)
def test_growing_survives_a_failing_store(kind: str) -> None:
    make, capacity = GROWTHS[kind]
    base = MemoryStore("m")
    make(base)
    model = fill(base, "d.vmdk", seed=2)
    failures(
        files_of(base),
        lambda store: grow_disk(store, "d.vmdk", capacity),
        grown_ok(model, capacity),
    )


def zeroed(store: Store, name: str, model: bytes, *, seed: int) -> bytes:
    """Overwrite some grains with zeroes, as data, so that they keep their grains."""
    rnd = random.Random(seed)
    made = bytearray(model)
    with open_disk(store, name, writable=True) as disk:
        for _ in range(12):
            start = rnd.randrange(len(model) // SMALL_GRAIN) * SMALL_GRAIN
            end = min(len(model), start + 4 * SMALL_GRAIN)
            disk.write_from(start, bytes(end - start))
            made[start:end] = bytes(end - start)
    return bytes(made)


def compact_case(kind: str) -> tuple[MemoryStore, bytes]:
    store = MemoryStore("m")
    match kind:
        case "sparse":
            make_small(store, "d.vmdk", 40 * SMALL_GRAIN + 512)
        case "split":
            make_split(store, "d.vmdk", [20 * SMALL_GRAIN, 15 * SMALL_GRAIN + 512])
        case "cowd child" | "sparse child":
            make_small(store, "base.vmdk", 40 * SMALL_GRAIN + 512)
            fill(store, "base.vmdk", seed=4, pieces=10)
            create_child(
                store,
                "base.vmdk",
                "d.vmdk",
                disk_type=DiskType.VMFS_SPARSE if kind == "cowd child" else DiskType.MONOLITHIC_SPARSE,
                grain=SMALL_GRAIN,
            )
        case _:
            raise AssertionError(kind)
    return store, zeroed(store, "d.vmdk", fill(store, "d.vmdk", seed=5), seed=6)


@pytest.mark.parametrize("act", [shrink_disk, defragment_disk])
@pytest.mark.parametrize("kind", ["sparse", "split", "cowd child", "sparse child"])
def test_compacting_survives_crashes_and_failures(
    kind: str, act: Callable[[Store, str], AdminResult]
) -> None:
    base, model = compact_case(kind)
    before = files_of(base)

    def check(store: MemoryStore) -> None:
        assert content(store, "d.vmdk") == model

    seen = 0

    def again(store: MemoryStore) -> None:
        nonlocal seen
        check(store)
        seen += 1
        if seen % 7:
            return
        act(store, "d.vmdk")
        check(store)
        assert set(files_of(store)) == set(before)

    crashes(before, lambda store: act(store, "d.vmdk"), again, lucks=1)
    failures(before, lambda store: act(store, "d.vmdk"), check)
