"""Finding parents: by hint, beside the child, in allowed folders, by content id; and never anywhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.errors import ChainError, CidMismatch, MissingParent, OutsideStore, VixError
from vdkit.testing.sesparse import GRAIN, write_sesparse
from vdkit.vmdk import DiskType, create_child, create_disk, delete_disk, list_files, open_disk, parents
from vdkit.vmdk.template import Parent

MIB = 1 << 20


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes()
    assert old.encode() in text
    path.write_bytes(text.replace(old.encode(), new.encode(), 1))


def base(folder: Path, name: str = "base.vmdk", byte: bytes = b"b", size: int = MIB) -> int:
    folder.mkdir(exist_ok=True)
    with create_disk(FolderStore(folder), name, size, disk_type=DiskType.VMFS_FLAT) as disk:
        disk.write_from(0, byte * size)
        return disk.info.cid


def child(folder: Path, cid: int, hint: str, name: str = "child.vmdk") -> FolderStore:
    """An seSparse delta that holds the first grain."""
    folder.mkdir(exist_ok=True)
    store = FolderStore(folder)
    write_sesparse(store, name, MIB, {0: b"c" * GRAIN}, parent=Parent(cid, hint), cid=cid ^ 1)
    return store


def seen(store: FolderStore, name: str = "child.vmdk", **options: Any) -> tuple[bytes, tuple[str, ...]]:
    with open_disk(store, name, **options) as disk:
        data = bytearray(disk.capacity)
        disk.read_into(0, data)
        return bytes(data), disk.info.notes


EXPECTED = b"c" * GRAIN + b"b" * (MIB - GRAIN)


@pytest.mark.parametrize(
    ("hint", "noted"),
    [
        ("base.vmdk", False),
        ("./base.vmdk", False),
        ("/vmfs/volumes/ds/vm/base.vmdk", False),
        ("C:\\\\VMs\\\\web\\\\base.vmdk", False),
        ("..\\\\web\\\\base.vmdk", False),
        ("below/base.vmdk", True),
        ("below\\\\base.vmdk", True),
    ],
)
def test_by_its_name_beside_the_child(tmp_path: Path, hint: str, noted: bool) -> None:
    store = child(tmp_path, base(tmp_path), hint.replace("\\\\", "\\"))
    data, notes = seen(store)
    assert data == EXPECTED
    assert [note for note in notes if "beside it" in note] == list(notes) and bool(notes) is noted


@pytest.mark.parametrize("hint", ["gone.vmdk", "/vmfs/volumes/ds/gone.vmdk", "../gone.vmdk", ""])
def test_by_its_content_id_beside_the_child(tmp_path: Path, hint: str) -> None:
    store = child(tmp_path, base(tmp_path, "renamed.vmdk"), hint)
    base(tmp_path, "other.vmdk")
    data, notes = seen(store)
    assert data == EXPECTED
    assert len(notes) == 1 and "renamed.vmdk was found by its content id" in notes[0]


def test_in_allowed_folders_by_name_and_by_content_id(tmp_path: Path) -> None:
    cid = base(tmp_path / "library", "base.vmdk")
    store = child(tmp_path / "clone", cid, "/vmfs/volumes/old/base.vmdk")
    with pytest.raises(OutsideStore, match="allow_paths"):
        open_disk(store, "child.vmdk")
    assert seen(store, allow_paths=[str(tmp_path / "library")])[0] == EXPECTED
    shutil.copytree(tmp_path / "library", tmp_path / "copy")
    with pytest.raises(ChainError, match=r"one of several disks.*library/base.vmdk, .*copy/base.vmdk"):
        open_disk(store, "child.vmdk", allow_paths=[str(tmp_path / "library"), str(tmp_path / "copy")])
    (tmp_path / "copy" / "base.vmdk").rename(tmp_path / "copy" / "other.vmdk")
    data, notes = seen(store, allow_paths=[str(tmp_path / "library"), str(tmp_path / "copy")])
    assert data == EXPECTED and "library/base.vmdk was found" in notes[0], "the name decides between the two"


def test_two_candidates_are_not_chosen_between(tmp_path: Path) -> None:
    cid = base(tmp_path, "a.vmdk")
    shutil.copy(tmp_path / "a.vmdk", tmp_path / "b.vmdk")
    store = child(tmp_path, cid, "gone.vmdk")
    with pytest.raises(
        ChainError, match=r"one of several disks.*a\.vmdk, .*b\.vmdk; correct its parentFileNameHint"
    ):
        open_disk(store, "child.vmdk")
    (tmp_path / "b.vmdk").unlink()
    os.link(tmp_path / "a.vmdk", tmp_path / "b.vmdk")
    assert seen(store)[0] == EXPECTED, "two names of one file are one disk"


def test_the_capacity_must_be_the_same(tmp_path: Path) -> None:
    cid = base(tmp_path, "small.vmdk", size=MIB // 2)
    store = child(tmp_path, cid, "gone.vmdk")
    with pytest.raises(MissingParent, match=r"gone\.vmdk does not exist"):
        open_disk(store, "child.vmdk")


def test_a_hint_that_leads_to_another_disk_is_no_reason_to_search(tmp_path: Path) -> None:
    cid = base(tmp_path, "right.vmdk")
    base(tmp_path, "wrong.vmdk")
    store = child(tmp_path, cid, "wrong.vmdk")
    with pytest.raises(CidMismatch, match=r"wrong\.vmdk"):
        open_disk(store, "child.vmdk")


def test_without_a_hint_or_a_candidate(tmp_path: Path) -> None:
    store = child(tmp_path, base(tmp_path), "base.vmdk")
    edit(tmp_path / "child.vmdk", 'parentFileNameHint="base.vmdk"', "")
    assert seen(store)[0] == EXPECTED
    delete_disk(store, "base.vmdk")
    with pytest.raises(MissingParent, match="does not say where, and no disk nearby"):
        open_disk(store, "child.vmdk")


def test_the_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = child(tmp_path, base(tmp_path, "z.vmdk"), "gone.vmdk")
    monkeypatch.setattr(parents, "MAX_SEARCHED", 3)
    with pytest.raises(MissingParent, match="more than 3 files"):
        open_disk(store, "child.vmdk")


def test_the_search_never_leaves_the_folder(tmp_path: Path) -> None:
    """Links, pipes, folders and damaged files in it are passed over."""
    cid = base(tmp_path / "secret", "base.vmdk")
    store = child(tmp_path / "vm", cid, "gone.vmdk")
    folder = tmp_path / "vm"
    (folder / "link.vmdk").symlink_to(tmp_path / "secret" / "base.vmdk")
    (folder / "loop.vmdk").symlink_to("loop.vmdk")
    (folder / "proc.vmdk").symlink_to("/proc/self/environ")
    (folder / "dir.vmdk").mkdir()
    (folder / "linkdir").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe.vmdk")
    (folder / "noise.vmdk").write_bytes(os.urandom(5000))
    (folder / "empty.vmdk").write_bytes(b"")
    (folder / "broken.vmdk").write_bytes(b"version=1\nwhat is this\n")
    with pytest.raises(MissingParent):
        open_disk(store, "child.vmdk")
    for hint in ("link.vmdk", "linkdir/base.vmdk", "pipe.vmdk", "proc.vmdk"):
        edit(folder / "child.vmdk", "gone.vmdk", hint)
        with pytest.raises(OutsideStore):
            open_disk(store, "child.vmdk")
        edit(folder / "child.vmdk", hint, "gone.vmdk")


@pytest.mark.parametrize("hint", ["http://host/base.vmdk", "json:{}", "nbd:localhost:1", "nfs://x/base.vmdk"])
def test_urls_are_refused_even_where_the_parent_is_near(tmp_path: Path, hint: str) -> None:
    store = child(tmp_path, base(tmp_path), hint)
    with pytest.raises(OutsideStore, match="URL"):
        open_disk(store, "child.vmdk")


def test_loops_by_another_name_of_the_same_file(tmp_path: Path) -> None:
    cid = base(tmp_path)
    store = child(tmp_path, cid, "base.vmdk")
    (tmp_path / "base.vmdk").unlink()
    os.link(tmp_path / "child.vmdk", tmp_path / "base.vmdk")
    with pytest.raises(ChainError, match="loop"):
        open_disk(store, "child.vmdk")
    (tmp_path / "base.vmdk").unlink()
    edit(tmp_path / "child.vmdk", 'Hint="base.vmdk"', 'Hint="./child.vmdk"')
    with pytest.raises(ChainError, match="loop"):
        open_disk(store, "child.vmdk")


def test_a_change_tracking_file_outside_is_refused(tmp_path: Path) -> None:
    base(tmp_path / "vm")
    (tmp_path / "secret").write_bytes(b"mine")
    store = FolderStore(tmp_path / "vm")
    for path in ("../secret", str(tmp_path / "secret"), "/proc/self/environ", "http://host/x"):
        with (tmp_path / "vm" / "base.vmdk").open("a") as file:
            file.write(f'changeTrackPath="{path}"\n')
        for act in (list_files, delete_disk):
            with pytest.raises(OutsideStore):
                act(store, "base.vmdk")
        edit(tmp_path / "vm" / "base.vmdk", f'changeTrackPath="{path}"\n', "")
    assert (tmp_path / "secret").read_bytes() == b"mine"


def test_any_mix_of_types_to_the_base() -> None:
    store = MemoryStore("m")
    content = bytearray(os.urandom(MIB))
    with create_disk(store, "d0.vmdk", MIB, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(0, content)
        cid = disk.info.cid
    kinds = [DiskType.VMFS_SPARSE, None, DiskType.MONOLITHIC_SPARSE, None, DiskType.VMFS_SPARSE]
    for level, kind in enumerate(kinds, 1):
        name, parent = f"d{level}.vmdk", f"d{level - 1}.vmdk"
        part = os.urandom(GRAIN)
        at = 7 * level * GRAIN
        content[at : at + GRAIN] = part
        if kind is None:
            cid, below = level, cid
            write_sesparse(store, name, MIB, {7 * level: part}, parent=Parent(below, parent), cid=cid)
        else:
            create_child(store, parent, name, disk_type=kind)
            with open_disk(store, name, writable=True) as disk:
                disk.write_from(at, part)
                cid = disk.info.cid
    with open_disk(store, "d5.vmdk") as disk:
        data = bytearray(MIB)
        disk.read_into(0, data)
        assert data == content and len(disk.info.links) == 6


def test_a_search_in_a_store_that_is_no_folder() -> None:
    store = MemoryStore("m")
    create_disk(store, "base.vmdk", MIB, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    create_child(store, "base.vmdk", "child.vmdk")
    store.rename("base.vmdk", "moved.vmdk")
    with open_disk(store, "child.vmdk", allow_paths=["/"]) as disk:
        assert "moved.vmdk was found by its content id" in disk.info.notes[0]
    store.remove("moved.vmdk")
    with pytest.raises(VixError):
        open_disk(store, "child.vmdk")
