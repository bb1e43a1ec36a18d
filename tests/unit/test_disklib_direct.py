"""Unbuffered files: whatever the alignment, the bytes are those that buffered access gives."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from vdkit.block import direct
from vdkit.block.direct import DirectFile, open_file_direct
from vdkit.disklib.connection import connect
from vdkit.disklib.constants import OpenFlags
from vdkit.disklib.local import convert
from vdkit.errors import CorruptDisk, ReadOnly

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("no_leaks")


def can(folder: Path) -> bool:
    path = folder / "probe"
    path.write_bytes(bytes(4096))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not can(tmp_path):
        pytest.skip("the file system of the temporary folder refuses O_DIRECT")
    return tmp_path


def test_random_pieces_against_a_plain_copy(folder: Path) -> None:
    """Offsets, lengths and addresses of every alignment, up to a last block that is not whole."""
    size = 3 * MIB + 1234
    choice = random.Random(5)
    model = bytearray(choice.randbytes(size))
    path = folder / "image"
    path.write_bytes(model)
    memory = mmap.mmap(-1, 4 * MIB)
    with open_file_direct(path, writable=True) as device:
        assert isinstance(device, DirectFile)
        for turn in range(300):
            unit = choice.choice([1, 512, 4096])
            offset = choice.randrange(0, size) // unit * unit
            length = min(size - offset, choice.choice([1, 511, 512, 4096, 8192, 70000, 3 * MIB]))
            shift = choice.choice([0, 0, 1, 512])
            if turn % 2:
                data = choice.randbytes(length)
                view = memoryview(memory)[shift : shift + length]
                view[:] = data
                device.write_from(offset, view if turn % 4 == 1 else data)
                model[offset : offset + length] = data
            else:
                view = memoryview(memory)[shift : shift + length]
                device.read_into(offset, view)
                assert view == memoryview(model)[offset : offset + length]
            view.release()
        device.flush()
    assert path.read_bytes() == model


def test_nothing_is_written_past_the_end(folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(bytes(5000))
    with open_file_direct(path, writable=True) as device:
        device.write_from(0, b"\1" * 5000)
        device.flush()
    assert path.read_bytes() == b"\1" * 5000


def test_a_file_cut_short_is_damage(folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(bytes(MIB))
    with open_file_direct(path) as device:
        os.truncate(path, 8192)
        for offset, length in ((4096, 16384), (8192, 4096), (8192, 100)):
            with pytest.raises(CorruptDisk, match="cut short"):
                device.read_into(offset, bytearray(length))
        with pytest.raises(ReadOnly):
            device.write_from(0, bytes(512))


def test_buffers_are_used_again() -> None:
    pool = direct.BufferPool()
    with pool.borrowed() as first, pool.borrowed():
        assert len(first) == direct.BUFFER_BYTES
        first[:3] = b"abc"
    with pool.borrowed(), pool.borrowed():
        pass
    assert len(pool._free) == 2


@pytest.mark.parametrize("kind", ["monolithicSparse", "monolithicFlat", "streamOptimized", "raw"])
def test_disks_are_read_and_written_unbuffered(folder: Path, kind: str) -> None:
    raw = folder / "source.raw"
    content = random.Random(3).randbytes(MIB) + bytes(2 * MIB) + random.Random(4).randbytes(MIB)
    raw.write_bytes(content)
    path = folder / ("disk.raw" if kind == "raw" else "disk.vmdk")
    convert(raw, path, to=kind)
    with connect() as connection:
        with connection.open(path, OpenFlags.UNBUFFERED | OpenFlags.READ_ONLY) as disk:
            assert disk.notes == ()
            assert disk.read(0, len(content) // 512) == content
        if kind == "streamOptimized":
            return
        with connection.open(path, OpenFlags.UNBUFFERED) as disk:
            disk.write(4097, b"\7" * 1536)
        with connection.open(path) as disk:
            assert disk.read(4096, 5) == bytes(512) + b"\7" * 1536 + bytes(512)


def test_a_file_system_that_refuses_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tmpfs does before Linux 6.6."""
    raw = tmp_path / "source.raw"
    raw.write_bytes(random.Random(3).randbytes(MIB))
    convert(raw, tmp_path / "disk.vmdk", to="monolithicFlat")
    really = os.open

    def refusing(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return really(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    with connect() as connection:
        for name in ("disk.vmdk", "source.raw"):
            with connection.open(tmp_path / name, OpenFlags.UNBUFFERED) as disk:
                assert disk.read(0, 2048) == raw.read_bytes()
                assert any("refuses unbuffered access" in note for note in disk.notes)
