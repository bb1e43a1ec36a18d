"""Mistakes found in the disk library by reviewing it, each shown to be gone."""

from __future__ import annotations

import fcntl
import gc
import io
import mmap
import os
import random
import struct
import threading
import weakref
import zlib
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import streamlayouts
from vdkit.block import file as block_file
from vdkit.block import merge, punch
from vdkit.block.chain import Chain
from vdkit.block.device import BaseDevice
from vdkit.block.direct import DirectFile, DirectStore, open_file_direct
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.connection import connect
from vdkit.disklib.local import convert
from vdkit.disklib.opening import open_local
from vdkit.disklib.publish import OLD, SUFFIX, PartialStore
from vdkit.errors import Closed, CorruptDisk, StoreError
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.stream_reader import StreamReader

MIB = 1 << 20
SIZE = 2 * MIB + 512


# -- replacing a disk ----------------------------------------------------------------------------------


class Fault:
    """The ``number``-th call that changes a folder fails, or is carried out and then interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *, interrupt: bool) -> None:
        self.calls = 0
        self._number, self._interrupt, self._armed = number, interrupt, False
        for module, name in ((os, "rename"), (os, "fsync"), (os, "unlink"), (punch, "rename_exclusive")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))
        publish = PartialStore.publish

        def watched(store: PartialStore, last: str) -> None:
            self._armed = True
            try:
                publish(store, last)
            finally:
                self._armed = False

        monkeypatch.setattr(PartialStore, "publish", watched)

    def _failing(self, call: Callable[..., None]) -> Callable[..., None]:
        def act(*args: object, **keywords: object) -> None:
            if not self._armed:
                return call(*args, **keywords)
            self.calls += 1
            if self.calls != self._number + 1:
                return call(*args, **keywords)
            if self._interrupt:
                call(*args, **keywords)
                raise KeyboardInterrupt
            raise OSError(5, "injected")

        return act


def content(path: Path) -> bytes:
    with open_local(path) as disk:
        found = bytearray(disk.capacity)
        disk.read_into(0, found)
    return bytes(found)


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("monolithicFlat", "monolithicFlat"),
        ("twoGbMaxExtentFlat", "twoGbMaxExtentFlat"),
        ("monolithicSparse", "monolithicFlat"),
        ("twoGbMaxExtentFlat", "streamOptimized"),
        ("raw", "raw"),
    ],
)
def test_a_failed_replacement_leaves_the_old_disk_or_the_new_one(
    tmp_path: Path, old: str, new: str, interrupt: bool
) -> None:
    """The new data was removed where the last renaming failed once it was done, and the old was gone."""
    for name, seed in (("old.raw", 1), ("new.raw", 2)):
        (tmp_path / name).write_bytes(random.Random(seed).randbytes(SIZE))
    before, after = (tmp_path / "old.raw").read_bytes(), (tmp_path / "new.raw").read_bytes()
    number = deaths = 0
    while True:
        folder = tmp_path / f"turn{number}"
        folder.mkdir()
        target = folder / ("disk.img" if new == "raw" else "disk.vmdk")
        convert(tmp_path / "old.raw", target, to=old, split=MIB if "Gb" in old else None)
        old_names = {path.name for path in folder.iterdir()}
        with pytest.MonkeyPatch.context() as patched:
            fault = Fault(patched, number, interrupt=interrupt)
            try:
                convert(
                    tmp_path / "new.raw", target, to=new, split=MIB if "Gb" in new else None, overwrite=True
                )
            except (StoreError, KeyboardInterrupt):
                deaths += 1
        found = content(target)
        assert found in (before, after)
        if found == before:
            assert {path.name for path in folder.iterdir()} == old_names
        if fault.calls <= number:
            break
        number += 1
    assert deaths > 1
    assert found == after
    assert not [path for path in folder.iterdir() if path.name.endswith((OLD, SUFFIX))]


# -- files ---------------------------------------------------------------------------------------------


def a_chain(folder: Path, base: DiskType = DiskType.MONOLITHIC_SPARSE) -> FolderStore:
    store = FolderStore(folder)
    split = 4 * MIB if base is DiskType.SPLIT_FLAT else None
    with create_disk(store, "a.vmdk", 8 * MIB, disk_type=base, split=split) as disk:
        disk.write_from(0, b"a" * (3 * 65536))
    create_child(store, "a.vmdk", "b.vmdk", disk_type=DiskType.MONOLITHIC_SPARSE)
    return store


def test_a_map_that_is_walked_while_the_disk_is_closed_does_not_hold_the_closing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walker took the open file when the closing had already told everybody to let go of it."""
    disk = open_disk(a_chain(tmp_path), "b.vmdk")
    holding, closing = threading.Event(), threading.Event()
    holders: list[block_file.FileDevice] = []
    hold, close = block_file.FileDevice.hold, block_file.FileDevice._close_descriptor

    def slow_hold(self: block_file.FileDevice, let_go: Callable[[], None]) -> block_file.Descriptor | None:
        held = hold(self, lambda: None)  # as if it had come too late to be told
        holders.append(self)
        holding.set()
        closing.wait(30)
        return held

    def seen_close(self: block_file.FileDevice) -> None:
        if self in holders:
            closing.set()
        close(self)

    monkeypatch.setattr(block_file.FileDevice, "hold", slow_hold)
    monkeypatch.setattr(block_file.FileDevice, "_close_descriptor", seen_close)

    def walk() -> None:
        with suppress(Closed):
            list(disk.layers())

    walker = threading.Thread(target=walk, daemon=True)
    walker.start()
    assert holding.wait(30)
    closer = threading.Thread(target=disk.close, daemon=True)
    closer.start()
    closer.join(30)
    walker.join(30)
    assert not closer.is_alive()
    assert not walker.is_alive()


