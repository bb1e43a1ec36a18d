"""Reading streamOptimized extents at any offset.

Source of facts: VMware's "Virtual Disk Format 5.0", streams exported by ESXi, and files of VMware
Workstation, qemu and open-vmdk: tables up front or behind the grains with a footer. What is read is checked
against its marker: first sector, size, and the full length of the grain.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator

from vdkit.block.device import BaseDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.merge import Placement
from vdkit.errors import CorruptDisk
from vdkit.vmdk import markers
from vdkit.vmdk.codec import InflateError, inflate
from vdkit.vmdk.grains import entry_kind, fill_zeroes, read_absent
from vdkit.vmdk.header import ENTRIES_PER_TABLE, GD_AT_END, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.streamend import whole_stream
from vdkit.vmdk.streamscan import find_footer, scan
from vdkit.vmdk.tables import Tables, TableSource, map_extents, map_runs

#: Bytes of opened grains that are kept for reads of less than a grain.
CACHE_BYTES = 8 << 20
#: Compressed bytes that are read together.
_MAX_SPAN = 4 << 20


class StreamExtent(BaseDevice):
    """A compressed "KDMV" extent; takes over ``file``."""

    def __init__(
        self,
        file: BlockDevice,
        header: SparseHeader,
        *,
        capacity: int,
        has_parent: bool = False,
        recover: bool = False,
    ) -> None:
        """``capacity`` in bytes. ``recover``: open a stream whose end is missing, for what is left of it."""
        where = file.name
        header.check_layout(file.capacity, where)
        if capacity > header.capacity * SECTOR:
            raise CorruptDisk(
                f"{where}: the descriptor gives this extent {capacity // SECTOR} sectors, "
                f"its header only {header.capacity}"
            )
        super().__init__(name=where, capacity=capacity)
        self.header = header
        self.notes: list[str] = []
        self._file = file
        self._grain = header.grain * SECTOR
        self._span = ENTRIES_PER_TABLE * self._grain
        self._largest = markers.largest_size(self._grain)
        self._has_parent = has_parent
        self._tables = self._find_tables(recover)
        self._buffers = _Buffers()
        self._cache = GrainCache(max(1, CACHE_BYTES // self._grain))

    def _find_tables(self, recover: bool) -> TableSource:
        header = self.header
        directory = header.directory
        if directory == GD_AT_END:
            footer = find_footer(self._file, header, recover=recover)
            if footer is None:
                found = scan(self._file, header, recover=recover)
                self.notes.append(found.note)
                return found
            directory = footer.directory
        tables = Tables(
            self._file,
            directory=directory * SECTOR,
            count=header.tables,
            entries=ENTRIES_PER_TABLE,
            lowest=1,
            where=self._name,
        )
        if header.directory == GD_AT_END:
            return tables
        whole, notes = whole_stream(self._file, header, tables, recover=recover)
        self.notes += notes
        return whole

    # -- reading -----------------------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, within = divmod(offset + done, self._span)
            length = min(self._span - within, len(view) - done)
            self._read_in_table(index, within, view[done : done + length])
            done += length

    def _read_in_table(self, index: int, within: int, view: memoryview) -> None:
        table = self._tables.table(index)
        if table is None:
            self._read_absent(index * self._span + within, view)
            return
        wanted: list[tuple[int, int, memoryview]] = []
        for at in range(within // self._grain, -(-(within + len(view)) // self._grain)):
            start = at * self._grain - within
            part = view[max(0, start) : start + self._grain]
            entry = table[at]
            if entry > 1:
                wanted.append((at, entry, part))
            elif entry == 0:
                self._read_absent(index * self._span + max(within, at * self._grain), part)
            else:
                self._kind(1)
                fill_zeroes(part)
        position = 0
        while position < len(wanted):
            position = self._read_together(index, within, wanted, position, table)

    def _read_together(
        self,
        index: int,
        within: int,
        wanted: list[tuple[int, int, memoryview]],
        position: int,
        table: array[int],
    ) -> int:
        """Read as many grains from ``position`` on as lie close together in the file; return the next one."""
        at, first, part = wanted[position]
        number = index * ENTRIES_PER_TABLE + at
        start = max(0, within - at * self._grain)
        if len(part) < self._size(number):
            part[:] = self._cached(number, first)[start : start + len(part)]
            return position + 1
        end = position + 1
        reach = self._largest + 2 * SECTOR
        while end < len(wanted):
            entry = wanted[end][1]
            if not 0 < (entry - wanted[end - 1][1]) * SECTOR <= reach:
                break
            if (entry - first) * SECTOR > _MAX_SPAN or len(wanted[end][2]) < self._grain:
                break
            end += 1
        last_at, last, _ = wanted[end - 1]
        data = self._read_span(first, last, self._guess_end(table, last_at, last, reach))
        for at, entry, part in wanted[position:end]:
            number = index * ENTRIES_PER_TABLE + at
            part[:] = self._open_grain(number, entry, data, (entry - first) * SECTOR)[: len(part)]
        return end

    def _guess_end(self, table: array[int], at: int, entry: int, reach: int) -> int:
        """Where the grain at ``entry`` ends at the latest, in bytes: most often where the next one begins."""
        following = table[at + 1] if at + 1 < len(table) else 0
        if 0 < (following - entry) * SECTOR <= reach:
            return following * SECTOR
        return min(entry * SECTOR + reach, self._file.capacity)

    def _read_span(self, first: int, last: int, end: int) -> memoryview:
        start = first * SECTOR
        if end - last * SECTOR < markers.GRAIN_HEAD + 4 or end > self._file.capacity:
            raise CorruptDisk(
                f"{self._name}: grain at sector {last} is past the end of the file",
                remedy="the file was cut short",
            )
        data = self._buffers.view(end - start)
        self._file.read_into(start, data)
        return data

    def _size(self, number: int) -> int:
        """Bytes of grain ``number`` that belong to the disk."""
        return min(self._grain, self._capacity - number * self._grain)

    def _cached(self, number: int, entry: int) -> bytes | bytearray:
        known = self._cache.get(number)
        if known is None:
            end = min(entry * SECTOR + self._largest + SECTOR, self._file.capacity)
            known = self._open_grain(number, entry, self._read_span(entry, entry, end), 0)
            self._cache.put(number, known)
        return known

    def _open_grain(self, number: int, entry: int, data: memoryview, position: int) -> bytes | bytearray:
        """The plain bytes of a grain whose marker is at ``position`` of ``data``."""
        place = f"{self._name}: grain {number} at sector {entry}"
        marker = markers.parse(data, position)
        lba = number * self.header.grain
        if marker.value != lba or not 0 < marker.size <= self._largest:
            raise CorruptDisk(
                f"{place}: its marker says sector {marker.value}, size {marker.size}; {lba} expected"
            )
        start = position + markers.GRAIN_HEAD
        if start + marker.size > len(data):
            # Not into the thread's buffer: the grains that were read together are still in it.
            if entry * SECTOR + markers.GRAIN_HEAD + marker.size > self._file.capacity:
                raise CorruptDisk(f"{place}: it is past the end of the file", remedy="the file was cut short")
            data = memoryview(bytearray(markers.GRAIN_HEAD + marker.size))
            self._file.read_into(entry * SECTOR, data)
            start = markers.GRAIN_HEAD
        try:
            plain = inflate(data[start : start + marker.size], self._grain)
        except InflateError as error:
            raise CorruptDisk(f"{place}: its compressed data is damaged ({error})") from error
        if len(plain) < self._size(number):
            raise CorruptDisk(f"{place}: only {len(plain)} bytes came out of it")
        return plain

    def _read_absent(self, offset: int, view: memoryview) -> None:
        read_absent(self._name, offset, view, has_parent=self._has_parent)

    # -- map ---------------------------------------------------------------------------------------

    def _kind(self, entry: int) -> ExtentKind:
        return entry_kind(
            entry, self._name, has_parent=self._has_parent, zero_entries=self.header.zero_grains
        )

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return map_extents(self._map_runs(offset, length), self._kind)

    def _map_runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        return map_runs(self._tables, offset, length, self._grain, self._tables.table)

    @property
    def most_data(self) -> int:
        """Bytes that the file can hold: a grain takes at least one sector."""
        return self._file.capacity // SECTOR * self._grain

    @property
    def place_unit(self) -> int | None:
        return self._grain

    @property
    def finer_map(self) -> bool:
        return False

    def placements(self, offset: int, length: int) -> Iterator[Placement]:
        """Compressed bytes lie nowhere as they are: all data is left to ``read_into``."""
        for begin, size, entry in self._map_runs(offset, length):
            yield Placement(begin, size, self._kind(min(entry, 2)))

    def _close(self) -> None:
        self._cache.clear()
        self._file.close()


class _Buffers(threading.local):
    """A buffer for compressed bytes per thread: a new one for every read costs as much as the read."""

    def __init__(self) -> None:
        self._held = memoryview(b"")

    def view(self, length: int) -> memoryview:
        """``length`` bytes, valid until this thread asks again."""
        if length > len(self._held):
            self._held = memoryview(bytearray(-(-length // (1 << 18)) * (1 << 18)))
        return self._held[:length]


class GrainCache:
    """The grains opened last, for reads of less than a grain."""

    def __init__(self, grains: int) -> None:
        self._grains = grains
        self._lock = threading.Lock()
        self._held: OrderedDict[int, bytes | bytearray] = OrderedDict()

    def get(self, number: int) -> bytes | bytearray | None:
        with self._lock:
            known = self._held.get(number)
            if known is not None:
                self._held.move_to_end(number)
            return known

    def put(self, number: int, plain: bytes | bytearray) -> None:
        with self._lock:
            self._held[number] = plain
            while len(self._held) > self._grains:
                self._held.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
