"""Small files that claim to be huge: bombs, holes of terabytes, tables that name one thing many times."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from bounds import bounded_memory, run_bounded

import smallimages
from smallimages import GD_AT_END, SECTOR, stored
from vdkit.block.copy import copy
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore, open_file
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, LimitExceeded
from vdkit.vmdk import DiskType, StreamWriter, create_disk, open_disk

# -- bombs -------------------------------------------------------------------------------------------


def bomb(plain_per_piece: int, pieces: int) -> bytes:
    """A zlib stream of ``pieces`` times ``plain_per_piece`` zeroes; the checksum at its end is missing."""
    maker = zlib.compressobj(9)
    start = maker.compress(bytes(plain_per_piece)) + maker.flush(zlib.Z_FULL_FLUSH)
    piece = maker.compress(bytes(plain_per_piece)) + maker.flush(zlib.Z_FULL_FLUSH)
    return start + piece * (pieces - 1)


def bomb_image(grain: int, packed: bytes) -> bytes:
    """A stream of two grains of ``grain`` sectors, the first of which is ``packed``."""
    fields = {"version": 3, "flags": 0x30001, "capacity": 2 * grain, "grain": grain, "compression": 1}
    text = smallimages.text("streamOptimized", f'RW {2 * grain} SPARSE "d.vmdk"')
    record = smallimages.sector(bytes(8) + len(packed).to_bytes(4, "little") + packed)
    head = smallimages.header(**fields, directory=2, overhead=7)
    return b"".join(
        [head, smallimages.sector(text), smallimages.sector(smallimages.numbers(3)),
         smallimages.table({0: 7}), record, bytes(SECTOR)]
    )  # fmt: skip


@pytest.mark.parametrize(("grain", "pieces"), [(128, 8), (1 << 15, 1024)])
def test_a_grain_that_inflates_to_gigabytes(tmp_path: Path, grain: int, pieces: int) -> None:
    """The largest that may be is the grain: the rest is never made. Under the kernel's limit, in a process of
    its own.
    """
    (tmp_path / "d.vmdk").write_bytes(bomb_image(grain, bomb(16 << 20, pieces)))
    code = f"""
from vdkit.block.local import FolderStore
from vdkit.errors import CorruptDisk
from vdkit.vmdk import open_disk
for recover in (False, True):
    with open_disk(FolderStore({str(tmp_path)!r}), "d.vmdk", recover=recover) as disk:
        for length in (512, {grain * SECTOR}):
            try:
                disk.read_into(0, bytearray(length))
            except CorruptDisk as error:
                assert "grain" in str(error)
            else:
                raise AssertionError("the bomb was read")
print("refused")
"""
    assert run_bounded(code, memory=1 << 29, processor_seconds=20) == "refused\n"


def test_a_stream_of_bombs_is_scanned_in_bounded_memory(tmp_path: Path) -> None:
    packed = bomb(16 << 20, 8)
    fields = {"version": 3, "flags": 0x30001, "capacity": 1 << 20, "grain": 128, "compression": 1}
    text = smallimages.sector(smallimages.text("streamOptimized", f'RW {1 << 20} SPARSE "d.vmdk"'))
    head = smallimages.header(**fields, directory=GD_AT_END, overhead=2)
    record = b"".join(
        smallimages.sector((128 * i).to_bytes(8, "little") + len(packed).to_bytes(4, "little") + packed)
        for i in range(64)
    )
    (tmp_path / "d.vmdk").write_bytes(head + text + record)
    code = f"""
from vdkit.block.local import FolderStore
from vdkit.vmdk import open_disk
with open_disk(FolderStore({str(tmp_path)!r}), "d.vmdk", recover=True) as disk:
    print(disk.info.notes[0].split(": ", 2)[2])
