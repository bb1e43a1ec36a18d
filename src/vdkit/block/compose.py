"""New devices from old ones: a part, a row, a read-only view, an overlay, byte access to sectors.

Each owns and closes what it is made of.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
from collections.abc import Iterator, Sequence

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.block.forward import Forwarding, close_all
from vdkit.block.gate import Gate
from vdkit.block.memory import MemoryDevice
from vdkit.errors import NotSupported, OutOfRange, UsageError
from vdkit.errors import ReadOnly as ReadOnlyError


class Slice(Forwarding):
    """``length`` bytes of ``device`` from ``offset``: a partition, the data behind a header."""

    def __init__(self, device: BlockDevice, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length < 0 or end > device.capacity:
            raise OutOfRange(
                f"{device.name}: bytes {offset} to {end} are outside its {device.capacity} bytes"
            )
        unit = device.alignment
        if offset % unit or (end % unit and end != device.capacity):
            raise UsageError(f"{device.name}: a slice at {offset} must be in multiples of {unit} bytes")
        super().__init__(device)
        self._start = offset
        self._capacity = length

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._inner.read_into(self._start + offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._inner.read_many([(self._start + offset, view) for offset, view in pieces])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in self._inner.extents(self._start + offset, length):
            yield Extent(extent.offset - self._start, extent.length, extent.kind)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._writer().write_from(self._start + offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._writer().write_many([(self._start + offset, view) for offset, view in pieces])

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._writer().write_zeroes(self._start + offset, length)

    def _resize(self, capacity: int) -> None:
        raise NotSupported(f"{self.name}: a slice has a fixed size and cannot become {capacity} bytes")


class ReadOnly(Forwarding):
    """``device`` with every change refused."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device, writable=False)


class Concat(BaseWritableDevice):
    """``devices`` one after the other: the extent files of a disk. Writable if all of them are."""

    def __init__(self, devices: Sequence[BlockDevice], *, name: str | None = None) -> None:
        if not devices:
            raise UsageError("a row of devices needs at least one")
        first = devices[0]
        alignment = math.lcm(*(device.alignment for device in devices))
        for device in devices[:-1]:
            if device.capacity % alignment:
                raise UsageError(
                    f"{device.name}: its {device.capacity} bytes are not a multiple of {alignment}, "
                    "so nothing can follow it"
                )
        self._devices = tuple(devices)
        self._starts = [0, *itertools.accumulate(device.capacity for device in devices)]
        super().__init__(
            name=first.name if name is None else name,
            capacity=self._starts[-1],
            sector_size=first.sector_size,
            alignment=alignment,
            writable=all(device.writable for device in devices),
        )

    @property
    def io_batch(self) -> int:
        return max(device.io_batch for device in self._devices)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """``(device, offset in it, length)`` of what lies in ``[offset, offset + length)``."""
        end = offset + length
        index = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            stop = min(end, self._starts[index + 1])
            if offset < stop:
                yield index, offset - self._starts[index], stop - offset
            offset = max(offset, stop)
            index += 1

    def _shares(
        self, pieces: Sequence[tuple[int, memoryview]]
    ) -> Iterator[tuple[BlockDevice, list[tuple[int, memoryview]]]]:
        """What each device gets of a batch."""
        shares: dict[int, list[tuple[int, memoryview]]] = {}
        for offset, view in pieces:
            done = 0
            for index, inside, length in self._parts(offset, len(view)):
                shares.setdefault(index, []).append((inside, view[done : done + length]))
                done += length
        for index, share in shares.items():
            yield self._devices[index], share

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for device, share in self._shares(pieces):
            if len(share) == 1:
                device.read_into(*share[0])
            else:
                device.read_many(share)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for index, inside, part in self._parts(offset, length):
            start = self._starts[index]
            for extent in self._devices[index].extents(inside, part):
                yield Extent(start + extent.offset, extent.length, extent.kind)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        for device, share in self._shares(pieces):
            _writable(device).write_many(share)

    def _write_zeroes(self, offset: int, length: int) -> None:
        for index, inside, part in self._parts(offset, length):
            _writable(self._devices[index]).write_zeroes(inside, part)

    def _flush(self) -> None:
        for device in self._devices:
            _writable(device).flush()

    def _close(self) -> None:
        close_all(self._devices)


def _writable(device: BlockDevice) -> WritableDevice:
    if isinstance(device, WritableDevice):
        return device
    raise ReadOnlyError(f"{device.name}: opened read-only")


