"""Handles in VixDiskLib's shape: sectors, completions, threads, error codes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdkit.block.memory import MemoryDevice
from vdkit.block.wrappers import Fault, Faults
from vdkit.disklib.connection import connect
from vdkit.disklib.constants import (
    MAX_CHUNK_SIZE,
    AdapterType,
    DiskType,
    HwVersion,
    OpenFlags,
)
from vdkit.disklib.handle import Block, DiskHandle
from vdkit.disklib.local import convert
from vdkit.disklib.modes import list_transport_modes
from vdkit.errors import (
    Cancelled,
    Closed,
    NotSupported,
    OutOfRange,
    ReadOnly,
    StoreError,
    UsageError,
    VixError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
MIB = 1 << 20
WRITE = OpenFlags.NONE


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """16 MiB; the first MiB, and 64 KiB at 8 MiB, hold something."""
    raw = tmp_path / "source.raw"
    with open(raw, "wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.seek(8 * MIB)
        file.write(random.Random(2).randbytes(65536))
        file.truncate(16 * MIB)
    path = tmp_path / "disk.vmdk"
    convert(raw, path, to="monolithicSparse")
    return path


@pytest.fixture
def handle(sparse: Path) -> Iterator[DiskHandle]:
    with connect() as connection, connection.open(sparse, WRITE) as disk:
        yield disk


def test_sectors_are_read_and_written(handle: DiskHandle) -> None:
    content = random.Random(1).randbytes(MIB)
    assert handle.read(3, 2) == content[1536:2560]
    buffer = bytearray(4096)
    view = handle.read(0, 4, buffer)
    assert (len(view), bytes(buffer[:2048]), bytes(buffer[2048:])) == (2048, content[:2048], bytes(2048))
    handle.write(16384, b"\x5a" * 1024)
    handle.flush()
    assert handle.read(16383, 3) == bytes(512) + b"\x5a" * 1024


def test_requests_overlap_and_complete(handle: DiskHandle) -> None:
    results: list[VixError | None] = []
    blocks = {sector: random.Random(sector).randbytes(65536) for sector in range(0, 16384, 256)}
    for sector, data in blocks.items():
        handle.write_async(sector, data, results.append)
    handle.wait()
    assert results == [None] * len(blocks)
    found = {sector: bytearray(65536) for sector in blocks}
    for sector, buffer in found.items():
        handle.read_async(sector, 128, buffer, results.append)
    handle.wait()
    assert {sector: bytes(buffer) for sector, buffer in found.items()} == blocks
    assert results == [None] * (2 * len(blocks))


def test_a_completion_may_begin_the_next_request(handle: DiskHandle) -> None:
    order: list[int] = []
    done = threading.Event()

    def following(result: VixError | None) -> None:
        assert result is None
        order.append(len(order))
        if len(order) < 200:
            handle.read_async(len(order), 1, bytearray(512), following)
        else:
            done.set()

    handle.read_async(0, 1, bytearray(512), following)
    assert done.wait(60)
    handle.wait()
    assert order == list(range(200))


def failing(reads: bool) -> DiskHandle:
    plan = [Fault("read" if reads else "write", lambda: StoreError("the cable fell out"))]
    return DiskHandle(Faults(MemoryDevice(MIB), plan), "file", "faulty")


@pytest.mark.parametrize("reads", [True, False])
def test_an_error_is_delivered_as_it_is(reads: bool) -> None:
    told: list[VixError | None] = []
    with failing(reads) as disk:
        for _ in range(8):
            if reads:
                disk.read_async(0, 1, bytearray(512), told.append)
            else:
                disk.write_async(0, bytes(512), told.append)
        disk.wait()  # nothing is left to raise: the completions were told
    assert len(told) == 8
    for error in told:
        assert isinstance(error, StoreError)
        assert not isinstance(error, Cancelled)
        assert error.code.number == 7


def test_an_error_without_a_completion_is_raised_by_wait_flush_or_close() -> None:
    disk = failing(reads=True)
    disk.read_async(0, 1, bytearray(512))
    with pytest.raises(StoreError, match="cable"):
        disk.wait()
    disk.wait()
    disk.read_async(0, 1, bytearray(512))
    with pytest.raises(StoreError, match="cable"):
        disk.flush()
    disk.read_async(0, 1, bytearray(512))
    with pytest.raises(StoreError, match="cable"):
        disk.close()
    disk.close()


def test_what_a_completion_raises_is_not_lost(handle: DiskHandle) -> None:
    def wrong(result: VixError | None) -> None:
        raise ZeroDivisionError

    handle.read_async(0, 1, bytearray(512), wrong)
    with pytest.raises(ZeroDivisionError):
        handle.wait()
    handle.wait()


def test_a_completion_must_not_wait_for_itself(handle: DiskHandle) -> None:
    caught: list[BaseException] = []

    def waiting(result: VixError | None) -> None:
        for act in (handle.wait, handle.flush, handle.close):
            try:
                act()
            except UsageError as error:
                caught.append(error)

    handle.read_async(0, 1, bytearray(512), waiting)
    handle.wait()
    assert len(caught) == 3
    assert not handle.closed


@pytest.mark.parametrize(
    ("act", "kind", "code"),
    [
        (lambda d: d.read(32768, 1), OutOfRange, 16007),
        (lambda d: d.read(-1, 1), OutOfRange, 16007),
        (lambda d: d.read_async(32767, 2, bytearray(1024)), OutOfRange, 16007),
        (lambda d: d.write(32768, bytes(512)), OutOfRange, 16007),
        (lambda d: d.write(0, bytes(100)), UsageError, 3),
        (lambda d: d.write_async(0, bytes(513)), UsageError, 3),
        (lambda d: d.read(0, 2, bytearray(512)), UsageError, 3),
        (lambda d: d.read(0, 1, memoryview(bytes(512))), UsageError, 3),
        (lambda d: d.query_allocated_blocks(0, 128, 127), UsageError, 3),
        (lambda d: d.query_allocated_blocks(0, 128, MAX_CHUNK_SIZE + 1), UsageError, 3),
        (lambda d: d.query_allocated_blocks(32769, 1), UsageError, 3),
        (lambda d: d.query_allocated_blocks(-128, 128), UsageError, 3),
    ],
)
def test_argument_errors_have_their_codes(
    handle: DiskHandle, act: object, kind: type[VixError], code: int
) -> None:
    with pytest.raises(kind) as caught:
        act(handle)  # type: ignore[operator]
    assert (type(caught.value), caught.value.code.number) == (kind, code)
    handle.wait()


def test_a_closed_handle_says_so(sparse: Path) -> None:
    with connect() as connection:
        disk = connection.open(sparse)
        disk.close()
        disk.close()
        for act in (
            lambda: disk.read(0, 1),
            lambda: disk.read_async(0, 1, bytearray(512)),
            disk.get_info,
            disk.query_allocated_blocks,
            disk.flush,
        ):
            with pytest.raises(Closed) as caught:
                act()
            assert caught.value.code.number == 1000
    with pytest.raises(Closed):
        connection.open(sparse)
    with pytest.raises(Closed):
        connection.unlink(sparse)


def test_read_only_is_the_flag_and_the_default(sparse: Path) -> None:
    with connect() as connection:
        for options in ({}, {"flags": OpenFlags.READ_ONLY}):
            with connection.open(sparse, **options) as disk:
                assert not disk.writable
                with pytest.raises(ReadOnly) as caught:
                    disk.write(0, bytes(512))
                assert caught.value.code.number == 11
                with pytest.raises(ReadOnly):
                    disk.write_async(0, bytes(512))
        with pytest.raises(UsageError, match="not with both"):
            connection.open(sparse, OpenFlags.NONE, single_link=True)
        with pytest.raises(UsageError, match="not known"):
            connection.open(sparse, OpenFlags(0x1000))


def test_compression_flags_mean_nothing_to_a_local_disk(sparse: Path) -> None:
    flags = OpenFlags.READ_ONLY | OpenFlags.COMPRESSION_FASTLZ
    with connect() as connection, connection.open(sparse, flags) as disk:
        assert disk.get_transport_mode() == "file"


def test_info(handle: DiskHandle) -> None:
    info = handle.get_info()
    assert info.capacity_sectors == 32768
    assert (info.adapter_type, info.num_links) == (AdapterType.SCSI_LSILOGIC, 1)
    geometry = info.physical_geometry
    assert (geometry.cylinders, geometry.heads, geometry.sectors) == (16, 64, 32)
    assert info.bios_geometry == geometry
    assert info.parent_file_name_hint is None
    assert info.uuid is not None
    assert info.uuid.casefold().startswith("60 00 c2 9")
    assert (info.logical_sector_size, info.physical_sector_size) == (512, 512)


def test_a_raw_image_has_a_handle_too(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    with connect() as connection, connection.open(path, WRITE) as disk:
        disk.write(4, b"\1" * 512)
        disk.flush()
        assert disk.read(4, 1) == b"\1" * 512
        assert disk.get_info().capacity_sectors == 2048
        with pytest.raises(NotSupported, match="raw image") as caught:
            disk.shrink()
        assert caught.value.code.number == 6
        with pytest.raises(NotSupported):
            disk.get_metadata_keys()


def test_allocated_blocks(handle: DiskHandle) -> None:
    assert handle.query_allocated_blocks() == [Block(0, 2048), Block(16384, 128)]
    assert handle.query_allocated_blocks(chunk_sectors=4096) == [Block(0, 4096), Block(16384, 4096)]
    assert handle.query_allocated_blocks(1024, 512, 128) == [Block(1024, 512)]
    assert handle.query_allocated_blocks(4096, 4096) == []
    # VixDiskLib refuses what reaches past the end; here it is cut off there.
    assert handle.query_allocated_blocks(16384, 1 << 30, 131072) == [Block(16384, 16384)]
    assert handle.query_allocated_blocks(32768, 128) == []


def test_a_question_of_too_many_chunks_is_refused() -> None:
    sectors = 128 * 524289
    with DiskHandle(MemoryDevice(sectors * 512), "file", "large") as disk:
        with pytest.raises(UsageError, match="524289 chunks") as caught:
            disk.query_allocated_blocks()
        assert caught.value.code.number == 3
        assert disk.query_allocated_blocks(128) == []
        assert disk.query_allocated_blocks(chunk_sectors=256) == []


def test_many_threads_use_one_handle(handle: DiskHandle) -> None:
    """Each thread owns a part of the disk; nobody sees another's bytes, or half of its own."""
    failures: list[str] = []

    def work(number: int) -> None:
        choice = random.Random(number)
        base = number * 2048
        for turn in range(40):
            sector = base + choice.randrange(2048 - 8)
            data = bytes([number + 1, turn]) * 2048
            if turn % 2:
                handle.write(sector, data)
            else:
                done = threading.Event()
                handle.write_async(sector, data, lambda result, event=done: event.set())
                done.wait(60)
            if handle.read(sector, 8) != data:
                failures.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len([t for t in threading.enumerate() if t.name.startswith("vdkit-disk")]) <= 4


