"""The guest's file system: real changes, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdkit.block.device import WritableDevice
from vdkit.block.memory import MemoryDevice
from vdkit.errors import StoreError, UsageError
from vdkit.sim.guest import BLOCK, GuestFileSystem, check

MIB = 1 << 20
pytestmark = pytest.mark.witness("debugfs", "e2fsck", "mke2fs")


class Recorder(MemoryDevice):
    """A disk that remembers where it was written."""

    def __init__(self) -> None:
        super().__init__(32 * MIB)
        self.written: list[int] = []

    def _write_from(self, offset: int, view: memoryview) -> None:
        self.written.append(offset)
        super()._write_from(offset, view)


def raw(device: WritableDevice, path: Path) -> Path:
    data = bytearray(device.capacity)
    device.read_into(0, data)
    path.write_bytes(data)
    return path


def test_files_come_and_go_and_the_disk_stays_a_sound_file_system(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    disk = MemoryDevice(32 * MIB)
    with GuestFileSystem(disk) as guest:
        guest.format(source)
        guest.make_folder("/var")
        guest.write_file("/var/a file", b"x" * 100_000)
        guest.write_file("/var/a file", b"y" * 10)
        guest.remove("/etc/hosts")
        assert guest.read_file("/var/a file") == b"y" * 10
        assert not guest.exists("/etc/hosts")
        guest.check()
    check(raw(disk, tmp_path / "disk.raw"))
    with GuestFileSystem(disk) as again:
        assert again.read_file("/var/a file") == b"y" * 10


def test_a_write_touches_only_blocks_that_changed_and_not_in_order() -> None:
    disk = Recorder()
    with GuestFileSystem(disk) as guest:
        guest.format()
        before = bytearray(disk.capacity)
        disk.read_into(0, before)
        disk.written.clear()
        guest.write_file("/data", bytes(range(256)) * 4096)
        after = bytearray(disk.capacity)
        disk.read_into(0, after)
    changed = [at for at in range(0, len(after), BLOCK) if before[at : at + BLOCK] != after[at : at + BLOCK]]
    assert sorted(disk.written) == changed
    assert disk.written != changed
    assert len(changed) >= 256


def test_what_debugfs_complains_of_is_an_error() -> None:
    with GuestFileSystem(MemoryDevice(32 * MIB)) as guest:
        guest.format()
        with pytest.raises(StoreError, match="debugfs"):
            guest.remove("/nothing")
        with pytest.raises(UsageError):
            guest.remove("relative")


def test_a_damaged_file_system_is_told(tmp_path: Path) -> None:
    image = tmp_path / "bad.raw"
    image.write_bytes(bytes(8 * MIB))
    with pytest.raises(StoreError, match="e2fsck"):
        check(image)
