"""Opening: what a disk is told by, where its names may lead, parents, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.chain import MAX_LINKS
from vdkit.block.local import FolderStore
from vdkit.errors import (
    AlreadyExists,
    ChainError,
    CidMismatch,
    CorruptDisk,
    FormatError,
    LimitExceeded,
    MissingParent,
    NotADisk,
    NotFound,
    NotSupported,
    OutsideStore,
    ReadOnly,
    UsageError,
    VixError,
)
from vdkit.vmdk import DiskType, create_child, create_disk, delete_disk, is_child, list_files, open_disk

MIB = 1 << 20


def made(folder: Path, name: str = "disk.vmdk", kind: DiskType = DiskType.MONOLITHIC_FLAT) -> FolderStore:
    store = FolderStore(folder)
    create_disk(store, name, MIB, disk_type=kind).close()
    return store


def edit(folder: Path, old: str, new: str, name: str = "disk.vmdk") -> None:
    path = folder / name
    text = path.read_bytes()
    assert old.encode() in text
    path.write_bytes(text.replace(old.encode(), new.encode(), 1))


def content(store: FolderStore, name: str, **options: Any) -> bytes:
    with open_disk(store, name, **options) as disk:
        seen = bytearray(disk.capacity)
        disk.read_into(0, seen)
        return bytes(seen)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (bytes(4096), "version line"),
        (os.urandom(64) * 100000, "no VMDK"),
        (b"COWD" + bytes(4092), "descriptor"),
        (b"\xbe\xba\xfe\xca" + bytes(4092), "seSparse"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"kdmv" + bytes(4092), "never finished"),
        (b"KDMV", "cut short"),
        (b"#!/bin/sh\necho version=1\n", "version line"),
    ],
)
def test_nothing_is_taken_for_a_raw_disk(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "disk.vmdk").write_bytes(data)
    with pytest.raises(VixError, match=text) as caught:
        open_disk(FolderStore(tmp_path), "disk.vmdk")
    assert "disk.vmdk" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/etc/passwd", "not in the folder"),
        ("../secret.img", "not in the folder"),
        ("sub/../../secret.img", "not in the folder"),
        ("/dev/sda", "not in the folder"),
        ("..", "not in the folder"),
        ("..\\\\secret.img", "not in the folder"),
        ("http://host/x.img", "URL"),
        ("json:{}", "URL"),
        ("nbd:localhost:10809", "URL"),
        ("link.img", "symbolic link"),
        ("pipe.img", "pipe"),
        ("sub", "folder"),
        ("disk.vmdk", "names itself"),
    ],
)
def test_extent_names_that_lead_elsewhere(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "secret.img").write_bytes(bytes(MIB))
    folder = tmp_path / "disk"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.img").symlink_to(tmp_path / "secret.img")
    os.mkfifo(folder / "pipe.img")
    store = made(folder)
    edit(folder, "disk-flat.vmdk", name)
    with pytest.raises((OutsideStore, FormatError), match=text):
        open_disk(store, "disk.vmdk")
    if text == "not in the folder":
        with pytest.raises(OutsideStore, match="allow_paths"):
            open_disk(store, "disk.vmdk")
        with pytest.raises(OutsideStore):
            delete_disk(store, "disk.vmdk")
    assert (tmp_path / "secret.img").exists()


def test_allowed_folders(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.img").write_bytes(b"d" * MIB)
    folder = tmp_path / "disk"
    folder.mkdir()
    store = made(folder)
    for name in ("../other/data.img", str(tmp_path / "other" / "data.img")):
        edit(folder, "disk-flat.vmdk", name)
        with pytest.raises(OutsideStore):
            open_disk(store, "disk.vmdk", allow_paths=[str(tmp_path / "oth"), str(folder)])
        for allowed in (tmp_path / "other", tmp_path):
            assert content(store, "disk.vmdk", allow_paths=[str(allowed)]) == b"d" * MIB
        edit(folder, name, "disk-flat.vmdk")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("vsanSparse", "vSAN"),
        ("vmfsRawDeviceMap", "raw device mapping"),
        ("vmfsRDM", "raw device mapping"),
        ("vmfsPassthroughRawDeviceMap", "raw device mapping"),
        ("vmfsRDMP", "raw device mapping"),
    ],
)
def test_types_are_refused_by_name(tmp_path: Path, kind: str, text: str) -> None:
    store = made(tmp_path)
    edit(tmp_path, "monolithicFlat", kind)
    with pytest.raises(NotSupported, match=text):
        open_disk(store, "disk.vmdk")


@pytest.mark.parametrize(
    "kind", ["vmfsPreallocated", "vmfsEagerZeroedThick", "vmfsThin", "MONOLITHICFLAT", "custom"]
)
def test_synonyms(tmp_path: Path, kind: str) -> None:
    store = made(tmp_path)
    edit(tmp_path, "monolithicFlat", kind)
    assert content(store, "disk.vmdk") == bytes(MIB)


def test_extents_of_other_kinds(tmp_path: Path) -> None:
    store = made(tmp_path)
    line = 'RW 2048 FLAT "disk-flat.vmdk" 0'
    for other, text in (
        ('RW 2048 VMFSRDM "disk-flat.vmdk"', "raw device mapping"),
        ('RW 2048 VSANSPARSE "vsan://1"', "vSAN object"),
        ('RW 2048 NEWSPARSE "disk-flat.vmdk"', "'NEWSPARSE'"),
        ('RW 2048 SESPARSE "disk-flat.vmdk"', "no sparse extent"),
        ('RW 2048 SPARSE "disk-flat.vmdk"', "no sparse extent"),
        ('NOACCESS 2048 FLAT "disk-flat.vmdk" 0', "NOACCESS"),
        ("RW 2048 FLAT", "needs a file name"),
        ('RW 0 FLAT "disk-flat.vmdk" 0', "empty"),
        ('RW 2049 FLAT "disk-flat.vmdk" 0', "1048576 bytes"),
        ('RW 2048 FLAT "disk-flat.vmdk" 1', "1048576 bytes"),
        ("# nothing", "no extents"),
    ):
        edit(tmp_path, line, other)
        with pytest.raises(VixError, match=text):
            open_disk(store, "disk.vmdk")
        edit(tmp_path, other, line)


def test_pieces_follow_each_other_and_offsets_count(tmp_path: Path) -> None:
    store = made(tmp_path)
    (tmp_path / "disk-flat.vmdk").write_bytes(b"".join(bytes([i]) * 512 for i in range(8)))
    edit(
        tmp_path,
        'RW 2048 FLAT "disk-flat.vmdk" 0',
        'RW 2 FLAT "disk-flat.vmdk" 6\nRW 1 ZERO\n'
        'RW 3 FLAT "disk-flat.vmdk" 1\nRDONLY 1 FLAT "disk-flat.vmdk" 0',
    )
    expected = b"".join(bytes([i]) * 512 for i in (6, 7, 0, 1, 2, 3, 0))
    assert content(store, "disk.vmdk") == expected
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        disk.write_from(100, b"!" * 700)
        with pytest.raises(ReadOnly):
            disk.write_from(6 * 512, b"x")
    assert (tmp_path / "disk-flat.vmdk").read_bytes()[6 * 512 + 100 : 6 * 512 + 800] == b"!" * 700


def test_the_content_id_changes_once_per_opening_and_only_by_writing(tmp_path: Path) -> None:
    for kind in (DiskType.MONOLITHIC_FLAT, DiskType.MONOLITHIC_SPARSE):
        name = f"{kind.value}.vmdk"
        store = made(tmp_path, name, kind)
        with open_disk(store, name, writable=True) as disk:
            first = disk.info.cid
        with open_disk(store, name, writable=True) as disk:
            assert disk.info.cid == first
            disk.write_from(0, b"x")
            second = disk.info.cid
            disk.write_from(512, b"y")
            disk.write_zeroes(1024, 10)
            assert disk.info.cid == second != first
        with open_disk(store, name) as disk:
            assert disk.info.cid == second
            assert disk.info.long_content_id is not None
            assert disk.info.long_content_id.endswith(f"{second:08x}")
    assert not [n for n in store.list() if n.endswith(".new")]


def test_snapshot_chain(tmp_path: Path) -> None:
    store = made(tmp_path, "vm.vmdk", DiskType.VMFS_THIN)
    with open_disk(store, "vm.vmdk", writable=True) as disk:
        disk.write_from(0, b"0" * MIB)
        cid = disk.info.cid
    create_child(store, "vm.vmdk", "vm-000001.vmdk")
    create_child(store, "vm-000001.vmdk", "vm-000002.vmdk")
    with open_disk(store, "vm-000002.vmdk", writable=True) as disk:
        assert disk.info.cid == cid == disk.info.parent_cid
        assert [len(link.files) for link in disk.info.links] == [2, 2, 2]
        assert disk.info.adapter == "lsilogic" and disk.info.thin and disk.info.geometry is not None
        disk.write_from(1000, b"2" * 1000)
        assert disk.info.cid != cid
    assert content(store, "vm-000002.vmdk") == b"0" * 1000 + b"2" * 1000 + b"0" * (MIB - 2000)
    assert content(store, "vm.vmdk") == b"0" * MIB
    with open_disk(store, "vm.vmdk") as disk:
        assert disk.info.cid == cid, "a parent is never touched"
    assert list_files(store, "vm-000001.vmdk") == ["vm-000001.vmdk", "vm-000001-delta.vmdk"]
    assert len(list_files(store, "vm-000002.vmdk", chain=True)) == 6
    assert is_child(store, "vm-000001.vmdk") and not is_child(store, "vm.vmdk")
    with open_disk(store, "vm.vmdk", writable=True) as disk:
        disk.write_from(0, b"changed")
    with pytest.raises(CidMismatch, match=f"{cid:08x}.*vm.vmdk now has"):
        open_disk(store, "vm-000001.vmdk")
    delete_disk(store, "vm-000002.vmdk")
    assert store.list() == ["vm-000001-delta.vmdk", "vm-000001.vmdk", "vm-flat.vmdk", "vm.vmdk"]


def test_parents_that_cannot_be(tmp_path: Path) -> None:
    store = made(tmp_path, "base.vmdk", DiskType.MONOLITHIC_SPARSE)
    create_child(store, "base.vmdk", "child.vmdk")
    # Of its own size, the base cannot be found by its content id.
    edit(tmp_path, "RW 2048 SPARSE", "RW 2047 SPARSE", "base.vmdk")
    hint = 'parentFileNameHint="base.vmdk"'
    for other, error in (
        ('parentFileNameHint="gone.vmdk"', MissingParent),
        ('parentFileNameHint="child.vmdk"', ChainError),
        ('parentFileNameHint="../base/base2.vmdk"', OutsideStore),
        ('parentFileNameHint="/vmfs/volumes/x/base2.vmdk"', OutsideStore),
        ('parentFileNameHint="http://x/base.vmdk"', OutsideStore),
        ('parentFileNameHint=""', MissingParent),
        ('parentFileNameHint="child-delta.vmdk"', NotADisk),
    ):
        edit(tmp_path, hint, other, "child.vmdk")
        with pytest.raises(error):
            open_disk(store, "child.vmdk")
        edit(tmp_path, other, hint, "child.vmdk")
    edit(tmp_path, "RW 2047 SPARSE", "RW 2048 SPARSE", "base.vmdk")
    edit(tmp_path, hint, 'parentFileNameHint="/vmfs/volumes/x/base.vmdk"', "child.vmdk")
    assert content(store, "child.vmdk") == bytes(MIB), "a folder that was moved as a whole still opens"
    create_disk(store, "small.vmdk", MIB // 2, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    with open_disk(store, "small.vmdk") as small:
        cid = small.info.cid
    edit(tmp_path, "/vmfs/volumes/x/base.vmdk", "small.vmdk", "child.vmdk")
    with open_disk(store, "base.vmdk") as base:
        edit(tmp_path, f"parentCID={base.info.cid:08x}", f"parentCID={cid:08x}", "child.vmdk")
    with pytest.raises(ChainError, match="524288"):
        open_disk(store, "child.vmdk")


def test_parent_in_another_folder_must_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "clone").mkdir()
    base = made(tmp_path / "base", "base.vmdk", DiskType.MONOLITHIC_SPARSE)
    clone = FolderStore(tmp_path / "clone")
    create_child(base, "base.vmdk", "c.vmdk", child_store=clone)
    with pytest.raises(OutsideStore, match="allow_paths"):
        open_disk(clone, "c.vmdk")
    assert content(clone, "c.vmdk", allow_paths=[str(tmp_path / "base")]) == bytes(MIB)
    with open_disk(clone, "c.vmdk", single_link=True) as link:
        assert link.info.parent == "../base/base.vmdk"
    with pytest.raises(NotSupported, match="without its parents"):
        open_disk(clone, "c.vmdk", single_link=True, writable=True)


def test_depth_is_limited(tmp_path: Path) -> None:
    store = made(tmp_path, "d0.vmdk", DiskType.MONOLITHIC_SPARSE)
    for i in range(1, MAX_LINKS):
        create_child(store, f"d{i - 1}.vmdk", f"d{i}.vmdk")
    assert content(store, f"d{MAX_LINKS - 1}.vmdk") == bytes(MIB)
    create_child(store, f"d{MAX_LINKS - 1}.vmdk", "last.vmdk")
    with pytest.raises(ChainError, match="more than 64 links"):
        open_disk(store, "last.vmdk")
    edit(tmp_path, 'FileNameHint="d0.vmdk"', 'FileNameHint="d9.vmdk"', "d1.vmdk")
    with pytest.raises(ChainError, match="loop"):
        open_disk(store, "d20.vmdk")


def test_creating_replaces_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "disk-flat.vmdk").write_bytes(b"mine")
    with pytest.raises(AlreadyExists, match="disk-flat"):
        create_disk(store, "disk.vmdk", MIB, disk_type=DiskType.MONOLITHIC_FLAT)
    assert store.list() == ["disk-flat.vmdk"]
    assert (tmp_path / "disk-flat.vmdk").read_bytes() == b"mine"
    for name, capacity, adapter in (("a.vmdk", 100, "ide"), ("a.vmdk", 0, "ide"), ("a.vmdk", MIB, "scsi")):
        with pytest.raises(UsageError):
            create_disk(store, name, capacity, disk_type=DiskType.MONOLITHIC_SPARSE, adapter=adapter)
    for name in ('a".vmdk', "a\nb.vmdk", "../a.vmdk", "/tmp/a.vmdk"):
        with pytest.raises(VixError):
            create_disk(store, name, MIB, disk_type=DiskType.MONOLITHIC_FLAT)
    with pytest.raises(NotFound):
        create_child(store, "gone.vmdk", "c.vmdk")
    assert store.list() == ["disk-flat.vmdk"]
    with pytest.raises(LimitExceeded):
        create_disk(store, "big.vmdk", 3 << 40, disk_type=DiskType.MONOLITHIC_SPARSE)
    create_disk(store, "big.vmdk", 3 << 40, disk_type=DiskType.VMFS_THIN).close()
    with pytest.raises(LimitExceeded, match="vmfsSparse"):
        create_child(store, "big.vmdk", "c.vmdk")
    assert store.list() == ["big-flat.vmdk", "big.vmdk", "disk-flat.vmdk"]


@pytest.mark.parametrize(
    ("size", "adapter", "expected"),
    [
        (MIB * 10, "ide", (20, 16, 63)),
        (200 << 30, "ide", (16383, 16, 63)),
        (2 * MIB, "lsilogic", (2, 64, 32)),
        (1536 * MIB, "buslogic", (768, 128, 32)),
        (8 << 30, "lsilogic", (1044, 255, 63)),
        (1 << 20, "legacyESX", (1, 64, 32)),
    ],
)
def test_geometry(tmp_path: Path, size: int, adapter: str, expected: tuple[int, int, int]) -> None:
    with create_disk(
        FolderStore(tmp_path), "d.vmdk", size, disk_type=DiskType.VMFS_THIN, adapter=adapter
    ) as disk:
        geometry = disk.info.geometry
        assert geometry is not None
        assert (geometry.cylinders, geometry.heads, geometry.sectors) == expected
        assert disk.info.adapter == adapter


def test_tracked_and_encrypted_disks(tmp_path: Path) -> None:
    store = made(tmp_path)
    edit(tmp_path, "# Extent description", 'changeTrackPath="disk-ctk.vmdk"\n\n# Extent description')
    with open_disk(store, "disk.vmdk") as disk:
        assert disk.info.change_tracking == "disk-ctk.vmdk"
    with pytest.raises(NotSupported, match="change tracking"):
        open_disk(store, "disk.vmdk", writable=True)
    open_disk(store, "disk.vmdk", writable=True, keeps_tracking=True).close()
    assert list_files(store, "disk.vmdk") == ["disk.vmdk", "disk-flat.vmdk", "disk-ctk.vmdk"]
    edit(tmp_path, 'changeTrackPath="disk-ctk.vmdk"', 'encryptionKeys="vmware:key/list/x"')
    with pytest.raises(NotSupported, match="encrypted"):
        open_disk(store, "disk.vmdk")


def test_cut_files(tmp_path: Path) -> None:
    """Sparse and COWD files cut anywhere interesting: an error, never other data."""
    store = made(tmp_path, "s.vmdk", DiskType.MONOLITHIC_SPARSE)
    create_child(store, "s.vmdk", "c.vmdk")
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_from(70000, b"c" * 5000)
    with open_disk(store, "s.vmdk", single_link=True) as disk:
        base = bytearray(MIB)
        disk.read_into(0, base)
    whole = content(store, "c.vmdk")
    for name in ("s.vmdk", "c-delta.vmdk"):
        data = (tmp_path / name).read_bytes()
        for cut in sorted(
            {0, 1, 4, 511, 512, 513, 2047, 2048, 2560, len(data) // 2, len(data) - 512, len(data) - 1}
        ):
            (tmp_path / name).write_bytes(data[:cut])
            try:
                assert content(store, "c.vmdk") == whole
            except (CorruptDisk, NotADisk, FormatError) as error:
                assert name.split(".")[0] in str(error)
        (tmp_path / name).write_bytes(data)
