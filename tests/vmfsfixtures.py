"""Volumes of our own formatter for tests of the reader, and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

from vdkit.block.device import BlockDevice
from vdkit.block.memory import PAGE, MemoryDevice
from vdkit.testing.vmfsimage import VmfsImage
from vdkit.testing.vmfslayout import MIB, VmfsOptions
from vdkit.testing.vmfsmanifest import Manifest
from vdkit.vmfs import Volume, open_volume

__all__ = ["MIB", "Fixture", "VmfsOptions", "copy_of", "patch_seeds", "patched", "read"]


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


# -- what fuzzing changes ------------------------------------------------------------------------

_VOLUME = 18 * MIB
#: Where patches may go, by version: partition table, member, volume entry, its table, superblock, headers of
#: descriptors and of sub-blocks, descriptors, data of folders.
_REGIONS = {
    5: (0, 512, 2 * MIB, 2 * MIB + 0x200, 2 * MIB + 0x80600, _VOLUME + 0x200000, _VOLUME + 4 * MIB,
        _VOLUME + 6 * MIB, _VOLUME + 0x420000, _VOLUME + 0x424000, _VOLUME + 6 * MIB + 0x20000,
        _VOLUME + 11 * MIB),
    6: (0, 512, 2 * MIB, 2 * MIB + 0x1000, 2 * MIB + 0x82000, _VOLUME + 0x200000, _VOLUME + 7 * MIB,
        _VOLUME + 13 * MIB, _VOLUME + 0x720000, _VOLUME + 0x732000, _VOLUME + 13 * MIB + 0x20000,
        _VOLUME + 13 * MIB + 0x40000, _VOLUME + 35 * MIB),
}  # fmt: skip


@cache
def fuzzed(version: int) -> MemoryDevice:
    """A small volume with one of each kind of file, and little in it."""

    def fill(image: VmfsImage) -> None:
        image.folder("vm")
        image.small("vm/small", b"small")
        image.small("vm/sub", b"s" * 5000)
        image.disk("vm/f", 6 * MIB, "DzhDDD")
        image.disk("vm/deep", 3 * MIB, "DhD", levels=1)
        image.disk("vm/deeper", 3 * MIB, "hDD", levels=2)
        image.symlink("link", "vm/small")
        image.rdm("rdm", 1 << 30)

    fixture = Fixture(VmfsOptions(version, members=(1,), table="gpt"), fill)  # type: ignore[arg-type]
    device = fixture.image.devices[0]
    assert isinstance(device, MemoryDevice)
    return device


def patched(data: bytes) -> MemoryDevice:
    """A byte for the version, then patches: a byte for the region, two for the offset, one for the length."""
    version = 5 + (data[0] & 1 if data else 0)
    base = fuzzed(version)
    made = MemoryDevice(base.capacity, name="lun")
    made._content.pages = dict(base._content.pages)
    at = 1
    while at + 4 <= len(data):
        region, offset, length = struct.unpack_from("<BHB", data, at)
        piece = data[at + 4 : at + 4 + length]
        regions = _REGIONS[version]
        start = regions[region % len(regions)] + offset
        for page in range(start // PAGE, (start + len(piece)) // PAGE + 1):
            made._content.pages[page] = bytearray(made._content.pages.get(page, bytes(PAGE)))
        made.write_from(start, piece)
        at += 4 + length
    return made


def patch_seeds() -> list[bytes]:
    def patch(region: int, offset: int, data: bytes) -> bytes:
        return struct.pack("<BHB", region, offset, len(data)) + data

    return [
        b"\0",
        b"\1",
        b"\0" + patch(9, 512, bytes(4)) + patch(5, 4, b"\x0e\0\0\0"),
        b"\1" + patch(9, 4096 + 0x44, b"\xd1\x10\0\0") + patch(11, 0x10, b"\1\0\0\0"),
        b"\1" + patch(1, 0, b"EFI PART") + patch(3, 0x90, b"\1\0\0\0") + patch(8, 4096 + 0x14, b"\xff" * 8),
        b"\0" + patch(10, 0, b"\2\0\0\0\4\0\0\0") + patch(6, 0, b"\xc8\0\0\0"),
    ]
