"""Local files: what must be refused, what must not hang, what the kernel may do to us."""

from __future__ import annotations

import os
import resource
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdkit.block import punch
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore, open_file
from vdkit.errors import (
    AccessDenied,
    AlreadyExists,
    CorruptDisk,
    DiskFull,
    NotFound,
    NotSupported,
    OutsideStore,
    ReadOnly,
    StoreError,
    UsageError,
)
from vdkit.testing.devices import read

DATA, ZERO = ExtentKind.DATA, ExtentKind.ZERO


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"outside")
    return FolderStore(tmp_path / "in")


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.fixture
def file_limit() -> Iterator[int]:
    """A file must not grow beyond this: the kernel's way to a full disk without one."""
    limit = 1_000_000
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_symbolic_links_lead_nowhere(store: FolderStore) -> None:
    inside = Path(store.name)
    (inside / "link").symlink_to("../secret")
    (inside / "folder").symlink_to("../outside")
    (inside / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling", "folder", "folder/file"):
        for call in (store.open, store.open_writable, store.exists, store.remove):
            with pytest.raises(OutsideStore, match=name.split("/")[0]):
                call(name)
    with pytest.raises(OutsideStore):
        store.create("folder/new")
    with pytest.raises(AlreadyExists):
        store.create("dangling")
    with pytest.raises(OutsideStore):
        store.list("folder")
    with pytest.raises(OutsideStore):
        store.substore("folder")
    with pytest.raises(OutsideStore):
        store.make_folder("folder/x")
    with pytest.raises(OutsideStore):
        store.rename("link", "b")
    with pytest.raises(OutsideStore):
        store.rename("link", "b", replace=True)
    assert store.list() == [], "what cannot be opened is not listed"
    assert not (inside / "nowhere").exists()
    assert (inside.parent / "secret").read_bytes() == b"secret"


def test_a_folder_swapped_for_a_link_behind_a_substore(store: FolderStore) -> None:
    store.make_folder("vm")
    inner = store.substore("vm")
    inside = Path(store.name)
    (inside / "vm").rmdir()
    (inside / "vm").symlink_to("../outside")
    with pytest.raises(OutsideStore):
        inner.open("file")


def test_pipes_and_sockets_are_refused_without_hanging(store: FolderStore) -> None:
    inside = Path(store.name)
    os.mkfifo(inside / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(inside)  # the path of a socket has a short limit
        listener.bind("socket")
        for name in ("pipe", "socket"):
            for call in (store.open, store.open_writable, store.exists, store.remove):
                with pytest.raises(OutsideStore):
                    call(name)
    with pytest.raises(UsageError, match="pipe"):
        open_file(inside / "pipe")
    with pytest.raises(UsageError, match="folder"):
        open_file(inside)
    with pytest.raises(UsageError, match="device"):
        open_file("/dev/zero")


def test_the_users_own_path_may_be_a_link(store: FolderStore) -> None:
    link = Path(store.name).parent / "way"
    link.symlink_to("in")
    FolderStore(link).create("a", 3).close()
    with open_file(link / "a") as device:
        assert device.capacity == 3
        assert device.sector_size == 512
        with pytest.raises(ReadOnly):
            device.write_from(0, b"x")


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        FolderStore(tmp_path / "no")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFound):
        FolderStore(tmp_path / "file")
    with pytest.raises(NotFound, match="no"):
        open_file(tmp_path / "no")


def test_new_files_are_private(store: FolderStore) -> None:
    store.create("a").close()
    store.make_folder("f")
    assert stat.S_IMODE((Path(store.name) / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE((Path(store.name) / "f").stat().st_mode) == 0o700


def test_a_full_disk(store: FolderStore, file_limit: int) -> None:
    with store.create("a", 0) as device:
        device.resize(file_limit)
        device.write_from(0, bytes(file_limit))
        with pytest.raises(DiskFull, match="in/a"):
            device.resize(2 * file_limit)
        assert device.capacity == file_limit
    with pytest.raises(DiskFull):
        store.create("b", 2 * file_limit)
    assert not store.exists("b"), "what could not be made is not left behind"


def test_a_disk_that_fills_within_a_write(store: FolderStore, file_limit: int) -> None:
    with store.create("a", file_limit) as device:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, old[1]))
        with pytest.raises(DiskFull, match="offset 500000"):
            device.write_many([(0, b"x" * 300_000), (300_000, b"y" * 300_000)])


def test_a_file_cut_short_behind_our_back(store: FolderStore) -> None:
    with store.create("a", 10_000) as device:
        device.write_from(0, b"x" * 10_000)
        os.truncate(device.name, 4_000)
        with pytest.raises(CorruptDisk, match=r"in/a.*offset 4000"):
            read(device, 3_000, 2_000)
        with pytest.raises(CorruptDisk, match="in/a"):
            list(device.extents())
        assert read(device, 3_000, 1_000) == b"x" * 1_000


def test_maps_and_holes(store: FolderStore) -> None:
    with store.create("a", 10 << 20) as device:
        assert list(device.extents()) == [Extent(0, 10 << 20, ZERO)]
        device.write_from(0, b"x" * (10 << 20))
        device.flush()
        before = Path(device.name).stat().st_blocks
        device.write_zeroes(1_000_000, 5_000_000)
        assert read(device, 999_999, 5_000_002) == b"x" + bytes(5_000_000) + b"x"
        assert Path(device.name).stat().st_blocks < before - 9000
        assert [e.kind for e in device.extents()] == [DATA, ZERO, DATA]


def test_zeroes_where_no_hole_can_be_punched(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punch, "punch_hole", lambda *_: False)
    with store.create("a", 3 << 20) as device:
        device.write_from(0, b"x" * (3 << 20))
        device.write_zeroes(5, 2 << 20)
        assert read(device, 0, 3 << 20) == b"xxxxx".ljust(5 + (2 << 20), b"\0").ljust(3 << 20, b"x")


def test_many_runs_in_one_map(store: FolderStore) -> None:
    with store.create("a", 600 * 128 * 1024) as device:
        for i in range(600):
            device.write_from(i * 128 * 1024, b"x")
        runs = list(device.extents())
        assert sum(r.kind is DATA for r in runs) == 600
        assert sum(r.length for r in runs) == device.capacity


def test_a_map_being_walked_when_closed(store: FolderStore) -> None:
    device = store.create("a", 600 * 128 * 1024)
    for i in range(600):
        device.write_from(i * 128 * 1024, b"x")
    walk = device.extents()
    next(walk)
    device.close()
    with pytest.raises(UsageError, match="closed"):
        list(walk)


def test_many_pieces_in_one_call(store: FolderStore) -> None:
    with store.create("a", 5_000) as device:
        device.write_many([(i, bytes([i % 256])) for i in range(5_000)])
        buffers = [(i, bytearray(1)) for i in range(5_000)]
        device.read_many(buffers)
        assert b"".join(b for _, b in buffers) == bytes(i % 256 for i in range(5_000))


def test_rename_without_the_system_call(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punch, "_libc", lambda: object())
    store.create("a", 1).close()
    store.create("b", 2).close()
    with pytest.raises(AlreadyExists):
        store.rename("a", "b")
    store.rename("a", "c")
    assert store.list() == ["b", "c"]
    assert not punch.punch_hole(-1, 0, 1)


def test_one_of_many_renames_wins(store: FolderStore) -> None:
    for i in range(8):
        store.create(f"n{i}", i).close()
    won: list[int] = []

    def work(number: int) -> None:
        try:
            store.rename(f"n{number}", "point")
        except AlreadyExists:
            return
        won.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (Path(store.name) / "point").stat().st_size == won[0]


def test_what_the_kernel_refuses_is_named(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise OSError(5, "Input/output error")

    with store.create("a", 100) as device:
        for name, call in (
            ("preadv", lambda: read(device, 0, 10)),
            ("pwritev", lambda: device.write_from(0, b"x")),
            ("fdatasync", device.flush),
            ("ftruncate", lambda: device.resize(5)),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, broken)
                with pytest.raises(StoreError, match=r"in/a.*Input/output error"):
                    call()
        monkeypatch.setattr(os, "pwritev", lambda *_: 0)
        with pytest.raises(StoreError, match="no progress"):
            device.write_from(0, b"x")
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(AccessDenied):
        open_file(store.name + "/a")


def test_a_block_device_has_a_fixed_size(store: FolderStore) -> None:
    from vdkit.block.file import FileDevice

    store.create("a", 4096).close()
    descriptor = os.open(store.name + "/a", os.O_RDWR)
    with FileDevice(descriptor, name="sdx", capacity=4096, writable=True, is_file=False) as device:
        assert list(device.extents()) == [Extent(0, 4096, DATA)]
        with pytest.raises(NotSupported):
            device.resize(8192)
        device.write_from(0, b"x" * 4096)
        device.write_zeroes(0, 4096)
        assert read(device, 0, 4096) == bytes(4096)


def test_a_file_that_takes_the_place_of_another_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "disk").write_bytes(b"old")
    (tmp_path / "disk").chmod(0o664)
    if os.geteuid() == 0:
        os.chown(tmp_path / "disk", 12345, 54321)
    before = (tmp_path / "disk").stat()
    store.create("new", 3).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    store.rename("new", "disk", replace=True)
    after = (tmp_path / "disk").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
