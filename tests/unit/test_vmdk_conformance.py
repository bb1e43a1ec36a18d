"""Every kind of VMDK keeps the contract of a block device."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.testing.devices import DeviceConformance
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk


def filled(store: Store, name: str, kind: DiskType, content: bytes) -> None:
    with create_disk(store, name, len(content), disk_type=kind) as disk:
        copy(MemoryDevice.from_bytes(content), disk, target_is_zero=True)


class DiskConformance(DeviceConformance):
    __test__ = False
    kind: DiskType

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        store = FolderStore(folder)
        filled(store, "disk.vmdk", self.kind, content)
        return open_disk(store, "disk.vmdk", writable=True)


class TestMonolithicSparse(DiskConformance):
    __test__ = True
    kind = DiskType.MONOLITHIC_SPARSE


class TestMonolithicFlat(DiskConformance):
    __test__ = True
    kind = DiskType.MONOLITHIC_FLAT


class TestThin(DiskConformance):
    __test__ = True
    kind = DiskType.VMFS_THIN


class TestInMemory(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        store = MemoryStore("memory")
        filled(store, "disk.vmdk", DiskType.MONOLITHIC_SPARSE, content)
        return open_disk(store, "disk.vmdk", writable=True)


class TestStream(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        store = FolderStore(folder)
        writer = StreamWriter(store, "disk.vmdk", len(content))
        copy(MemoryDevice.from_bytes(content), writer, target_is_zero=True)
        writer.finish()
        return open_disk(store, "disk.vmdk")


class _Child(DeviceConformance):
    """Half of the content is in the parent, which also holds what the child covers."""

    __test__ = False
    kind: DiskType

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        store = FolderStore(folder)
        half = len(content) // 2 // 512 * 512
        below = content[:half] + bytes(b ^ 255 for b in content[half:])
        filled(store, "base.vmdk", DiskType.VMFS_FLAT, below)
        create_child(store, "base.vmdk", "base-000001.vmdk", disk_type=self.kind)
        disk = open_disk(store, "base-000001.vmdk", writable=True)
        disk.write_from(half, content[half:])
        return disk


class TestCowdChild(_Child):
    __test__ = True
    kind = DiskType.VMFS_SPARSE


class TestSparseChild(_Child):
    __test__ = True
    kind = DiskType.MONOLITHIC_SPARSE


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_zeroes_in_a_child_hide_the_parent(tmp_path: Path, kind: DiskType) -> None:
    store = FolderStore(tmp_path)
    content = b"\xa5" * (3 << 16)
    filled(store, "base.vmdk", DiskType.MONOLITHIC_FLAT, content)
    create_child(store, "base.vmdk", "child.vmdk", disk_type=kind)
    with open_disk(store, "child.vmdk", writable=True) as disk:
        disk.write_zeroes(1000, 100_000)
    with open_disk(store, "child.vmdk") as disk:
        seen = bytearray(len(content))
        disk.read_into(0, seen)
    assert seen == content[:1000] + bytes(100_000) + content[101_000:]
