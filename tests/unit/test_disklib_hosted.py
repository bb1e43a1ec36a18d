"""Whole local disks through a connection: create, clone, grow, rename, remove, attach, metadata, check."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vdkit.disklib.comparing import compare_disks
from vdkit.disklib.connection import Connection, CreateParams, connect
from vdkit.disklib.constants import AdapterType, DiskType, OpenFlags
from vdkit.disklib.local import convert, describe
from vdkit.errors import (
    AlreadyExists,
    CapacityMismatch,
    CidMismatch,
    Closed,
    CorruptDisk,
    KeyNotFound,
    LimitExceeded,
    NotADisk,
    NotFound,
    NotSupported,
    ReadOnly,
    RootLink,
    UsageError,
    VixError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
MIB = 1 << 20
SECTORS = 16 * MIB // 512
WRITE = OpenFlags.NONE
CREATABLE = [
    DiskType.MONOLITHIC_SPARSE,
    DiskType.MONOLITHIC_FLAT,
    DiskType.SPLIT_SPARSE,
    DiskType.SPLIT_FLAT,
    DiskType.VMFS_FLAT,
    DiskType.VMFS_THIN,
    DiskType.STREAM_OPTIMIZED,
]


@pytest.fixture
def connection() -> Connection:
    return connect()


def content(seed: int, length: int = MIB) -> bytes:
    return random.Random(seed).randbytes(length)


def params(kind: DiskType = DiskType.MONOLITHIC_SPARSE, sectors: int = SECTORS) -> CreateParams:
    return CreateParams(kind, AdapterType.SCSI_BUSLOGIC, 11, sectors)


@pytest.fixture
def disk(connection: Connection, tmp_path: Path) -> Path:
    path = tmp_path / "disk.vmdk"
    connection.create(path, params())
    with connection.open(path, WRITE) as handle:
        handle.write(2048, content(1))
    return path


@pytest.mark.parametrize("kind", CREATABLE, ids=lambda kind: kind.name)
def test_create_every_type(connection: Connection, tmp_path: Path, kind: DiskType) -> None:
    path = tmp_path / "disk.vmdk"
    told: list[tuple[int, int]] = []
    connection.create(path, params(kind), lambda done, total: told.append((done, total)))
    assert told[-1] == (16 * MIB, 16 * MIB)
    with connection.open(path) as handle:
        info = handle.get_info()
        assert (info.capacity_sectors, info.adapter_type) == (SECTORS, AdapterType.SCSI_BUSLOGIC)
        assert handle.read_metadata("virtualHWVersion") == "11"
        assert handle.query_allocated_blocks() == []
    with pytest.raises(AlreadyExists) as caught:
        connection.create(path, params(kind))
    assert caught.value.code.number == 12
    connection.unlink(path)
    assert list(tmp_path.iterdir()) == []


def test_sector_sizes(connection: Connection, tmp_path: Path) -> None:
    for logical, physical in ((512, 4096), (4096, 4096)):
        path = tmp_path / f"{logical}.vmdk"
        wanted = CreateParams(
            DiskType.MONOLITHIC_FLAT,
            capacity_sectors=SECTORS,
            logical_sector_size=logical,
            physical_sector_size=physical,
        )
        connection.create(path, wanted)
        with connection.open(path) as handle:
            info = handle.get_info()
            assert (info.logical_sector_size, info.physical_sector_size) == (logical, physical)
    with pytest.raises(UsageError):
        connection.create(tmp_path / "x.vmdk", CreateParams(capacity_sectors=8, physical_sector_size=1024))
    assert not (tmp_path / "x.vmdk").exists()


@pytest.mark.parametrize(
    ("kind", "sectors", "error", "code"),
    [
        (DiskType.MONOLITHIC_SPARSE, (2 << 40) // 512 + 1, LimitExceeded, 21),
        (DiskType.UNKNOWN, SECTORS, UsageError, 3),
        (DiskType.MONOLITHIC_FLAT, 0, UsageError, 3),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    connection: Connection, tmp_path: Path, kind: DiskType, sectors: int, error: type[VixError], code: int
) -> None:
    with pytest.raises(error) as caught:
        connection.create(tmp_path / "disk.vmdk", params(kind, sectors))
    assert caught.value.code.number == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*CREATABLE, "raw"], ids=str)
def test_clone_to_every_type(
    connection: Connection, disk: Path, tmp_path: Path, kind: DiskType | str
) -> None:
    path = tmp_path / "clone.img"
    wanted = CreateParams(kind, AdapterType.IDE)  # type: ignore[arg-type]
    connection.clone(path, connection, disk, wanted)
    shown = "raw" if kind == "raw" else "vmdk"
    assert compare_disks(disk, path, second_format=shown).same
    with pytest.raises(AlreadyExists):
        connection.clone(path, connection, disk, wanted)
    connection.clone(path, connection, disk, wanted, overwrite=True)
    assert compare_disks(disk, path, second_format=shown).same
    if kind != "raw":
        assert describe(path)["adapter"] == "ide"


def test_a_child_and_its_parent(connection: Connection, disk: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.vmdk"
    with connection.open(disk) as parent:
        connection.create_child(parent, child, DiskType.MONOLITHIC_SPARSE)
        with pytest.raises(NotSupported):
            connection.create_child(parent, tmp_path / "x.vmdk", DiskType.MONOLITHIC_FLAT)
    with connection.open(child, WRITE) as handle:
        info = handle.get_info()
        assert (info.num_links, info.parent_file_name_hint) == (2, "disk.vmdk")
        handle.write(0, content(2, 65536))
        assert handle.read(2048, 2048) == content(1)
    with connection.open(child, OpenFlags.SINGLE_LINK | OpenFlags.READ_ONLY) as alone:
        assert alone.get_info().num_links == 1
        assert [tuple(block) for block in alone.query_allocated_blocks()] == [(0, 128)]
    clone = tmp_path / "clone.raw"
    connection.clone(clone, connection, child, CreateParams("raw"))
    assert clone.read_bytes()[: 2 * MIB] == content(2, 65536) + bytes(MIB - 65536) + content(1)
    assert not (tmp_path / "x.vmdk").exists()


def test_attach(connection: Connection, disk: Path, tmp_path: Path) -> None:
    child, other = tmp_path / "child.vmdk", tmp_path / "elsewhere" / "moved.vmdk"
    other.parent.mkdir()
    with connection.open(disk) as parent:
        connection.create_child(parent, child, DiskType.MONOLITHIC_SPARSE)
    small, stranger = tmp_path / "small.vmdk", tmp_path / "stranger.vmdk"
    connection.create(small, params(sectors=2048))
    connection.create(stranger, params())
    renamed = tmp_path / "renamed.vmdk"
    with pytest.raises(NotSupported, match="parent of"):
        connection.rename(disk, renamed)
    connection.rename(disk, renamed, force=True)
    with connection.open(child, OpenFlags.SINGLE_LINK | OpenFlags.READ_ONLY) as alone:
        for path, kind, code in (
            (small, CapacityMismatch, 16067),
            (stranger, CidMismatch, 16008),
        ):
            with connection.open(path) as parent:
                assert not connection.is_attach_possible(parent, alone)
                with pytest.raises(kind) as caught:
                    connection.check_attach(parent, alone)
                assert caught.value.code.number == code
        with connection.open(renamed) as parent:
            assert connection.is_attach_possible(parent, alone)
            with connection.open(stranger) as base, pytest.raises(RootLink) as refused:
                connection.attach(parent, base)
            assert refused.value.code.number == 16069
            assert parent.closed  # dead afterwards, also on failure
        parent = connection.open(renamed)
        connection.attach(parent, alone)
        with pytest.raises(Closed):
            parent.read(0, 1)
        assert alone.get_info().num_links == 2
        assert alone.read(2048, 2048) == content(1)
    with connection.open(child) as handle:
        assert handle.read(2048, 2048) == content(1)


def test_grow_rename_unlink(connection: Connection, disk: Path, tmp_path: Path) -> None:
    connection.grow(disk, 2 * SECTORS)
    with connection.open(disk) as handle:
        assert handle.get_info().capacity_sectors == 2 * SECTORS
        assert handle.read(2048, 2048) == content(1)
    for sectors in (SECTORS, -1):
        with pytest.raises(UsageError) as caught:
            connection.grow(disk, sectors)
        assert caught.value.code.number == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    moved = folder / "moved.vmdk"
    connection.rename(disk, moved)
    assert not disk.exists()
    with connection.open(moved) as handle:
        assert handle.read(2048, 2048) == content(1)
    connection.unlink(moved)
    assert list(folder.iterdir()) == []
    with pytest.raises(NotFound) as missing:
        connection.unlink(moved)
    assert missing.value.code.number == 4
    moved.write_bytes(b"precious")
    with pytest.raises(NotADisk):
        connection.unlink(moved)
    assert moved.read_bytes() == b"precious"


def test_shrink_and_defragment_keep_the_handle(connection: Connection, disk: Path) -> None:
    with connection.open(disk, WRITE) as handle:
        handle.write(4096, content(5))
        handle.flush()
        handle.write(4096, bytes(MIB))
        handle.flush()
        before = disk.stat().st_size
        handle.shrink()
        assert handle.query_allocated_blocks() == [(2048, 2048)]
        handle.defragment()
        assert handle.read(2048, 2048) == content(1)
        handle.write(0, content(6, 512))
        assert handle.read(0, 1) == content(6, 512)
    assert disk.stat().st_size <= before
    with connection.open(disk) as handle, pytest.raises(ReadOnly):
        handle.shrink()


def test_metadata(connection: Connection, disk: Path) -> None:
    with connection.open(disk, WRITE) as handle:
        assert {"adapterType", "geometry.cylinders", "uuid", "virtualHWVersion"} <= set(
            handle.get_metadata_keys()
        )
        handle.write_metadata("toolsVersion", "12345")
        assert handle.read_metadata("toolsVersion") == "12345"
        with pytest.raises(KeyNotFound) as caught:
            handle.read_metadata("nothing")
        assert caught.value.code.number == 16052
    with connection.open(disk) as handle:
        assert handle.read_metadata("toolsVersion") == "12345"
        with pytest.raises(ReadOnly) as refused:
            handle.write_metadata("toolsVersion", "1")
        assert refused.value.code.number == 11


@pytest.mark.parametrize("kind", CREATABLE, ids=lambda kind: kind.name)
def test_a_clone_takes_no_more_than_was_said(
    connection: Connection, disk: Path, tmp_path: Path, kind: DiskType
) -> None:
    with connection.open(disk) as handle:
        said = handle.space_needed_for_clone(kind)
    folder = tmp_path / "clone"
    folder.mkdir()
    convert(disk, folder / "clone.vmdk", to=kind.vmdk)
    # A thin disk has its full length, but takes no more than it holds.
    thin = kind is DiskType.VMFS_THIN
    taken = [path.stat().st_blocks * 512 if thin else path.stat().st_size for path in folder.iterdir()]
    assert sum(taken) <= said + (4096 if thin else 0)


def test_check_and_repair(connection: Connection, disk: Path) -> None:
    assert connection.check_repair(disk).findings == ()
    with open(disk, "r+b") as file:  # the redundant copy of a grain table, which follows its directory
        file.seek((21 + 1) * 512)
        file.write(b"\xff" * 64)
    with pytest.raises(CorruptDisk) as caught:
        connection.check_repair(disk)
    assert caught.value.code.number == 16006
    connection.check_repair(disk, repair=True)
    assert connection.check_repair(disk).verdict.value == "clean"
    with connection.open(disk) as handle:
        assert handle.read(2048, 2048) == content(1)


def test_a_raw_image_needs_space_too(connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(content(3))
    convert(path, tmp_path / "clone.vmdk", to="monolithicSparse")
    with connection.open(path) as handle:
        said = handle.space_needed_for_clone(DiskType.MONOLITHIC_SPARSE)
        with pytest.raises(NotSupported):
            handle.space_needed_for_clone()
    assert (tmp_path / "clone.vmdk").stat().st_size <= said
