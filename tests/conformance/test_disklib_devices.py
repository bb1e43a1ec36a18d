"""Handles and unbuffered files keep the contract of every device."""

from __future__ import annotations

from pathlib import Path

from vdkit.block.device import BlockDevice
from vdkit.block.direct import DirectStore
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.handle import DiskHandle
from vdkit.testing.devices import DeviceConformance


class TestDiskHandle(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return DiskHandle(MemoryDevice.from_bytes(content), "file", "disk")


class TestDirectFile(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        (folder / "disk").write_bytes(content)
        return DirectStore(folder).open_writable("disk")
