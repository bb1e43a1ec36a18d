"""Renaming and moving disks, attaching parents and writing metadata are cut at every write."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from admintools import (
    SMALL_GRAIN,
    RecordingStore,
    Refused,
    Step,
    after_crash,
    content,
    crashes,
    failures,
    files_of,
    fill,
    make_flat,
    make_small,
    make_split,
    make_split_flat,
    store_of,
)
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import VixError
from vdkit.vmdk import DiskType, create_child, open_disk
from vdkit.vmdk.admin import attach_disk, read_metadata_key, rename_disk, write_metadata

KINDS: dict[str, Callable[[Store], None]] = {
    "sparse": lambda store: make_small(store, "d.vmdk", 20 * SMALL_GRAIN),
    "flat": lambda store: make_flat(store, "d.vmdk", 9 * SMALL_GRAIN),
    "split of two": lambda store: make_split(store, "d.vmdk", [9 * SMALL_GRAIN, 3 * SMALL_GRAIN]),
    "split of three": lambda store: make_split_flat(store, "d.vmdk", [SMALL_GRAIN] * 3),
}


def either(store: Store, model: bytes, *names: str) -> list[str]:
    """The names that open; at least one, and each with all the content."""
    opened = []
    for name in names:
        try:
            seen = content(store, name)
        except VixError:
            continue
        assert seen == model
        opened.append(name)
    assert opened
    return opened


@pytest.mark.parametrize("new", ["e.vmdk", "longer-name.vmdk"])
@pytest.mark.parametrize("kind", KINDS)
def test_renaming_survives_crashes_and_failures(kind: str, new: str) -> None:
    base = MemoryStore("m")
    KINDS[kind](base)
    model = fill(base, "d.vmdk", seed=1, pieces=10)
    before = files_of(base)

    def act(store: Store) -> None:
        rename_disk(store, "d.vmdk", new)

    crashes(before, act, lambda store: either(store, model, "d.vmdk", new))

    def rolled_back(store: MemoryStore) -> None:
        opened = either(store, model, "d.vmdk", new)
        if kind != "sparse" and "d.vmdk" in opened and new not in opened:
            assert set(files_of(store)) == set(before)

    failures(before, act, rolled_back)


def test_a_move_between_folders_is_never_without_a_disk(tmp_path: Path) -> None:
    """The files are on a real file system; what is checked is the state behind every step."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    setup = FolderStore(tmp_path / "a")
    make_split(setup, "d.vmdk", [9 * SMALL_GRAIN] * 3)
    model = fill(setup, "d.vmdk", seed=1, pieces=10)
    allowed = [str(tmp_path)]
    looked = 0

    class Watching(FolderStore):
        def rename(self, old: str, new: str, *, replace: bool = False) -> None:
            look()
            super().rename(old, new, replace=replace)
            look()

    def look() -> None:
        nonlocal looked
        looked += 1
        opened = 0
        for folder, name in (("a", "d.vmdk"), ("b", "e.vmdk")):
            try:
                assert content(FolderStore(tmp_path / folder), name, allow_paths=allowed) == model
            except VixError:
                continue
            opened += 1
        assert opened

    source, target = Watching(tmp_path / "a"), Watching(tmp_path / "b")
    rename_disk(source, "d.vmdk", "e.vmdk", target_store=target)
    look()
    assert looked > 4
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "e-s001.vmdk",
        "e-s002.vmdk",
        "e-s003.vmdk",
        "e.vmdk",
    ]
    assert list((tmp_path / "a").iterdir()) == []
    assert content(FolderStore(tmp_path / "b"), "e.vmdk") == model


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_to_another_store_leaves_the_old_disk_until_the_new_one_is_there(kind: str) -> None:
    base = MemoryStore("m")
    KINDS[kind](base)
    model = fill(base, "d.vmdk", seed=3, pieces=10)
    before = files_of(base)
    at = 0
    while True:
        source, target = store_of(before), MemoryStore("other")
        try:
            rename_disk(source, "d.vmdk", "e.vmdk", target_store=RecordingStore(target, fails_at=at))
        except Refused:
            assert content(source, "d.vmdk") == model
            assert files_of(target) == {}
            at += 1
            continue
        break
    assert at > 4
    assert content(target, "e.vmdk") == model
    assert files_of(source) == {}


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_an_attach_is_all_or_nothing(kind: DiskType) -> None:
    new = "a-much-longer-name-for-the-same-base.vmdk"
    base = MemoryStore("m")
    make_small(base, "base.vmdk", 20 * SMALL_GRAIN)
    fill(base, "base.vmdk", seed=1)
    create_child(base, "base.vmdk", "child.vmdk", disk_type=kind)
    model = fill(base, "child.vmdk", seed=2)
    rename_disk(base, "base.vmdk", new, force=True)

    def check(store: MemoryStore) -> None:
        with open_disk(store, "child.vmdk", single_link=True) as child:
            hint = child.descriptor.parent_hint
        assert hint in ("base.vmdk", new)
        if hint != new:
            attach_disk(store, new, "child.vmdk")
        assert content(store, "child.vmdk") == model

    crashes(files_of(base), lambda store: attach_disk(store, new, "child.vmdk"), check)


@pytest.mark.parametrize("length", [3, 300, 3000])
def test_metadata_of_an_embedded_descriptor_is_all_or_nothing(length: int) -> None:
    base = MemoryStore("m")
    make_small(base, "d.vmdk", 20 * SMALL_GRAIN)
    model = fill(base, "d.vmdk", seed=1)
    before = files_of(base)
    value = "x" * length

    def act(store: Store) -> None:
        with open_disk(store, "d.vmdk", writable=True) as disk:
            write_metadata(disk, "comment", value)

    def check(store: MemoryStore) -> None:
        assert content(store, "d.vmdk") == model
        with open_disk(store, "d.vmdk", writable=True) as disk:
            assert disk.descriptor.get("ddb.comment") in (None, value)
            write_metadata(disk, "comment", "after the crash")
            assert read_metadata_key(disk, "comment") == "after the crash"
        with open_disk(store, "d.vmdk") as disk:
            assert read_metadata_key(disk, "comment") == "after the crash"
            header = disk.links[0].header
            assert header is not None
            assert (header.descriptor, header.descriptor_sectors) == (1, 20)
        assert content(store, "d.vmdk") == model

    crashes(before, act, check, lucks=8)


def test_the_replay_keeps_what_was_flushed_and_tears_the_rest() -> None:
    """The witness of these tests can itself be told from one that keeps everything."""
    steps = [
        Step("create", "a", 4096),
        Step("write", "a", 0, b"f" * 512),
        Step("flush", "a"),
        Step("write", "a", 0, b"x" * 4096),
    ]
    seen = {files_of(after_crash({}, steps, random.Random(n)))["a"] for n in range(20)}
    assert len(seen) > 10
    assert files_of(after_crash({}, steps[:3], random.Random(1)))["a"] == b"f" * 512 + bytes(3584)