"""
    said = run_bounded(code, memory=1 << 29, processor_seconds=20)
    assert "64 damaged grains" in said


def huge(sectors: int) -> bytes:
    """An empty disk of terabytes in some KiB: grains of 1 GiB, a directory without tables."""
    grain = 1 << 21
    tables = -(-sectors // (grain * 512))
    directory = bytes(-(-tables * 4 // SECTOR) * SECTOR)
    text = smallimages.sector(smallimages.text("monolithicSparse", f'RW {sectors} SPARSE "d.vmdk"'))
    overhead = 2 + len(directory) // SECTOR
    head = smallimages.header(capacity=sectors, grain=grain, directory=2, overhead=overhead)
    return head + text + directory + bytes(SECTOR)


def test_62_tebibytes_in_two_kibibytes_are_never_materialised(tmp_path: Path) -> None:
    sectors = 62 << 31
    (tmp_path / "d.vmdk").write_bytes(huge(sectors))
    assert (tmp_path / "d.vmdk").stat().st_size <= 4 * SECTOR
    store = FolderStore(tmp_path)
    with bounded_memory(8 << 20), open_disk(store, "d.vmdk") as disk:
        assert [(e.length, e.kind) for e in disk.extents()] == [(sectors * SECTOR, ExtentKind.ZERO)]
    with open_disk(store, "d.vmdk") as disk, pytest.raises(LimitExceeded):
        create_disk(store, "o.vmdk", disk.capacity, disk_type=DiskType.MONOLITHIC_SPARSE)
    assert not (tmp_path / "o.vmdk").exists()


def test_an_empty_disk_of_terabytes_is_copied_as_a_hole(tmp_path: Path) -> None:
    """Work and space follow the map, not the capacity."""
    size = 2 << 40
    (tmp_path / "d.vmdk").write_bytes(huge(size // SECTOR))
    store = FolderStore(tmp_path)
    with open_disk(store, "d.vmdk") as disk:
        with store.create("out.raw", size) as raw, bounded_memory(16 << 20):
            copy(disk, raw, target_is_zero=True)
        writer = StreamWriter(store, "out.vmdk", size)
        with bounded_memory(16 << 20):
            copy(disk, writer, target_is_zero=True)
        writer.finish()
    assert (tmp_path / "out.raw").stat().st_blocks * 512 <= 1 << 16
    assert (tmp_path / "out.vmdk").stat().st_size <= 1 << 20
    with open_file(tmp_path / "out.raw") as raw, open_disk(store, "out.vmdk") as again:
        assert raw.capacity == again.capacity == size


# -- tables that name one thing many times -----------------------------------------------------------


def aliased_sparse(tables: int) -> bytes:
    """Every entry of the directory names one table, every entry of that the same grain."""
    sectors = tables * 512 * 128
    directory = smallimages.sector(smallimages.numbers(*[0] * tables))
    at = 2 + len(directory) // SECTOR
    directory = smallimages.sector(smallimages.numbers(*[at] * tables))
    table = smallimages.numbers(*[128] * 512)
    text = smallimages.sector(smallimages.text("monolithicSparse", f'RW {sectors} SPARSE "d.vmdk"'))
    head = smallimages.header(capacity=sectors, grain=128, directory=2, overhead=128)
    return (head + text + directory + table).ljust(128 * SECTOR, b"\0") + b"x" * 128 * SECTOR


def test_one_grain_named_by_every_entry() -> None:
    """The amplification of a zip quine: a file of 128 KiB that claims to hold gigabytes of data. Its single
    grains can be read; a map of more data than the file can hold is refused before anybody copies it.
    """
    store = stored({"d.vmdk": aliased_sparse(64)})
    with open_disk(store, "d.vmdk") as disk:
        assert disk.capacity == 2 << 30
        with pytest.raises(CorruptDisk, match="more than once"):
            list(disk.extents())
        target = MemoryStore("t").create("o.raw", disk.capacity)
        with bounded_memory(32 << 20), pytest.raises(CorruptDisk, match="more than once"):
            copy(disk, target, target_is_zero=True)


def test_one_compressed_grain_named_by_every_entry() -> None:
    image = bytearray(smallimages.stream(at_end=False, grains=(0,)))
    # 32 sectors of disk are four grains; with a capacity of 512 grains all name the first.
    image[:SECTOR] = smallimages.header(
        version=3, flags=0x30001, capacity=4096, grain=8, compression=1, directory=2, overhead=7
    )
    image[SECTOR : 2 * SECTOR] = smallimages.sector(
        smallimages.text("x", 'RW 4096 SPARSE "d.vmdk"').replace(b'"x"', b'"streamOptimized"')
    )
    image[3 * SECTOR : 7 * SECTOR] = smallimages.numbers(*[7] * 512)
    store = stored({"d.vmdk": bytes(image)})
    with open_disk(store, "d.vmdk") as disk:
        with pytest.raises(CorruptDisk, match="marker says"):
            disk.read_into(8 * SECTOR, bytearray(SECTOR))
        with pytest.raises(CorruptDisk, match="more than once"):
            list(disk.extents())
