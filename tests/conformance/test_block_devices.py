"""Every device of the block layer keeps the contract."""

from __future__ import annotations

import itertools
from pathlib import Path

from vdkit.block.chain import Chain
from vdkit.block.compose import Concat, Overlay, ReadOnly, Slice, Unaligned
from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore, open_file
from vdkit.block.memory import MemoryDevice
from vdkit.block.wrappers import Cache, Faults, RateLimit, Stats
from vdkit.testing.devices import DeviceConformance
from vdkit.testing.links import MemoryLink, deal


def memory(content: bytes, alignment: int = 1) -> MemoryDevice:
    made = MemoryDevice.from_bytes(content)
    made._alignment = alignment
    return made


class TestMemoryDevice(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return memory(content)


class TestAlignedMemoryDevice(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return memory(content, 512)


class TestFileDevice(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        device = FolderStore(folder).create("disk", len(content))
        for start in range(0, len(content), 4096):
            piece = content[start : start + 4096]
            if any(piece):
                device.write_from(start, piece)
        return device


class TestOpenFile(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        (folder / "disk").write_bytes(content)
        return open_file(folder / "disk")


class TestSlice(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Slice(memory(b"<" * 1000 + content + b">" * 1000), 1000, len(content))


class TestConcat(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        cuts = [0, 512, 512, 100_000, 300_000, len(content)]
        return Concat([memory(content[a:b]) for a, b in itertools.pairwise(cuts)])


class TestReadOnly(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return ReadOnly(memory(content))


class TestOverlay(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        half = len(content) // 2
        made = Overlay(memory(content[:half] + b"old" * ((len(content) - half) // 3 + 1), 1))
        return _overlaid(made, content, half)


def _overlaid(made: Overlay, content: bytes, half: int) -> BlockDevice:
    sliced = Slice(made, 0, len(content))
    sliced.write_from(half, content[half:])
    return sliced


class TestOverlayOnFile(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Overlay(memory(content), FolderStore(folder).create("top", len(content)))


class TestUnaligned(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Unaligned(memory(content, 512))


class TestUnalignedWithRaggedEnd(DeviceConformance):
    capacity = 300_001

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Unaligned(memory(content, 4096))


class TestCache(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Cache(memory(content), limit=256 << 10, block=4096)


class TestCacheThatHoldsAll(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Cache(memory(content), limit=64 << 20)


class TestStats(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Stats(memory(content))


class TestFaultsWithoutAny(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Faults(memory(content))


class TestRateLimit(DeviceConformance):
    resizable = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return RateLimit(memory(content), 1 << 40)


class TestChainOfOne(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Chain([memory(content)])


class TestMemoryLink(DeviceConformance):
    link = True

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return deal(content, links=1, grain=4096)[0]


class TestChain(DeviceConformance):
    examples = 60

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Chain(deal(content, links=4, grain=4096))


class TestChainOverFlatBase(DeviceConformance):
    examples = 60

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Chain([MemoryLink(len(content), grain=65536), memory(content)])


class TestChainOfWrappedLinks(DeviceConformance):
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Chain([Stats(link) for link in deal(content, links=3, grain=8192)])


class TestReadOnlyChain(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return Chain([ReadOnly(link) for link in deal(content, links=3, grain=512)])
