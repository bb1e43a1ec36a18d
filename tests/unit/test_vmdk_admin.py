"""Administration of disks: what each operation does, and what it refuses before it writes anything."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from admintools import (
    SMALL_GRAIN,
    RecordingStore,
    content,
    files_of,
    fill,
    make_flat,
    make_small,
    make_split,
    make_split_flat,
    put_text,
)
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.errors import (
    AlreadyExists,
    Cancelled,
    CapacityMismatch,
    ChainError,
    CidMismatch,
    FileLocked,
    KeyNotFound,
    LimitExceeded,
    NotSupported,
    OutsideStore,
    ParentNotAllowed,
    ReadOnly,
    RootLink,
    UsageError,
    VixError,
)
from vdkit.vmdk import (
    DiskType,
    StreamWriter,
    create_child,
    list_files,
    open_disk,
)
from vdkit.vmdk.admin import (
    attach_disk,
    check_attach,
    defragment_disk,
    grow_disk,
    read_metadata,
    read_metadata_key,
    rename_disk,
    shrink_disk,
    write_metadata,
)

MIB = 1 << 20
GRAIN = 65536


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("m")


def refused(
    store: Store, error: type[VixError], act: Callable[[Store], object], match: str | None = None
) -> None:
    """``act`` fails with ``error`` and has changed nothing."""
    recording = RecordingStore(store)
    with pytest.raises(error, match=match) as caught:
        act(recording)
    assert type(caught.value) is error
    assert recording.steps == []


def edit(store: Store, name: str, old: str, new: str) -> None:
    """Change the text of a descriptor file, or of one inside a disk without moving what follows it."""
    with store.open_writable(name) as file:
        data = bytearray(file.capacity)
        file.read_into(0, data)
        assert old.encode() in data
        at = data.index(old.encode())
        if data[:4] == b"KDMV":
            end = data.index(b"\0", at)
            tail = new.encode() + data[at + len(old) : end]
            file.write_from(at, tail)
        else:
            made = bytes(data).replace(old.encode(), new.encode())
            file.resize(len(made))
            file.write_from(0, made)


# -- growing -------------------------------------------------------------------------------------------


def test_growing_keeps_the_content_id_and_computes_the_geometry(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", 10 * MIB)
    with open_disk(store, "d.vmdk") as disk:
        before = disk.info
    grow_disk(store, "d.vmdk", 30 * MIB, update_geometry=False)
    with open_disk(store, "d.vmdk") as disk:
        assert (disk.info.cid, disk.info.geometry) == (before.cid, before.geometry)
    grow_disk(store, "d.vmdk", 40 * MIB)
    with open_disk(store, "d.vmdk") as disk:
        assert disk.info.cid == before.cid
        assert disk.info.long_content_id == before.long_content_id
        assert disk.info.geometry is not None
        assert (disk.info.geometry.cylinders, disk.info.geometry.heads) == (40, 64)
        header = disk.links[0].header
        assert header is not None
        assert header.capacity == disk.descriptor.sectors == 40 * MIB // 512


def test_what_follows_a_disk_in_its_last_grain_does_not_come_into_view(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", 3 * SMALL_GRAIN + 512)
    fill(store, "d.vmdk", seed=1)
    model = content(store, "d.vmdk")
    with store.open_writable("d.vmdk") as file:
        file.write_from(file.capacity - 512, b"g" * 512)
    for capacity in (4 * SMALL_GRAIN, 3000 * SMALL_GRAIN):
        grow_disk(store, "d.vmdk", capacity)
        assert content(store, "d.vmdk") == model.ljust(capacity, b"\0")
    make_flat(store, "f.vmdk", 512)
    with store.open_writable("f-flat.vmdk") as file:
        file.resize(4096)
        file.write_from(600, b"garbage")
    grow_disk(store, "f.vmdk", 2048)
    assert content(store, "f.vmdk") == bytes(2048)


def test_a_split_disk_fills_its_last_piece_and_then_gets_more(store: MemoryStore) -> None:
    make_split(store, "d.vmdk", [4 * MIB, MIB])
    model = fill(store, "d.vmdk", seed=1)
    grow_disk(store, "d.vmdk", 5 * MIB + 512)
    assert list_files(store, "d.vmdk") == ["d.vmdk", "d-s001.vmdk", "d-s002.vmdk"]
    grow_disk(store, "d.vmdk", 14 * MIB)
    with open_disk(store, "d.vmdk") as disk:
        lines = disk.descriptor.extents
    assert [line.sectors * 512 // MIB for line in lines] == [4, 4, 4, 2]
    assert [line.file_name for line in lines][2:] == ["d-s003.vmdk", "d-s004.vmdk"]
    assert content(store, "d.vmdk") == model.ljust(14 * MIB, b"\0")
    make_split_flat(store, "f.vmdk", [MIB, MIB])
    grow_disk(store, "f.vmdk", 3 * MIB)
    assert list_files(store, "f.vmdk")[-1] == "f-f003.vmdk"
    assert content(store, "f.vmdk") == bytes(3 * MIB)


def test_a_new_piece_never_replaces_a_file(store: MemoryStore) -> None:
    make_split(store, "d.vmdk", [4 * MIB, 4 * MIB])
    put_text(store, "d-s003.vmdk", b"somebody else's")
    refused(store, AlreadyExists, lambda s: grow_disk(s, "d.vmdk", 10 * MIB), "d-s003")


def test_growing_refuses_what_it_cannot_do(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", MIB)
    for capacity in (MIB, 512):
        refused(store, UsageError, lambda s, c=capacity: grow_disk(s, "d.vmdk", c), "already")  # type: ignore[misc]
    refused(store, UsageError, lambda s: grow_disk(s, "d.vmdk", 2 * MIB + 1), "multiple")
    refused(store, LimitExceeded, lambda s: grow_disk(s, "d.vmdk", (2 << 40) + 512), "2 TiB")
    make_flat(store, "f.vmdk", MIB)
    refused(store, LimitExceeded, lambda s: grow_disk(s, "f.vmdk", 63 << 40), "62 TiB")
    with StreamWriter(store, "s.vmdk", MIB) as writer:
        writer.finish()
    refused(store, NotSupported, lambda s: grow_disk(s, "s.vmdk", 2 * MIB), "streamOptimized")


def test_growing_refuses_children_and_parents(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", MIB)
    create_child(store, "d.vmdk", "c.vmdk")
    refused(store, NotSupported, lambda s: grow_disk(s, "c.vmdk", 2 * MIB), "child")
    refused(store, NotSupported, lambda s: grow_disk(s, "d.vmdk", 2 * MIB), r"parent of c\.vmdk")
    grow_disk(store, "d.vmdk", 2 * MIB, force=True)
    with pytest.raises(ChainError):
        open_disk(store, "c.vmdk")


def test_growing_refuses_disks_in_use_tracked_or_unclean(store: MemoryStore) -> None:
    make_flat(store, "d.vmdk", MIB)
    store.make_folder("d.vmdk.lck")
    grow_disk(store, "d.vmdk", 2 * MIB)  # an empty folder is nobody's
    put_text(store, "d.vmdk.lck/M1.lck", b"")
    for act in (lambda s: grow_disk(s, "d.vmdk", 3 * MIB), lambda s: rename_disk(s, "d.vmdk", "e.vmdk")):
        refused(store, FileLocked, act, "d.vmdk.lck")
    make_flat(store, "t.vmdk", MIB)
    edit(store, "t.vmdk", 'createType="mono', 'changeTrackPath="t-ctk.vmdk"\ncreateType="mono')
    refused(store, NotSupported, lambda s: grow_disk(s, "t.vmdk", 3 * MIB), "change tracking")
    make_small(store, "u.vmdk", MIB)
    with store.open_writable("u.vmdk") as file:
        file.write_from(72, b"\1")
    for work in (lambda s: grow_disk(s, "u.vmdk", 3 * MIB), lambda s: shrink_disk(s, "u.vmdk")):
        refused(store, NotSupported, work, "not closed properly")


def test_growing_refuses_damaged_tables(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", MIB)
    fill(store, "d.vmdk", seed=1)
    with open_disk(store, "d.vmdk") as disk:
        header = disk.links[0].header
    assert header is not None
    with store.open_writable("d.vmdk") as file:
        file.write_from((header.redundant_directory + 1) * 512, b"\xff" * 8)
    with pytest.raises(VixError, match="check and repair"):
        grow_disk(store, "d.vmdk", 5 * MIB)
    with pytest.raises(VixError, match="check and repair"):
        grow_disk(store, "d.vmdk", 50 * MIB)


def test_a_cancelled_growth_leaves_the_old_disk(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", 4 * MIB)
    model = fill(store, "d.vmdk", seed=1)
    before = files_of(store)
    token = CancelToken()

    def progress(done: int, total: int) -> None:
        assert 0 < done <= total
        token.cancel()

    with pytest.raises(Cancelled):
        grow_disk(store, "d.vmdk", 400 * MIB, progress=progress, cancel=token)
    assert files_of(store) == before
    assert content(store, "d.vmdk") == model


# -- shrinking, defragmenting ----------------------------------------------------------------------------


def test_shrinking_gives_zero_grains_back(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", 100 * SMALL_GRAIN)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        disk.write_from(0, random.Random(1).randbytes(100 * SMALL_GRAIN))
        cid = disk.info.cid
    with open_disk(store, "d.vmdk", writable=True) as disk:
        disk.write_from(10 * SMALL_GRAIN, bytes(30 * SMALL_GRAIN))
        cid = disk.info.cid
    model = content(store, "d.vmdk")
    result = shrink_disk(store, "d.vmdk")
    assert result.before - result.after == 30 * SMALL_GRAIN
    assert content(store, "d.vmdk") == model
    with open_disk(store, "d.vmdk") as disk:
        assert disk.info.cid == cid


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_a_child_keeps_the_zeroes_that_hide_its_parent(store: MemoryStore, kind: DiskType) -> None:
    size = 64 * SMALL_GRAIN
    make_small(store, "base.vmdk", size)
    with open_disk(store, "base.vmdk", writable=True) as disk:
        disk.write_from(0, b"p" * (size // 2))
    create_child(store, "base.vmdk", "c.vmdk", disk_type=kind, grain=SMALL_GRAIN)
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_from(0, b"c" * size)
        disk.write_from(size // 4, bytes(size // 2))
    model = content(store, "c.vmdk")
    result = shrink_disk(store, "c.vmdk")
    assert content(store, "c.vmdk") == model
    # Half of the zeroes are over the parent's zeroes, and only those are given back.
    assert result.before - result.after == size // 4
    assert model[size // 4 : 3 * size // 4] == bytes(size // 2)


def test_defragmenting_orders_the_grains_and_drops_the_gaps(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", 50 * SMALL_GRAIN)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        for at in (40, 7, 23, 8, 0):
            disk.write_from(at * SMALL_GRAIN, bytes([at + 1]) * SMALL_GRAIN)
            disk.flush()
    model = content(store, "d.vmdk")
    told: list[tuple[int, int]] = []
    result = defragment_disk(store, "d.vmdk", progress=lambda done, total: told.append((done, total)))
    assert result.before == result.after
    assert told[-1] == (50 * SMALL_GRAIN, 50 * SMALL_GRAIN)
    assert content(store, "d.vmdk") == model
    data = files_of(store)["d.vmdk"]
    grains = [data[at] for at in range(len(data) - 5 * SMALL_GRAIN, len(data), SMALL_GRAIN)]
    assert grains == [1, 8, 9, 24, 41]
    recording = RecordingStore(store)
    defragment_disk(recording, "d.vmdk")
    assert recording.steps == []  # in order already


def test_what_cannot_be_shrunk_is_refused_by_name(store: MemoryStore) -> None:
    make_flat(store, "f.vmdk", MIB)
    refused(store, NotSupported, lambda s: shrink_disk(s, "f.vmdk"), "no grains")
    assert defragment_disk(store, "f.vmdk") == (MIB, MIB)
    with StreamWriter(store, "s.vmdk", MIB) as writer:
        writer.finish()
    for act in (shrink_disk, defragment_disk):
        refused(store, NotSupported, lambda s, a=act: a(s, "s.vmdk"), "streamOptimized")  # type: ignore[misc]


# -- renaming --------------------------------------------------------------------------------------------


def test_renaming_takes_all_files_along(store: MemoryStore) -> None:
    make_split(store, "d.vmdk", [4 * MIB, MIB])
    model = fill(store, "d.vmdk", seed=1)
    rename_disk(store, "d.vmdk", "e.vmdk")
    assert store.list() == ["e-s001.vmdk", "e-s002.vmdk", "e.vmdk"]
    assert content(store, "e.vmdk") == model
    store.make_folder("deep")
    rename_disk(store, "e.vmdk", "deep/f.vmdk")
    assert store.list("deep") == ["f-s001.vmdk", "f-s002.vmdk", "f.vmdk"]
    assert content(store, "deep/f.vmdk") == model


def test_renaming_an_embedded_descriptor_takes_its_extent_line_along(store: MemoryStore) -> None:
    make_small(store, "d.vmdk", MIB)
    rename_disk(store, "d.vmdk", "a much longer name.vmdk")
    with open_disk(store, "a much longer name.vmdk") as disk:
        assert disk.descriptor.extents[0].file_name == "a much longer name.vmdk"
    with StreamWriter(store, "s.vmdk", MIB) as writer:
        writer.finish()
    before = files_of(store)["s.vmdk"]
    rename_disk(store, "s.vmdk", "t.vmdk")
    assert files_of(store)["t.vmdk"] == before  # not a byte: a manifest may hold its digest


def test_renaming_takes_the_change_map_along(store: MemoryStore) -> None:
    make_flat(store, "d.vmdk", MIB)
    edit(store, "d.vmdk", 'createType="mono', 'changeTrackPath="d-ctk.vmdk"\ncreateType="mono')
    put_text(store, "d-ctk.vmdk", b"map")
    rename_disk(store, "d.vmdk", "e.vmdk")
    assert store.list() == ["e-ctk.vmdk", "e-flat.vmdk", "e.vmdk"]
    with open_disk(store, "e.vmdk") as disk:
        assert disk.info.change_tracking == "e-ctk.vmdk"


def test_renaming_refuses_what_it_cannot_do(store: MemoryStore) -> None:
    make_flat(store, "d.vmdk", MIB)
    put_text(store, "e-flat.vmdk", b"somebody else's")
    refused(store, AlreadyExists, lambda s: rename_disk(s, "d.vmdk", "e.vmdk"), "e-flat")
    refused(store, AlreadyExists, lambda s: rename_disk(s, "d.vmdk", "d-flat.vmdk"))
    refused(store, UsageError, lambda s: rename_disk(s, "d.vmdk", "d.vmdk"), "already")
    refused(store, UsageError, lambda s: rename_disk(s, "d.vmdk", 'x".vmdk'))
    create_child(store, "d.vmdk", "c.vmdk")
    refused(store, NotSupported, lambda s: rename_disk(s, "d.vmdk", "f.vmdk"), r"parent of c\.vmdk")
    edit(store, "c.vmdk", '"c-delta.vmdk"', '"../c-delta.vmdk"')
    refused(store, OutsideStore, lambda s: rename_disk(s, "c.vmdk", "f.vmdk"))


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_a_child_that_moves_keeps_its_parent(tmp_path: Path, kind: DiskType) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    source, target = FolderStore(tmp_path / "a"), FolderStore(tmp_path / "b")
    make_flat(source, "d.vmdk", MIB)
    fill(source, "d.vmdk", seed=1)
    create_child(source, "d.vmdk", "c.vmdk", disk_type=kind)
    model = fill(source, "c.vmdk", seed=2)
    rename_disk(source, "c.vmdk", "n.vmdk", target_store=target)
    with open_disk(target, "n.vmdk", allow_paths=[str(tmp_path)]) as disk:
        assert disk.info.parent == "../a/d.vmdk"
    assert content(target, "n.vmdk", allow_paths=[str(tmp_path)]) == model
    assert not (tmp_path / "a" / "c.vmdk").exists()
    rename_disk(target, "n.vmdk", "c.vmdk", target_store=source, allow_paths=[str(tmp_path)])
    assert list(tmp_path.joinpath("b").iterdir()) == []
    assert content(source, "c.vmdk") == model


# -- attaching -------------------------------------------------------------------------------------------


def test_attach_finds_every_reason(store: MemoryStore) -> None:
    make_small(store, "base.vmdk", MIB)
    make_small(store, "other.vmdk", 2 * MIB)
    make_small(store, "same size.vmdk", MIB)
    create_child(store, "base.vmdk", "c.vmdk")
    create_child(store, "c.vmdk", "g.vmdk")
    cases = [
        ("other.vmdk", "c.vmdk", CapacityMismatch, 16067),
        ("same size.vmdk", "c.vmdk", CidMismatch, 16008),
        ("same size.vmdk", "base.vmdk", RootLink, 16069),
        ("g.vmdk", "c.vmdk", ParentNotAllowed, 16068),
        ("c.vmdk", "c.vmdk", ParentNotAllowed, 16068),
    ]
    for parent, child, error, code in cases:
        refused(store, error, lambda s, p=parent, c=child: attach_disk(s, p, c))  # type: ignore[misc]
        assert error.code.number == code
    with (
        open_disk(store, "c.vmdk", single_link=True) as above,
        open_disk(store, "g.vmdk", single_link=True) as child,
        pytest.raises(ParentNotAllowed),
    ):
        check_attach(above, child)
    with open_disk(store, "c.vmdk") as above, open_disk(store, "g.vmdk", single_link=True) as child:
        check_attach(above, child)


def test_attach_mends_a_broken_chain_and_forces_only_when_told(store: MemoryStore) -> None:
    make_small(store, "base.vmdk", MIB)
    fill(store, "base.vmdk", seed=1)
    create_child(store, "base.vmdk", "c.vmdk")
    model = fill(store, "c.vmdk", seed=2)
    rename_disk(store, "base.vmdk", "b2.vmdk", force=True)
    assert attach_disk(store, "b2.vmdk", "c.vmdk") == ()
    with open_disk(store, "c.vmdk") as disk:
        assert disk.info.parent == "b2.vmdk"
    assert content(store, "c.vmdk") == model
    with open_disk(store, "b2.vmdk", writable=True) as disk:
        same = bytearray(512)
        disk.read_into(0, same)
        disk.write_from(0, same)  # the bytes are the same, the content id is not
    refused(store, CidMismatch, lambda s: attach_disk(s, "b2.vmdk", "c.vmdk"))
    warnings = attach_disk(store, "b2.vmdk", "c.vmdk", force_cid=True)
    assert len(warnings) == 1
    assert "attached all the same" in warnings[0]
    assert content(store, "c.vmdk") == model


# -- metadata --------------------------------------------------------------------------------------------


def test_metadata_is_looked_up_from_the_leaf_to_the_base(store: MemoryStore) -> None:
    make_small(store, "base.vmdk", MIB)
    create_child(store, "base.vmdk", "c.vmdk")
    with open_disk(store, "c.vmdk", writable=True) as disk:
        assert read_metadata_key(disk, "ADAPTERtype") == "lsilogic"
        write_metadata(disk, "adapterType", "ide")
        found = read_metadata(disk)
        assert found["adapterType"] == "ide"
        assert found["geometry.heads"] == "64"
        assert not any(key.startswith("ddb.") for key in found)
        with pytest.raises(KeyNotFound, match="nothing") as caught:
            read_metadata_key(disk, "nothing")
        assert caught.value.code.number == 16052
    with open_disk(store, "base.vmdk") as disk:
        assert read_metadata_key(disk, "adapterType") == "lsilogic"
        with pytest.raises(ReadOnly):
            write_metadata(disk, "adapterType", "ide")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_writing_metadata_changes_one_line_only(store: MemoryStore, end: str) -> None:
    make_flat(store, "d.vmdk", MIB)
    text = files_of(store)["d.vmdk"].decode()
    text = text.replace("# The Disk", "# a remark\nunknownKey = kept\n# The Disk")
    text = text.replace("ddb.uuid", 'ddb.strange="x"\nddb.uuid').replace("\n", end)
    store.remove("d.vmdk")
    put_text(store, "d.vmdk", text.encode())
    with open_disk(store, "d.vmdk", writable=True) as disk:
        cid = disk.info.cid
        write_metadata(disk, "virtualHWVersion", "21")
        write_metadata(disk, "strange", "a longer value")
        write_metadata(disk, "toolsVersion", "2147483647")
        assert disk.info.cid == cid
    expected = text.replace('HWVersion = "10"', 'HWVersion = "21"').replace('="x"', '="a longer value"')
    expected += f'ddb.toolsVersion = "2147483647"{end}'
    assert files_of(store)["d.vmdk"].decode() == expected


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("comment", 'a"b', UsageError),
        ("comment", "a\nddb.x", UsageError),
        ("comment", "\0", UsageError),
        ("bad key", "x", UsageError),
        ("uuid", "60 00", UsageError),
        ("toolsVersion", "new", UsageError),
        ("geometry.heads", "-1", UsageError),
        ("longContentID", "0" * 32, UsageError),
        ("encoding", "GBK", NotSupported),
        ("comment", "x" * 11000, LimitExceeded),
    ],
)
def test_metadata_that_cannot_be_is_refused(
    store: MemoryStore, key: str, value: str, error: type[VixError]
) -> None:
    make_small(store, "d.vmdk", MIB)
    recording = RecordingStore(store)
    with open_disk(recording, "d.vmdk", writable=True) as disk:
        before = read_metadata(disk)
        with pytest.raises(error):
            write_metadata(disk, key, value)
        assert read_metadata(disk) == before
    assert recording.steps == []
