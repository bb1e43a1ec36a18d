"""A source as the backup engine reads it: every covered byte is data, but zeroes cost no reading.

Hashes are taken over all covered bytes, so the copy engine must see them all; what the allocation map calls
zero is filled in here instead of being fetched.
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import RangeSet

_ZEROES = bytes(1 << 20)


class FilledDevice(BaseDevice):
    """``device`` read only where ``data`` says so, zero elsewhere. Does not own ``device``."""

    def __init__(self, device: BlockDevice, data: RangeSet) -> None:
        super().__init__(
            name=device.name,
            capacity=device.capacity,
            sector_size=device.sector_size,
            alignment=device.alignment,
        )
        self._device = device
        self._data = data.aligned(device.alignment, device.capacity)

    @property
    def io_batch(self) -> int:
        return self._device.io_batch

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        wanted: list[tuple[int, memoryview]] = []
        for offset, view in pieces:
            position = offset
            for start, length in self._data.clip(offset, len(view)):
                _clear(view[position - offset : start - offset])
                wanted.append((start, view[start - offset : start - offset + length]))
                position = start + length
            _clear(view[position - offset :])
        if len(wanted) == 1:
            self._device.read_into(*wanted[0])
        elif wanted:
            self._device.read_many(wanted)


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = view[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
