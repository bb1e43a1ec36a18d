"""How much room a copy of a disk needs, without making it; the two numbers of ``qemu-img measure``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.disklib.local import SECTOR, kind_of
from vdkit.disklib.opening import open_local
from vdkit.errors import NotSupported, UsageError
from vdkit.vmdk import DiskType
from vdkit.vmdk.admin import space_needed
from vdkit.vmdk.sparse import check_creatable


class Measure(NamedTuple):
    """Bytes. ``fully_allocated``: if all of the disk were data."""

    required: int
    fully_allocated: int


def measure_disk(
    path: str | Path, *, to: str, source_format: str | None = None, allow_paths: Sequence[str] = ()
) -> Measure:
    """What a copy of a disk, all its links as one, takes at most as type ``to``."""
    with open_local(path, source_format=source_format, allow_paths=allow_paths) as disk:
        return _measure(disk, to)


def measure_size(capacity: int, *, to: str) -> Measure:
    """What an empty disk of ``capacity`` bytes takes. Raises UsageError for a size that no disk has."""
    if capacity <= 0 or capacity % SECTOR:
        raise UsageError(f"a size of {capacity} bytes is not a positive multiple of {SECTOR}")
    return _measure(_Uniform("an empty disk", capacity, ExtentKind.ZERO), to)


def _measure(disk: BlockDevice, to: str) -> Measure:
    kind = kind_of(to)
    if kind is None:
        return Measure(disk.capacity, disk.capacity)  # as qemu-img counts a raw image, holes and all
    if kind is DiskType.MONOLITHIC_SPARSE:
        check_creatable(-(-disk.capacity // SECTOR), disk.name)
    full = _Uniform(disk.name, disk.capacity, ExtentKind.DATA)
    return Measure(space_needed(disk, kind), space_needed(full, kind))


class _Uniform(BaseDevice):
    """A map of one kind without the bytes."""

    def __init__(self, name: str, capacity: int, kind: ExtentKind) -> None:
        super().__init__(name=name, capacity=capacity)
        self._kind = kind

    def _read_into(self, offset: int, view: memoryview) -> None:
        raise NotSupported(f"{self.name}: {len(view)} bytes at {offset} are only measured, not read")

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, self._kind)

    def _close(self) -> None:
        """Nothing is open."""
