"""An extent file made of grains behind two-level tables, in place readable and writable.

What hosted sparse extents and COWD deltas have in common: reading through the tables, growing at the end of
the file, and the order of writes that survives a crash. New grains are entered in the tables in memory
only; a flush makes the data durable first and publishes the tables after it. So whatever subset of the
writes between two flushes reaches the disk, a published entry never points to bytes that are not there.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.merge import Placement
from vdkit.errors import CorruptDisk, LimitExceeded, ReadOnly, UsageError
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import Tables, map_extents, map_runs, runs

#: The file is grown by this many bytes (a hole) at a time; closing trims it.
GROWTH = 64 << 20
#: Tables changed in memory before they are published without being asked.
MAX_DIRTY_TABLES = 1024
#: Table entries are 32-bit sector numbers.
MAX_SECTOR = 0xFFFFFFFF

_ZEROES = memoryview(bytes(1 << 20))


def _no_sync() -> None:
    """Writing out is left to the operating system."""


def fill_zeroes(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = view[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]


def entry_kind(entry: int, name: str, *, has_parent: bool, zero_entries: bool) -> ExtentKind:
    """What a grain table's entry says; 1 means zeroes only where the header allows it (``zero_entries``)."""
    if entry == 0:
        return ExtentKind.ABSENT if has_parent else ExtentKind.ZERO
    if entry == 1:
        if not zero_entries:
            raise CorruptDisk(f"{name}: a grain table points to sector 1, which is not a grain")
        return ExtentKind.ZERO
    return ExtentKind.DATA


def read_absent(name: str, offset: int, view: memoryview, *, has_parent: bool) -> None:
    """A grain without an entry reads as zeroes, unless it is the parent's to say what it holds."""
    if has_parent:
        raise UsageError(f"{name}: {len(view)} bytes at {offset} are not in this link, but in its parent")
    fill_zeroes(view)