def test_an_unbuffered_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """The rest of the last block was read again and again."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(8192))
    with open_file_direct(path) as file:
        if not isinstance(file, DirectFile):
            pytest.skip("this file system refuses unbuffered access")
        os.truncate(path, 5000)
        view = memoryview(mmap.mmap(-1, 8192))
        failed: list[Exception] = []

        def read() -> None:
            try:
                file.read_into(0, view)
            except CorruptDisk as error:
                failed.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(30)
        ended = not reader.is_alive()
        os.truncate(path, 0)  # lets even the mistake end
        assert ended
        assert failed


def test_small_reads_of_an_unbuffered_disk_are_unbuffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a window that was known went through the page cache."""
    store = DirectStore(tmp_path)
    a_chain(tmp_path)
    with open_disk(store, "b.vmdk") as disk:
        if store.notes:
            pytest.skip("this file system refuses unbuffered access")
        buffer = bytearray(4096)
        disk.read_into(0, buffer)
        direct: list[bool] = []
        preadv = os.preadv

        def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            if descriptor >= 0:
                direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
            return preadv(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", watched)
        disk.__dict__["read_into"] = _quick(disk._device, lambda at, to: type(disk).read_into(disk, at, to))
        disk.read_into(4096, buffer)
        assert buffer == b"a" * 4096
    assert direct
    assert all(direct)


def _quick(device: object, otherwise: merge.Reader) -> merge.Reader:
    assert isinstance(device, Chain)
    made = device.quick_reader(otherwise)
    assert made is not None
    return made


# -- merged links --------------------------------------------------------------------------------------


def test_the_holes_of_a_split_flat_base_are_holes_of_the_chain(tmp_path: Path) -> None:
    """They were called data, so that they were read and, in a copy to a stream, searched for zeroes."""
    store = a_chain(tmp_path, DiskType.SPLIT_FLAT)
    with open_disk(store, "b.vmdk") as disk:
        kinds = [(extent.offset, extent.kind) for extent in disk.extents()]
    assert kinds == [(0, ExtentKind.DATA), (3 * 65536, ExtentKind.ZERO)]


class Far(BaseDevice):
    """A link of one unit each in very many files, or very far away in one."""

    place_unit = 512
    finer_map = False

    def __init__(self, files: list[MemoryDevice], position: int) -> None:
        super().__init__(name="far", capacity=512 * len(files))
        self._files, self._position = files, position

    def _read_into(self, offset: int, view: memoryview) -> None:
        view[:] = b"l" * len(view)

    def _extents(self, offset: int, length: int) -> list[Extent]:  # type: ignore[override]
        return [Extent(offset, length, ExtentKind.DATA)]

    def placements(self, offset: int, length: int) -> list[merge.Placement]:
        return [
            merge.Placement(at, 512, ExtentKind.DATA, self._files[at // 512], self._position)
            for at in range(offset, offset + length, 512)
        ]


def test_what_lies_farther_than_a_number_can_say_is_read_from_its_link() -> None:
    far = Far([MemoryDevice(512)], 3 << 48)
    merged = merge.merged([far])
    assert merged is not None
    buffer = bytearray(512)
    merged.read_into(0, buffer)
    assert buffer == b"l" * 512


def test_more_files_than_there_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_MAX_SOURCES", 5)
    files = [MemoryDevice(512) for _ in range(16)]
    for file in files:
        file.write_from(0, b"f" * 512)
    merged = merge.merged([Far(files, 0)])
    assert merged is not None
    buffer = bytearray(16 * 512)
    merged.read_into(0, buffer)
    assert buffer == b"f" * (3 * 512) + b"l" * (13 * 512)


def test_windows_are_kept_as_numbers_of_eight_bytes(tmp_path: Path) -> None:
    """As Python's own they took ten times what was reckoned with."""
    with open_disk(a_chain(tmp_path), "b.vmdk") as disk:
        device = disk._device
        assert isinstance(device, Chain)
        assert device._merged is not None
        window = device._merged._window(0)
    assert isinstance(window.starts, array)
    assert isinstance(window.values, array)


# -- streams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", range(9, 16))
@pytest.mark.parametrize("layout", [streamlayouts.front, streamlayouts.behind])
def test_grains_packed_with_a_small_window_come_through_a_pipe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[..., bytes], window: int
) -> None:
    """RFC 1950 allows windows of less than 32 KiB; only reading by the tables took them."""

    def record(number: int, plain: bytes) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, window)
        packed = packer.compress(plain) + packer.flush()
        data = struct.pack("<QI", number * 128, len(packed)) + packed
        return data + bytes(-len(data) % 512)

    monkeypatch.setattr(streamlayouts, "record", record)
    grains = {0: random.Random(2).randbytes(30_000) + bytes(35_536), 5: b"z" * 65536}
    stream = layout(grains, 8 * 128)
    (tmp_path / "disk.vmdk").write_bytes(stream)
    with open_disk(FolderStore(tmp_path), "disk.vmdk") as disk:
        for number, plain in grains.items():
            buffer = bytearray(65536)
            disk.read_into(number * 65536, buffer)
            assert buffer == plain
    assert {at // 65536: bytes(plain) for at, plain in StreamReader(io.BytesIO(stream))} == grains


def test_a_piped_stream_that_is_cut_where_zeroes_follow_is_not_whole() -> None:
    """Where the header puts the tables behind the grains, a zero sector was taken for the end."""
    grains = {number: random.Random(number).randbytes(65536) for number in range(6)}
    stream = bytearray(streamlayouts.behind(grains, 8 * 128))
    stream[56:64] = stream[-1024 + 56 : -1024 + 64]  # the directory's place, from the footer
    assert len(dict(StreamReader(io.BytesIO(stream)))) == 6
    second = 128 * 512
    third = second + len(streamlayouts.record(0, grains[0]))
    cut = bytes(stream[:third]) + bytes(512)
    holed = bytes(stream[:second]) + bytes(third - second) + bytes(stream[third:])
    for damaged in (cut, holed):
        with pytest.raises(CorruptDisk):
            list(StreamReader(io.BytesIO(damaged)))


# -- handles -------------------------------------------------------------------------------------------


def test_waiting_ends_though_others_go_on(tmp_path: Path) -> None:
    """It waited for requests that began later as well: with a busy caller for ever."""
    a_chain(tmp_path)
    with connect() as connection, connection.open(tmp_path / "b.vmdk") as disk:
        second = threading.Event()

        def again(error: object) -> None:
            assert error is None
            if not second.is_set():
                disk.read_async(0, 1, bytearray(512), again)

        disk.read_async(0, 1, bytearray(512), again)
        waiter = threading.Thread(target=disk.wait, daemon=True)
        waiter.start()
        waiter.join(30)
        ended = not waiter.is_alive()
        second.set()
        disk.wait()
    assert ended


def test_a_closed_disk_needs_no_collector(tmp_path: Path) -> None:
    """Thousands of opened and closed disks took memory until the collector came round."""
    store = a_chain(tmp_path)
    gc.collect()
    gc.disable()
    try:
        disk = open_disk(store, "b.vmdk")
        disk.read_into(0, bytearray(512))
        list(disk.extents())
        disk.close()
        gone = weakref.ref(disk)
        del disk
        assert gone() is None
    finally:
        gc.enable()