class _Written:
    """A growing set of byte ranges: ascending borders, every even one a start, every odd one an end."""

    def __init__(self) -> None:
        self._borders: list[int] = []
        self._lock = threading.Lock()

    def add(self, offset: int, length: int) -> None:
        with self._lock:
            borders = self._borders
            low = bisect.bisect_left(borders, offset)
            high = bisect.bisect_right(borders, offset + length)
            # An odd index lies inside a range: that range's own border stays.
            borders[low:high] = ([] if low % 2 else [offset]) + ([] if high % 2 else [offset + length])

    def at(self, position: int, end: int) -> tuple[bool, int]:
        """Whether ``position`` was written, and up to where that answer holds, ``end`` at most."""
        with self._lock:
            index = bisect.bisect_right(self._borders, position)
            stop = self._borders[index] if index < len(self._borders) else end
            return index % 2 == 1, min(stop, end)


class Overlay(BaseWritableDevice):
    """``base`` never changes: what is written goes to ``top`` and is read from there.

    ``top`` is as large as ``base`` and reads as zeroes all over; without one, writes are kept in memory.
    """

    def __init__(self, base: BlockDevice, top: WritableDevice | None = None) -> None:
        if top is None:
            top = MemoryDevice(base.capacity, name=f"writes to {base.name}")
        if top.capacity != base.capacity:
            raise UsageError(
                f"{top.name}: {top.capacity} bytes cannot cover the {base.capacity} of {base.name}"
            )
        super().__init__(
            name=base.name,
            capacity=base.capacity,
            sector_size=base.sector_size,
            alignment=math.lcm(base.alignment, top.alignment),
            writable=True,
        )
        self._base = base
        self._top = top
        self._written = _Written()

    @property
    def io_batch(self) -> int:
        return max(self._base.io_batch, self._top.io_batch)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int, int]]:
        end = offset + length
        while offset < end:
            written, stop = self._written.at(offset, end)
            yield written, offset, stop - offset
            offset = stop

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        top: list[tuple[int, memoryview]] = []
        base: list[tuple[int, memoryview]] = []
        for offset, view in pieces:
            for written, start, length in self._runs(offset, len(view)):
                part = view[start - offset : start - offset + length]
                (top if written else base).append((start, part))
        if base:
            self._base.read_many(base)
        if top:
            self._top.read_many(top)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for written, start, part in self._runs(offset, length):
            yield from (self._top if written else self._base).extents(start, part)

    def _write_from(self, offset: int, view: memoryview) -> None:
        # The bytes first: whoever sees the range as written must find them there.
        self._top.write_from(offset, view)
        self._written.add(offset, len(view))

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._top.write_many(pieces)
        for offset, view in pieces:
            self._written.add(offset, len(view))

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._top.write_zeroes(offset, length)
        self._written.add(offset, length)

    def _flush(self) -> None:
        self._top.flush()

    def _close(self) -> None:
        close_all((self._top, self._base))


class Unaligned(Forwarding):
    """Byte access to a device that wants whole sectors; a part of a sector is read, changed and written."""

    def __init__(self, device: BlockDevice) -> None:
        super().__init__(device, alignment=1)
        self._unit = device.alignment
        # Between reading a sector and writing it back nobody else may write.
        self._writers = Gate()

    def _fits(self, offset: int, length: int) -> bool:
        end = offset + length
        return offset % self._unit == 0 and (end % self._unit == 0 or end == self.capacity)

    def _around(self, offset: int, length: int) -> tuple[int, bytearray]:
        """The sectors that hold the range: their offset and a buffer for them."""
        start = offset // self._unit * self._unit
        end = min(-(-(offset + length) // self._unit) * self._unit, self.capacity)
        return start, bytearray(end - start)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        reads: list[tuple[int, memoryview]] = []
        patches: list[tuple[memoryview, memoryview]] = []
        for offset, view in pieces:
            if self._fits(offset, len(view)):
                reads.append((offset, view))
                continue
            start, sectors = self._around(offset, len(view))
            reads.append((start, memoryview(sectors)))
            patches.append((view, memoryview(sectors)[offset - start : offset - start + len(view)]))
        self._inner.read_many(reads)
        for view, part in patches:
            view[:] = part

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        whole = [piece for piece in pieces if self._fits(piece[0], len(piece[1]))]
        if whole:
            with self._writers.shared():
                self._writer().write_many(whole)
        for offset, view in pieces:
            if not self._fits(offset, len(view)):
                self._patch(offset, view)

    def _patch(self, offset: int, view: memoryview) -> None:
        start, sectors = self._around(offset, len(view))
        with self._writers.alone():
            # Only the first and the last sector can be partial, but one read is quicker than two.
            self._inner.read_into(start, sectors)
            sectors[offset - start : offset - start + len(view)] = view
            self._writer().write_from(start, sectors)

    def _write_zeroes(self, offset: int, length: int) -> None:
        end = offset + length
        head = min(end, -(-offset // self._unit) * self._unit)
        tail = max(head, end if end == self.capacity else end // self._unit * self._unit)
        if head < tail:
            with self._writers.shared():
                self._writer().write_zeroes(head, tail - head)
        for start, stop in ((offset, head), (tail, end)):
            if start < stop:
                self._patch(start, memoryview(bytes(stop - start)))