def test_thousands_of_handles_leave_nothing(sparse: Path) -> None:
    """Opened and closed from several threads, some with requests under way."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with connect() as connection:
                for turn in range(500):
                    with connection.open(sparse) as disk:
                        if turn % 5 == 0:
                            disk.read_async(number, 8, bytearray(4096))
                        else:
                            disk.read(number, 1)
        except BaseException as error:  # noqa: BLE001  told by the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_numbers_are_those_of_vixdisklib() -> None:
    assert {kind.name: int(kind) for kind in DiskType} == {
        "MONOLITHIC_SPARSE": 1,
        "MONOLITHIC_FLAT": 2,
        "SPLIT_SPARSE": 3,
        "SPLIT_FLAT": 4,
        "VMFS_FLAT": 5,
        "STREAM_OPTIMIZED": 6,
        "VMFS_THIN": 7,
        "VMFS_SPARSE": 8,
        "UNKNOWN": 256,
    }
    assert [int(kind) for kind in AdapterType] == [1, 2, 3, 256]
    assert [int(flag) for flag in OpenFlags] == [1, 2, 4, 0x10, 0x20, 0x40]
    assert (HwVersion.CURRENT, HwVersion.ESX60, HwVersion.WORKSTATION_4) == (13, 11, 3)
    assert AdapterType.of("IDE") is AdapterType.IDE
    assert AdapterType.of("legacyESX") is AdapterType.UNKNOWN
    assert list_transport_modes() == "file:nbdssl:nbd"
    with pytest.raises(UsageError):
        _ = DiskType.UNKNOWN.vmdk
