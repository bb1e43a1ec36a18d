"""The extent files of one link, one after the other, as one device.

Source of facts: VMware's "Virtual Disk Format 5.0": extents follow one another.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.block.forward import close_all
from vdkit.block.merge import Placement, common_unit, placer
from vdkit.errors import NotSupported, ReadOnly


class Pieces(BaseWritableDevice):
    """Owns and closes ``extents``. Writing to a piece that is read-only raises ReadOnly."""

    def __init__(self, extents: Sequence[BlockDevice], *, name: str, writable: bool) -> None:
        self._starts: list[int] = []
        total = 0
        for extent in extents:
            self._starts.append(total)
            total += extent.capacity
        super().__init__(name=name, capacity=total, writable=writable)
        self._extent_devices = tuple(extents)
        self._placers = {id(extent): placer(extent) for extent in extents}
        #: Grain of the coarsest extent: what a chain completes before it writes.
        self.write_unit = max(int(getattr(extent, "write_unit", 1)) for extent in extents)
        #: True if zeroes written over whole grains hide what a parent has there.
        self.zeroes_hide_parent = all(getattr(extent, "zeroes_hide_parent", False) for extent in extents)
        if writable and any(start % self.write_unit for start in self._starts):
            raise NotSupported(
                f"{name}: its extents do not begin at whole grains of {self.write_unit} bytes, "
                "so that it cannot be written in place",
                remedy="convert it first",
            )

    def _parts(self, offset: int, length: int) -> Iterator[tuple[BlockDevice, int, int, int]]:
        """``(extent, offset in it, offset in the question, length)``."""
        done = 0
        index = bisect.bisect_right(self._starts, offset) - 1
        while done < length:
            extent = self._extent_devices[index]
            inside = offset + done - self._starts[index]
            step = min(length - done, extent.capacity - inside)
            if step:
                yield extent, inside, done, step
            done += step
            index += 1

    def _read_into(self, offset: int, view: memoryview) -> None:
        for extent, inside, at, step in self._parts(offset, len(view)):
            extent.read_into(inside, view[at : at + step])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent, inside, at, step in self._parts(offset, length):
            for run in extent.extents(inside, step):
                yield Extent(run.offset - inside + offset + at, run.length, run.kind)

    @property
    def place_unit(self) -> int | None:
        return common_unit(self._extent_devices, self._starts)

    @property
    def finer_map(self) -> bool:
        return any(getattr(extent, "finer_map", False) for extent in self._extent_devices)

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        for extent, inside, at, step in self._parts(offset, length):
            for run in self._placers[id(extent)](inside, step):
                yield run._replace(offset=run.offset - inside + offset + at)

    def _write_from(self, offset: int, view: memoryview) -> None:
        for extent, inside, at, step in self._parts(offset, len(view)):
            _target(extent).write_from(inside, view[at : at + step])

    def _write_zeroes(self, offset: int, length: int) -> None:
        for extent, inside, _, step in self._parts(offset, length):
            _target(extent).write_zeroes(inside, step)

    def _flush(self) -> None:
        for extent in self._extent_devices:
            if isinstance(extent, WritableDevice) and extent.writable:
                extent.flush()

    def _close(self) -> None:
        close_all(self._extent_devices)


def _target(extent: BlockDevice) -> WritableDevice:
    if not isinstance(extent, WritableDevice):
        raise ReadOnly(f"{extent.name}: this part of the disk is read-only")
    return extent
