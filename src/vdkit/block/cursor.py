"""Walking an allocation map forward without asking twice and without walking what nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator

from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent
from vdkit.errors import StoreError

#: Skipping this many bytes is done by asking anew rather than by walking the map.
_JUMP = 64 << 20


class ExtentCursor:
    """The runs of a device's map at ascending positions below ``end``; fetched only as far as looked at."""

    def __init__(self, device: BlockDevice, end: int) -> None:
        self._device = device
        self._end = end
        self._runs: Iterator[Extent] = iter(())
        self._current: Extent | None = None

    def at(self, position: int) -> Extent:
        """The run that covers ``position``, starting there; positions must not descend."""
        current = self._current
        if current is None or position - current.end >= _JUMP:
            current = self._ask(position)
        while current.end <= position:
            following = next(self._runs, None)
            current = self._ask(position) if following is None else following
        self._current = current
        if current.offset == position:
            return current
        return Extent(position, current.end - position, current.kind)

    def _ask(self, position: int) -> Extent:
        self._runs = self._device.extents(position, self._end - position)
        first = next(self._runs, None)
        if first is None or first.offset != position or first.length <= 0:
            raise StoreError(f"{self._device.name}: its allocation map does not cover offset {position}")
        return first