class GrainExtent(BaseWritableDevice):
    """``grain`` in bytes; ``lowest`` is the first sector that may hold a grain."""

    #: Zeroes written over a whole grain hide what a parent has there, without being stored.
    zeroes_hide_parent = True
    #: Entry 1 may be written, not only read.
    _marks_zeroes = False

    def __init__(
        self,
        file: BlockDevice | WritableDevice,
        tables: Tables,
        *,
        capacity: int,
        grain: int,
        lowest: int,
        has_parent: bool,
        zero_entries: bool,
        durable: bool,
    ) -> None:
        """Takes over ``file``. ``zero_entries``: entry 1 means zeroes. Not ``durable``: close does not
        sync.
        """
        super().__init__(
            name=file.name, capacity=capacity, writable=isinstance(file, WritableDevice) and file.writable
        )
        self._file = file
        # Asked once: telling whether an object keeps a protocol is slow.
        self._out = file if isinstance(file, WritableDevice) else None
        self._tables = tables
        self._grain = grain
        self._step = grain // SECTOR
        #: New grains begin at multiples of this, in bytes.
        self._unit = grain
        self._span = tables.entries * grain
        self._lowest = lowest
        self._has_parent = has_parent
        self._zero_entries = zero_entries
        self._durable = durable
        self._lock = threading.Condition()
        self._begin_lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._begun = False
        self._next = 0
        self._dirty: dict[int, array[int]] = {}
        self._publishing: dict[int, array[int]] = {}
        self._filling: list[tuple[int, int, int]] = []

    @property
    def write_unit(self) -> int:
        """Bytes of a grain: what a chain completes from the parents before it writes."""
        return self._grain

    # -- what the formats differ in ----------------------------------------------------------------

    @abstractmethod
    def _begin(self, file: WritableDevice) -> int:
        """Mark the file as in use; return the first sector that is free."""

    @abstractmethod
    def _new_table(self, index: int) -> array[int]:
        """A table for a range that has none yet; called with the lock held."""

    @abstractmethod
    def _publish(
        self, file: WritableDevice, dirty: Mapping[int, array[int]], sync: Callable[[], None]
    ) -> None:
        """Write the changed tables, in the order that survives a crash; ``sync`` keeps an order."""

    @abstractmethod
    def _finish(self, file: WritableDevice) -> None:
        """Mark the file as complete; everything else has been written."""

    # -- reading -----------------------------------------------------------------------------------

    def _entries(self, index: int) -> array[int] | None:
        if self._writable:
            with self._lock:
                known = self._dirty.get(index)
                if known is None:
                    known = self._publishing.get(index)
            if known is not None:
                return known
        return self._tables.table(index)

    def _read_into(self, offset: int, view: memoryview) -> None:
        for index, within, part in self._by_table(offset, view):
            table = self._entries(index)
            if table is None:
                self._read_absent(index * self._span + within, part)
                continue
            first, last = within // self._grain, -(-(within + len(part)) // self._grain)
            for at, count, entry in runs(table, first, last, self._step):
                low, high, inside = self._cut(at, count, within, len(part))
                piece = part[low:high]
                if entry > 1:
                    self._file.read_into(self._located(entry, inside, len(piece)), piece)
                elif entry == 0:
                    self._read_absent(index * self._span + within + low, piece)
                else:
                    self._kind(1)
                    fill_zeroes(piece)

    def _by_table(self, offset: int, view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """``(table, offset in its range, part of the view)``."""
        done = 0
        while done < len(view):
            index, within = divmod(offset + done, self._span)
            length = min(self._span - within, len(view) - done)
            yield index, within, view[done : done + length]
            done += length

    def _cut(self, at: int, count: int, within: int, length: int) -> tuple[int, int, int]:
        """A run of grains against a request: the part ``[low, high)`` of it, and where in the run it
        begins.
        """
        start = at * self._grain
        low = max(0, start - within)
        high = min(length, start + count * self._grain - within)
        return low, high, within + low - start

    def _located(self, entry: int, inside: int, length: int) -> int:
        """Offset in the file of the bytes ``inside`` a run of grains; refuses what is not a grain's place."""
        position = entry * SECTOR + inside
        if entry < self._lowest or position + length > self._file.capacity:
            raise CorruptDisk(
                f"{self._name}: grain at sector {entry} is outside the grains of the file "
                f"(sectors {self._lowest} to {self._file.capacity // SECTOR})",
                remedy="the file was cut short or its grain tables are damaged",
            )
        return position

    def _read_absent(self, offset: int, view: memoryview) -> None:
        read_absent(self._name, offset, view, has_parent=self._has_parent)

    def _kind(self, entry: int) -> ExtentKind:
        return entry_kind(entry, self._name, has_parent=self._has_parent, zero_entries=self._zero_entries)

    def _map_runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        return map_runs(
            self._tables, offset, length, self._grain, lookup=self._entries, touched=self._touched
        )

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return map_extents(self._map_runs(offset, length), self._kind)

    @property
    def most_data(self) -> int:
        """Bytes that the file can hold: each grain lies in it once."""
        return self._file.capacity + self._grain

    @property
    def place_unit(self) -> int | None:
        return self._grain

    @property
    def finer_map(self) -> bool:
        return False

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        """Where the grains lie; a run that leaves the file is left to ``read_into``, which says so."""
        top = self._file.capacity
        for begin, size, entry in self._map_runs(offset, length):
            if entry <= 1:
                yield Placement(begin, size, self._kind(entry))
                continue
            position = entry * SECTOR + begin % self._grain
            plain = entry >= self._lowest and position + size <= top
            yield Placement(begin, size, ExtentKind.DATA, self._file if plain else None, position)

    def _touched(self, first: int, last: int) -> list[int]:
        with self._lock:
            return sorted(i for i in {**self._dirty, **self._publishing} if first <= i < last)

    # -- writing -----------------------------------------------------------------------------------

    def _target(self) -> WritableDevice:
        """The file, marked as being written."""
        file = self._out
        if file is None:
            raise ReadOnly(f"{self._name}: opened read-only")
        if not self._begun:
            with self._begin_lock:
                if not self._begun:
                    self._next = self._begin(file)
                    if file.capacity % self._unit:  # the last grain was stored short
                        file.resize(-(-file.capacity // self._unit) * self._unit)
                    self._begun = True
        return file

    def _write_from(self, offset: int, view: memoryview) -> None:
        file = self._target()
        for index, within, part in self._by_table(offset, view):
            self._write_part(file, index, within, len(part), part)
        if len(self._dirty) > MAX_DIRTY_TABLES:
            self._flush()

    def _write_zeroes(self, offset: int, length: int) -> None:
        file = self._target()
        end = offset + length
        while offset < end:
            offset = self._next_to_clear(offset, end)
            if offset < end:
                index, within = divmod(offset, self._span)
                step = min(self._span - within, end - offset)
                self._write_part(file, index, within, step, None)
                offset += step

    def _next_to_clear(self, offset: int, end: int) -> int:
        """The first byte that clearing must touch: in a base, what is not there is zero already."""
        for run in self._extents(offset, end - offset):
            if run.kind is not ExtentKind.ZERO:
                return run.offset
        return end

    def _write_part(
        self, file: WritableDevice, index: int, within: int, length: int, data: memoryview | None
    ) -> None:
        """Write ``data``, or zeroes if None, inside the range of one table."""
        first, last = within // self._grain, -(-(within + length) // self._grain)
        fresh: list[tuple[int, int, int]] = []
        with self._lock:
            # Two writers to one new grain must not both allocate it.
            self._lock.wait_for(lambda: not self._is_filling(index, first, last))
            plan = self._plan(file, index, within, length, fresh, clearing=data is None)
            if fresh:
                self._filling.append((index, first, last))
        written = False
        try:
            for position, low, high in plan:
                if data is None:
                    file.write_zeroes(position, high - low)
                else:
                    file.write_from(position, data[low:high])
            written = True
        finally:
            if fresh:
                with self._lock:
                    if written:
                        self._enter(index, fresh)
                    self._filling.remove((index, first, last))
                    self._lock.notify_all()

    def _enter(self, index: int, fresh: list[tuple[int, int, int]]) -> None:
        table = self._changeable(index)
        for at, count, sector in fresh:
            step = self._step if sector > 1 else 0
            entries = range(sector, sector + count * step, step) if step else [sector] * count
            table[at : at + count] = array("I", entries)

    def _is_filling(self, index: int, first: int, last: int) -> bool:
        return any(i == index and f < last and first < e for i, f, e in self._filling)

    def _plan(
        self,
        file: WritableDevice,
        index: int,
        within: int,
        length: int,
        fresh: list[tuple[int, int, int]],
        *,
        clearing: bool,
    ) -> list[tuple[int, int, int]]:
        """``(offset in the file, low, high)`` of what to write; new runs of grains go to ``fresh``."""
        first, last = within // self._grain, -(-(within + length) // self._grain)
        table = self._locked_entries(index)
        pieces = [(first, last - first, 0)] if table is None else runs(table, first, last, self._step)
        plan: list[tuple[int, int, int]] = []
        for at, count, entry in pieces:
            low, high, inside = self._cut(at, count, within, length)
            if entry > 1:
                plan.append((self._located(entry, inside, high - low), low, high))
                continue
            start = index * self._span + within + low
            if clearing and not (self._has_parent and entry == 0):
                continue
            if entry == 0 and self._has_parent:
                self._check_whole(start, high - low)
            # The table first: where there is no room for it, no grain may be waiting to be entered.
            self._changeable(index)
            if clearing and self._marks_zeroes:
                fresh.append((at, count, 1))
                continue
            sector = self._reserve(file, count)
            fresh.append((at, count, sector))
            # A new grain is a hole of the file until it is written, so that zeroes need no writing.
            if not clearing:
                plan.append((sector * SECTOR + inside, low, high))
        return plan

    def _check_whole(self, offset: int, length: int) -> None:
        end = offset + length
        if offset % self._grain or (end % self._grain and end != self._capacity):
            raise UsageError(
                f"{self._name}: {length} bytes at {offset} cover a grain of {self._grain} bytes in part, "
                "and the rest of it is in the parent",
                remedy="write through the chain",
            )

    def _reserve(self, file: WritableDevice, grains: int) -> int:
        """The first sector of room for new grains at the end of the file."""
        unit = self._unit // SECTOR
        sector = -(-self._next // unit) * unit
        end = sector + grains * self._step
        self._grow(file, end)
        return sector

    def _grow(self, file: WritableDevice, end_sector: int) -> None:
        if end_sector > MAX_SECTOR:
            raise LimitExceeded(
                f"{self._name}: the file would grow past 2 TiB, which its tables cannot address"
            )
        if end_sector * SECTOR > file.capacity:
            file.resize(min(MAX_SECTOR * SECTOR, max(end_sector * SECTOR, file.capacity + GROWTH)))
        self._next = end_sector

    def _locked_entries(self, index: int) -> array[int] | None:
        known = self._dirty.get(index)
        if known is None:
            known = self._publishing.get(index)
        return known if known is not None else self._tables.table(index)

    def _changeable(self, index: int) -> array[int]:
        table = self._dirty.get(index)
        if table is None:
            known = self._locked_entries(index)
            table = self._dirty[index] = self._new_table(index) if known is None else known[:]
        return table

    # -- publishing --------------------------------------------------------------------------------

    def _flush(self) -> None:
        if not self._begun:
            return
        file = self._target()
        with self._publish_lock:
            with self._lock:
                self._publishing, self._dirty = self._dirty, {}
            try:
                if self._publishing:
                    file.flush()
                    self._publish(file, self._publishing, file.flush)
                file.flush()
            except BaseException:
                with self._lock:
                    for index, table in self._publishing.items():
                        self._dirty.setdefault(index, table)
                    self._publishing = {}
                raise
            with self._lock:
                for index, table in self._publishing.items():
                    self._tables.put(index, table)
                self._publishing = {}

    def _close(self) -> None:
        try:
            if self._begun:
                file = self._target()
                if self._durable:
                    self._flush()
                else:
                    self._publish(file, self._dirty, _no_sync)
                if file.capacity > self._next * SECTOR:
                    file.resize(self._next * SECTOR)
                self._finish(file)
                if self._durable:
                    file.flush()
        finally:
            self._file.close()
