"""A repair in place that is killed at any step: it can be undone, and it can be done again."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest

from checktools import (
    CONTENT,
    GRAIN,
    SPARSE_CASES,
    Editor,
    contents,
    files,
    get,
    good_sparse,
    good_stream,
    put,
)
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import NotFound
from vdkit.vmdk.check import check_disk, repair_disk, undo_repair


class Killed(BaseException):
    """Nobody handles this: the process is gone."""


class Fuse:
    """Burns out after ``steps`` changes; the last one is done in part."""

    def __init__(self) -> None:
        self.steps = 10**9

    def __call__(self) -> bool:
        """True if this change is cut in the middle."""
        self.steps -= 1
        if self.steps < 0:
            raise Killed
        return self.steps == 0


class FusedFile:
    """Passes everything on until the fuse has gone."""

    def __init__(self, file: WritableDevice, fuse: Fuse) -> None:
        self._file, self._fuse = file, fuse

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> FusedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write_from(self, offset: int, data: bytes) -> None:
        if self._fuse():
            # Whole sectors reach the disk or do not.
            half = len(data) // 1024 * 512
            self._file.write_from(offset, memoryview(data)[:half])
            raise Killed
        self._file.write_from(offset, data)

    def resize(self, capacity: int) -> None:
        self._fuse()
        self._file.resize(capacity)

    def flush(self) -> None:
        self._fuse()
        self._file.flush()


class FusedStore:
    """A store whose user dies after a number of changes."""

    def __init__(self, store: MemoryStore, fuse: Fuse) -> None:
        self._store, self._fuse = store, fuse

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    @property
    def name(self) -> str:
        return self._store.name

    def open(self, name: str) -> BlockDevice:
        return self._store.open(name)

    def open_writable(self, name: str) -> object:
        return FusedFile(self._store.open_writable(name), self._fuse)

    def create(self, name: str, size: int = 0) -> object:
        self._fuse()
        return FusedFile(self._store.create(name, size), self._fuse)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._fuse()
        self._store.rename(old, new, replace=replace)

    def remove(self, name: str) -> None:
        self._fuse()
        self._store.remove(name)


@functools.cache
def good(maker: Callable[[MemoryStore], None]) -> bytes:
    """Made once: every disk has an id of its own."""
    store = MemoryStore()
    maker(store)
    return get(store, "disk.vmdk")


def sparse(name: str) -> Callable[[], MemoryStore]:
    def make() -> MemoryStore:
        store = MemoryStore()
        put(store, "disk.vmdk", good(good_sparse))
        editor = Editor(store)
        next(case for case in SPARSE_CASES if case.name == name).damage(editor)
        editor.both(9, editor.gte(1))  # a clone too: the file grows
        editor.save()
        return store

    return make


def cut_stream() -> MemoryStore:
    store = MemoryStore()
    data = good(good_stream)
    put(store, "disk.vmdk", data[:-1536] + b"junk" * 1000)
    return store


def shared() -> bytes:
    made = bytearray(CONTENT)
    made[9 * GRAIN : 10 * GRAIN] = made[GRAIN : 2 * GRAIN]
    return bytes(made)


MAKERS = {
    "tables": (sparse("primary table garbage"), shared()),
    "header": (sparse("directory"), shared()),
    "directory": (sparse("directory entry twice"), shared()),
    "stream": (cut_stream, CONTENT),
}


def kill_after(make: Callable[[], MemoryStore], steps: int) -> tuple[MemoryStore, bool]:
    """The store after a repair that was killed, and whether it was."""
    store, fuse = make(), Fuse()
    fuse.steps = steps
    fused: Store = FusedStore(store, fuse)  # type: ignore[assignment]
    try:
        repair_disk(fused, "disk.vmdk", in_place=True)
    except Killed:
        return store, True
    return store, False


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_killed_at_every_step(kind: str) -> None:
    make, model = MAKERS[kind]
    before = files(make())
    for steps in itertools.count():
        store, killed = kill_after(make, steps)
        if store.exists("disk.vmdk.undo"):
            undo_repair(store, "disk.vmdk.undo")
        else:
            assert get(store, "disk.vmdk") == before["disk.vmdk"], (
                "nothing is changed before it can be undone"
            )
            with pytest.raises(NotFound):
                undo_repair(store, "disk.vmdk.undo")
        assert get(store, "disk.vmdk") == before["disk.vmdk"]
        if not killed:
            break
        store, _ = kill_after(make, steps)
        if store.exists("disk.vmdk.undo") and check_disk(store, "disk.vmdk", deep=True).errors == 0:
            continue  # all was written but the word that it was
        repair_disk(store, "disk.vmdk", in_place=True)
        assert contents(store, "disk.vmdk") == model
        assert check_disk(store, "disk.vmdk", deep=True).errors == 0
        undo_repair(store, "disk.vmdk.undo")
        assert files(store) == before
    assert steps > 8


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_an_undo_killed_at_every_step_is_undone_again(kind: str) -> None:
    make, _ = MAKERS[kind]
    before = files(make())
    for steps in itertools.count():
        store, fuse = make(), Fuse()
        repair_disk(store, "disk.vmdk", in_place=True)
        fuse.steps = steps
        fused: Store = FusedStore(store, fuse)  # type: ignore[assignment]
        try:
            undo_repair(fused, "disk.vmdk.undo")
        except Killed:
            undo_repair(store, "disk.vmdk.undo")
            assert files(store) == before
            continue
        assert files(store) == before
        break


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_copy_killed_at_any_step_leaves_the_disk_alone(kind: str) -> None:
    make, model = MAKERS[kind]
    before = files(make())
    for steps in itertools.count():
        store, fuse = make(), Fuse()
        fuse.steps = steps
        fused: Store = FusedStore(store, fuse)  # type: ignore[assignment]
        try:
            repair_disk(fused, "disk.vmdk", target="new.vmdk")
        except Killed:
            assert get(store, "disk.vmdk") == before["disk.vmdk"]
            if store.exists("new.vmdk") and get(store, "new.vmdk")[:4] == b"KDMV":
                assert contents(store, "new.vmdk") == model
            continue
        assert contents(store, "new.vmdk") == model
        break
