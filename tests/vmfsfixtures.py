"""Volumes of our own formatter for tests of the reader, and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vdkit.block.device import BlockDevice
from vdkit.block.memory import MemoryDevice
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfslayout import MIB, VmfsOptions
from vdkit.testing.vmfsmanifest import Manifest
from vdkit.vmfs import Volume, open_volume

__all__ = ["MIB", "Fixture", "VmfsOptions", "copy_of", "read"]


def read(device: BlockDevice, offset: int, length: int) -> bytes:
    data = bytearray(length)
    device.read_into(offset, data)
    return bytes(data)


def copy_of(device: BlockDevice, *, capacity: int | None = None) -> MemoryDevice:
    """The same bytes, in memory of its own, cut or grown to ``capacity``."""
    size = device.capacity if capacity is None else capacity
    made = MemoryDevice(size, name=device.name)
    for extent in device.extents(0, min(size, device.capacity)):
        if extent.kind.value != "zero":
            made.write_from(extent.offset, read(device, extent.offset, extent.length))
    return made


class Fixture:
    """A formatted volume whose devices can be opened again and again, and changed in between."""

    def __init__(self, options: VmfsOptions, fill: Callable[[VmfsImage], None]) -> None:
        self.image = VmfsImage.in_memory(options)
        fill(self.image)
        self.manifest: Manifest = self.image.finish()
        self.options = options

    @property
    def six(self) -> bool:
        return self.options.six

    def open(self) -> Volume:
        devices = []
        for device in self.image.devices:
            assert isinstance(device, MemoryDevice)
            # A device of its own on the same bytes: the volume closes what it has.
            devices.append(MemoryDevice._on(device._content, name=device.name, writable=False))
        return open_volume(devices)

    def write(self, offset: int, data: bytes) -> None:
        """At an offset of the volume."""
        self.image.space.write(offset, data)

    def write_device(self, offset: int, data: bytes, member: int = 0) -> None:
        """At an offset of a member's partition."""
        self.image.devices[member].write_from(self.options.start + offset, data)

    def field(self, path: str, offset: int, form: str, value: int) -> None:
        """A field of a file's descriptor, counted from its second block; of the root for ``""``."""
        base = 4096 if self.six else 512
        self.write(self.descriptor_at(path) + base + offset, struct.pack(f"<{form}", value))

    def descriptor_at(self, path: str) -> int:
        return self.manifest.files[path].descriptor_at if path else self.root

    @property
    def root(self) -> int:
        return 0x720000 if self.six else 0x420000

    def system(self, number: int) -> int:
        """The descriptor of one of the volume's own files."""
        return self.root + number * (8192 if self.six else 2048)

    def pointer(self, path: str, slot: int, value: int) -> None:
        """One of the addresses in a file's descriptor."""
        size = 8 if self.six else 4
        start = 8192 - 2560 if self.six else 1024
        self.write(self.descriptor_at(path) + start + slot * size, value.to_bytes(size, "little"))
