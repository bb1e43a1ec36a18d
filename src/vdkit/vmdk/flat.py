"""Extents without tables: flat files (monolithicFlat, vmfs thick and thin) and runs of zeroes.

Source of facts: VMware's "Virtual Disk Format 5.0". A flat extent is a run of a file from an offset on;
holes of the file are the map. A file that is too short is damage, not zeroes.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdkit.block.device import BaseDevice, BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.merge import Placement
from vdkit.errors import CorruptDisk, ReadOnly
from vdkit.vmdk.grains import fill_zeroes


class FlatExtent(BaseWritableDevice):
    """``capacity`` bytes of ``file`` from byte ``start`` on; takes over ``file``."""

    def __init__(
        self, file: BlockDevice | WritableDevice, *, start: int, capacity: int, durable: bool = True
    ) -> None:
        if start + capacity > file.capacity:
            raise CorruptDisk(
                f"{file.name}: the file has {file.capacity} bytes, its descriptor needs {start + capacity}",
                remedy="the file was cut short or belongs to another disk",
            )
        writable = isinstance(file, WritableDevice) and file.writable
        super().__init__(name=file.name, capacity=capacity, writable=writable)
        self._file = file
        self._out = file if isinstance(file, WritableDevice) else None
        self._start = start
        self._durable = durable
        self._written = False

    @property
    def io_batch(self) -> int:
        return self._file.io_batch

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._file.read_into(self._start + offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in self._file.extents(self._start + offset, length):
            yield Extent(extent.offset - self._start, extent.length, extent.kind)

    @property
    def place_unit(self) -> int | None:
        return 0

    @property
    def finer_map(self) -> bool:
        return True

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        """All of it is in the file, holes too."""
        yield Placement(offset, length, ExtentKind.DATA, self._file, self._start + offset)

    def _target(self) -> WritableDevice:
        if self._out is None:
            raise ReadOnly(f"{self._name}: opened read-only")
        self._written = True
        return self._out

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._target().write_from(self._start + offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._target().write_zeroes(self._start + offset, length)

    def _flush(self) -> None:
        if self._out is not None:
            self._out.flush()

    def _close(self) -> None:
        try:
            if self._written and self._durable:
                self._flush()
        finally:
            self._file.close()


class ZeroExtent(BaseDevice):
    """A run that reads as zeroes and has no file."""

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name=name, capacity=capacity)

    def _read_into(self, offset: int, view: memoryview) -> None:  # noqa: ARG002  the same everywhere
        fill_zeroes(view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, ExtentKind.ZERO)

    @property
    def place_unit(self) -> int | None:
        return 0

    @property
    def finer_map(self) -> bool:
        return False

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        yield Placement(offset, length, ExtentKind.ZERO)
