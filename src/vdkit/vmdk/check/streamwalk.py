"""One pass over a streamOptimized extent from marker to marker, whatever its tables say.

Source of facts: VMware's "Virtual Disk Format 5.0" and streams made by ESXi, VMware Workstation, qemu,
open-vmdk and Xen Orchestra (which puts all tables behind one marker of size 0).
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.errors import LimitExceeded
from vdkit.vmdk import markers
from vdkit.vmdk.codec import InflateError, inflate
from vdkit.vmdk.header import ENTRIES_PER_TABLE, SparseHeader
from vdkit.vmdk.kinds import SECTOR

#: Grains that one stream may hold (16 bytes of memory each).
MAX_GRAINS = 1 << 24
#: Damaged grains that are remembered one by one.
MAX_DAMAGED = 1 << 16

_CHUNK = 1 << 20
_ZEROES = bytearray(_CHUNK)


class Damaged(NamedTuple):
    """A grain whose marker can be read, but not its data."""

    sector: int
    number: int
    size: int
    reason: str


@dataclass(slots=True)
class Walk:
    """What was found. Positions in sectors; ``tables`` are those that a marker announces.

    ``end`` is behind the last thing that was understood. ``tail_zeroes`` sectors of zeroes follow the last
    thing that is none; one of them is the end marker, if the file is as it should be. ``finished``: a
    directory or a footer was met, which are written last.
    """

    sectors: array[int] = field(default_factory=lambda: array("I"))
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    tables: list[int] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    junk_sectors: int = 0
    first_junk: int | None = None
    zero_gaps: int = 0
    tail_zeroes: int = 0
    end: int = 0
    grains_end: int = 0
    short_last: bool = False
    ascending: bool = True
    finished: bool = False

    def find(self, sector: int) -> int | None:
        """Index of the grain at ``sector``."""
        at = bisect.bisect_left(self.sectors, sector)
        return at if at < len(self.sectors) and self.sectors[at] == sector else None


class StreamWalker:
    """``known``: sectors of the file that hold tables, directories, footers."""

    def __init__(
        self,
        file: BlockDevice,
        header: SparseHeader,
        *,
        known: RangeSet,
        deep: bool,
        step: Callable[[int, int], None],
    ) -> None:
        self._file = file
        self._header = header
        self._known = known
        self._ends = {start: start + length for start, length in known}
        self._deep = deep
        self._step = step
        self._grain = header.grain * SECTOR
        self._largest = markers.largest_size(self._grain)
        self._data = memoryview(b"")
        self._start = 0
        self._last = file.capacity // SECTOR
        self._walk = Walk()

    def run(self) -> Walk:
        header, walk = self._header, self._walk
        position = max(header.descriptor + header.descriptor_sectors, 1)
        if position <= header.overhead <= self._last:
            position = header.overhead
        walk.end = walk.grains_end = position
        while position < self._last:
            position += self._one(position)
        return walk

    def _one(self, position: int) -> int:
        """Look at one sector; how many to go on."""
        after = self._ends.get(position)
        if after is not None:
            self._walk.end = max(self._walk.end, min(after, self._last))
            self._walk.finished = True
            return after - position
        sector = self._window(position * SECTOR, SECTOR)
        marker = markers.parse(sector)
        if marker.size == 0:
            if marker.value == 0 and marker.kind == markers.EOS:
                return self._zeroes(position)
            return self._metadata(position, marker)
        lba = marker.value
        if (
            marker.size <= self._largest
            and lba % self._header.grain == 0
            and lba < self._header.capacity
            and position * SECTOR + markers.GRAIN_HEAD + marker.size <= self._file.capacity
        ):
            return self._grain_at(position, marker, sector[12])
        return self._junk(position)

    def _grain_at(self, position: int, marker: markers.Marker, first: int) -> int:
        walk = self._walk
        number = marker.value // self._header.grain
        reason = self._problem(position, marker, first)
        if reason and first != 0x78 and not self._deep:
            return self._junk(position)
        if reason:
            if len(walk.damaged) < MAX_DAMAGED:
                walk.damaged.append(Damaged(position, number, marker.size, reason))
            if not self._follows(position, marker.size):
                return self._junk(position)
        else:
            if len(walk.numbers) >= MAX_GRAINS:
                raise LimitExceeded(f"{self._file.name}: more than {MAX_GRAINS} grains in one stream")
            if walk.numbers and walk.numbers[-1] > number:
                walk.ascending = False
            walk.sectors.append(position)
            walk.numbers.append(number)
            walk.sizes.append(marker.size)
        walk.end = walk.grains_end = position + markers.record_sectors(marker.size)
        return walk.end - position

    def _problem(self, position: int, marker: markers.Marker, first: int) -> str:
        if first != 0x78:
            return "it is no zlib stream"
        if not self._deep:
            return ""
        data = self._window(position * SECTOR, markers.GRAIN_HEAD + marker.size)
        try:
            plain = inflate(data[markers.GRAIN_HEAD :], self._grain)
        except InflateError as error:
            return f"its data cannot be unpacked ({error})"
        if len(plain) < min(self._grain, (self._header.capacity - marker.value) * SECTOR):
            return f"only {len(plain)} bytes came out of it"
        self._walk.short_last |= len(plain) < self._grain
        return ""

    def _follows(self, position: int, size: int) -> bool:
        """Behind a grain whose data is damaged comes something of a stream: its size is right."""
        position += markers.record_sectors(size)
        if position >= self._last:
            return position == self._last
        if position in self._ends:
            return True
        sector = self._window(position * SECTOR, SECTOR)
        marker = markers.parse(sector)
        if marker.size == 0:
            return marker.kind in markers.KINDS
        return marker.value % self._header.grain == 0 and marker.size <= self._largest and sector[12] == 0x78

    def _metadata(self, position: int, marker: markers.Marker) -> int:
        header, walk = self._header, self._walk
        rest = {
            markers.GT: 4,
            markers.GD: header.directory_sectors,
            markers.FOOTER: 1,
            markers.PROGRESS: 0,
        }.get(marker.kind)
        if rest is None or position + 1 + rest > self._last or marker.value not in (0, rest):
            return self._junk(position)
        if marker.kind == markers.GT:
            walk.tables.append(position + 1)
        walk.finished |= marker.kind in (markers.GD, markers.FOOTER)
        walk.end = position + 1 + rest
        return 1 + rest

    def _junk(self, position: int) -> int:
        walk = self._walk
        walk.junk_sectors += 1
        if walk.first_junk is None:
            walk.first_junk = position
        return 1

    def _zeroes(self, position: int) -> int:
        """A run of zero sectors: an end marker, padding, or both."""
        length = SECTOR
        while position * SECTOR + length < self._last * SECTOR:
            data = self._window(position * SECTOR + length, 1)
            data = self._data[position * SECTOR + length - self._start :]
            if bytearray(data) == _ZEROES[: len(data)]:
                length += len(data)
                continue
            length += len(data) - len(bytes(data).lstrip(b"\0"))
            break
        # Only whole sectors: what follows may begin with zeroes (the marker of the first grain does).
        count = max(1, min(length // SECTOR, self._last - position))
        if position + count >= self._last:
            self._walk.tail_zeroes = self._last - position
        else:
            self._walk.zero_gaps += 1
        return count

    def _window(self, position: int, length: int) -> memoryview:
        inside = position - self._start
        if inside < 0 or inside + length > len(self._data):
            self._step(position, self._file.capacity)
            size = min(max(_CHUNK, length), self._file.capacity - position)
            buffer = bytearray(size)
            self._file.read_into(position, buffer)
            self._data, self._start, inside = memoryview(buffer), position, 0
        return self._data[inside : inside + length]


def tables_from(walk: Walk) -> dict[int, array[int]]:
    """The tables that the grains make; of two grains of one place the later one counts."""
    made: dict[int, array[int]] = {}
    for sector, number in zip(walk.sectors, walk.numbers, strict=True):
        index, at = divmod(number, ENTRIES_PER_TABLE)
        table = made.get(index)
        if table is None:
            table = made[index] = array("I", bytes(ENTRIES_PER_TABLE * 4))
        table[at] = sector
    return made
