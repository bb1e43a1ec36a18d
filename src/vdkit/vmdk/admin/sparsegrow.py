"""A hosted sparse extent that becomes larger in place.

The tables of a larger disk are longer, and the grains behind them are in their way. Nothing that is in use
is ever written over: the grains in the way are copied to the end of the file, a second set of tables (with a
copy of the descriptor) is written behind them, and one write of the header's sector makes it the one in
force. Then the place at the start of the file is free for the tables of the larger disk, which the next
write of the header's sector puts in force, in VMware's own layout. What is left behind the grains is cut
off. So at every moment the header points to whole tables.

Source of facts: VMware's "Virtual Disk Format 5.0", and disks that other products grew.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from vdkit.block.device import WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.errors import CorruptDisk, LimitExceeded, NotSupported, VixError
from vdkit.vmdk.admin.subject import Progress
from vdkit.vmdk.embedded import home_header, rewrite_embedded
from vdkit.vmdk.grains import MAX_SECTOR
from vdkit.vmdk.header import ENTRIES_PER_TABLE, FLAG_REDUNDANT, TABLE_SECTORS, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.sparse import DESCRIPTOR_SECTORS, grain_tables, new_header, read_header
from vdkit.vmdk.tables import Tables, runs, u32_bytes

_EMPTY = array("I", bytes(ENTRIES_PER_TABLE * 4))
_COPY = 1 << 20


def laid_out(header: SparseHeader, capacity: int) -> SparseHeader:
    """The header of the same kind of extent for ``capacity`` sectors, in VMware's layout, with both copies of
    the tables."""
    room = max(header.descriptor_sectors, DESCRIPTOR_SECTORS) if header.descriptor else 0
    made = new_header(capacity, grain=header.grain, descriptor_sectors=room)
    return replace(made, version=header.version, flags=header.flags | FLAG_REDUNDANT)


def _with_tables_at(header: SparseHeader, sector: int) -> SparseHeader:
    area = header.directory_sectors + header.tables * TABLE_SECTORS
    flags = header.flags | FLAG_REDUNDANT
    return replace(header, flags=flags, redundant_directory=sector, directory=sector + area)


@dataclass(slots=True)
class _Move:
    """``count`` grains from file sector ``source`` on go to ``target``."""

    source: int
    count: int
    target: int


class SparseGrowth:
    """One extent file that is being grown."""

    def __init__(
        self, file: WritableDevice, *, used: int, capacity: int, descriptor: bytes | None = None
    ) -> None:
        """``used`` is what the extent line says now, in sectors; ``descriptor`` an embedded one's text.

        Refuses what cannot be done; nothing is written before :meth:`run`.
        """
        self._file = file
        self._used = used
        self._descriptor = descriptor
        found = read_header(file)
        if found.compressed:
            raise NotSupported(
                f"{file.name}: a streamOptimized extent cannot be grown in place",
                remedy="convert it to monolithicSparse first",
            )
        found.check_layout(file.capacity, file.name)
        if found.unclean:
            raise NotSupported(
                f"{file.name}: it was not closed properly when it was last written",
                remedy="check and repair it first",
            )
        self._found = found
        self._old = home_header(file, found)
        self.header = laid_out(self._old, capacity)
        self._step = found.grain
        self._end = -(-max(file.capacity // SECTOR, self.header.overhead) // self._step) * self._step
        self._moves: list[_Move] = []
        self._last = self.header.overhead
        #: The same number of tables, where they are already: only the header changes.
        self._fits = self._old.tables == self.header.tables and self._old.redundant
        self._check_descriptor()
        self._plan()

    # -- before anything is written ------------------------------------------------------------------

    def _check_descriptor(self) -> None:
        room = (self._old if self._fits else self.header).descriptor_sectors * SECTOR
        if self._descriptor is not None and len(self._descriptor) > room:
            raise LimitExceeded(
                f"{self._file.name}: descriptor of {len(self._descriptor)} bytes does not fit "
                f"its {room} bytes"
            )

    def _plan(self) -> None:
        """Which grains are in the way, where the last one ends; refuses damaged tables."""
        tables = grain_tables(self._file, self._old, self._old.directory)
        copies = None
        if self._old.redundant:
            copies = grain_tables(self._file, self._old, self._old.redundant_directory)
        for index, table in self._present(tables):
            if copies is not None and copies.table(index) != table:
                raise CorruptDisk(
                    f"{self._file.name}: the two copies of grain table {index} differ",
                    remedy="check and repair the disk first",
                )
            for _, count, entry in runs(table, 0, self._entries(index), self._step):
                if entry > 1:
                    self._take(entry, count)
        top = self._end + sum(move.count for move in self._moves) * self._step
        if (
            not self._fits
            and top + 2 * (self._old.directory_sectors + self._old.tables * TABLE_SECTORS) > MAX_SECTOR
        ):
            raise LimitExceeded(f"{self._file.name}: the file would grow past 2 TiB while its tables move")

    def _present(self, tables: Tables) -> Iterator[tuple[int, array[int]]]:
        for index in tables.present(0, self._old.tables):
            table = tables.table(index)
            if table is not None:
                yield index, table

    def _entries(self, index: int) -> int:
        """How many entries of a table stand for a part of the disk as it is."""
        grains = -(-self._used // self._step)
        return max(0, min(ENTRIES_PER_TABLE, grains - index * ENTRIES_PER_TABLE))

    def _take(self, entry: int, count: int) -> None:
        end = entry + count * self._step
        if entry < self._old.overhead or end * SECTOR > self._rounded_size():
            raise CorruptDisk(
                f"{self._file.name}: grain at sector {entry} is outside the grains of the file",
                remedy="check and repair the disk first",
            )
        low = self.header.overhead
        within = min(count, max(0, -(-(low - entry) // self._step)))
        if within:
            taken = sum(move.count for move in self._moves)
            self._moves.append(_Move(entry, within, self._end + taken * self._step))
        if within < count:
            self._last = max(self._last, end)

    def _rounded_size(self) -> int:
        grain = self._step * SECTOR
        return -(-self._file.capacity // grain) * grain

    # -- writing -------------------------------------------------------------------------------------

    def run(self, progress: Progress | None, cancel: CancelToken | None) -> None:
        size = self._file.capacity
        if cancel is not None:
            cancel.check()
        self._clear_tail()
        if self._fits:
            self._switch(replace(self._old, capacity=self.header.capacity))
            return
        try:
            parked, text = self._park_tables(self._move_grains(progress, cancel))
        except BaseException:
            # Nothing of it is in force yet.
            with suppress(VixError):
                self._file.resize(size)
            raise
        self._put_header(parked)
        self._write_tables(self.header, grain_tables(self._file, parked, parked.directory), {})
        if self.header.descriptor_sectors:
            text = text if self._descriptor is None else self._descriptor
            self._file.write_from(SECTOR, text.ljust(self.header.descriptor_sectors * SECTOR, b"\0"))
        self._put_header(self.header)
        end = max([self._last, *(move.target + move.count * self._step for move in self._moves)])
        self._file.resize(end * SECTOR)
        self._file.flush()

    def _switch(self, header: SparseHeader) -> None:
        self._clear_entries()
        if self._descriptor is None:
            self._put_header(header)
        else:
            rewrite_embedded(self._file, self._found, self._descriptor, final=header)

    def _put_header(self, header: SparseHeader) -> None:
        self._file.flush()
        self._file.write_from(0, header.pack())
        self._file.flush()

    def _clear_tail(self) -> None:
        """What the last grain holds behind the end of the disk would come into view."""
        over = self._used % self._step
        if self._file.capacity < self._rounded_size():
            self._file.resize(self._rounded_size())
        if not over:
            return
        index, within = divmod(self._used // self._step, ENTRIES_PER_TABLE)
        table = grain_tables(self._file, self._old, self._old.directory).table(index)
        if table is not None and table[within] > 1:
            self._file.write_zeroes((table[within] + over) * SECTOR, (self._step - over) * SECTOR)

    def _clear_entries(self) -> None:
        """Entries behind the end of the disk, which no writer leaves, would come into view as well."""
        for directory in (self._old.directory, self._old.redundant_directory):
            tables = grain_tables(self._file, self._old, directory)
            for index, table in list(self._present(tables)):
                keep = self._entries(index)
                if any(table[keep:]):
                    cut = table[:keep] + _EMPTY[keep:]
                    self._file.write_from(tables.place(index), u32_bytes(cut))
        self._file.flush()

    def _move_grains(self, progress: Progress | None, cancel: CancelToken | None) -> int:
        """Copies what is in the way; returns the first sector behind the copies."""
        grain = self._step * SECTOR
        total = sum(move.count for move in self._moves) * grain
        self._file.resize(self._end * SECTOR + total)
        buffer = memoryview(bytearray(_COPY))
        done = 0
        for move in self._moves:
            length = move.count * grain
            for at in range(0, length, len(buffer)):
                if cancel is not None:
                    cancel.check()
                part = buffer[: min(len(buffer), length - at)]
                self._file.read_into(move.source * SECTOR + at, part)
                self._file.write_from(move.target * SECTOR + at, part)
                done += len(part)
                if progress is not None:
                    progress(done, total)
        return self._end + total // SECTOR

    def _park_tables(self, sector: int) -> tuple[SparseHeader, bytes]:
        """Write a second set of tables at the end of the file; the header that would put it in force, and the
        text of the embedded descriptor."""
        file = self._file
        copied = self._old.descriptor_sectors if self._old.descriptor else 0
        header = _with_tables_at(
            replace(self._old, descriptor=sector if copied else self._old.descriptor), sector + copied
        )
        area = header.directory_sectors + header.tables * TABLE_SECTORS
        file.resize((header.directory + area) * SECTOR)
        text = bytearray(self._found.descriptor_sectors * SECTOR if copied else 0)
        if copied:
            file.read_into(self._found.descriptor * SECTOR, text)
            file.write_from(sector * SECTOR, text.ljust(copied * SECTOR, b"\0"))
        moved = {
            move.source + i * self._step: move.target + i * self._step
            for move in self._moves
            for i in range(move.count)
        }
        self._write_tables(header, grain_tables(file, self._old, self._old.directory), moved)
        return header, bytes(text)

    def _write_tables(self, header: SparseHeader, source: Tables, moved: dict[int, int]) -> None:
        """Both copies of all tables at the places that ``header`` names, with the entries of ``source``."""
        file = self._file
        places = (header.redundant_directory, header.directory)
        area = header.directory_sectors + header.tables * TABLE_SECTORS
        file.write_zeroes(places[0] * SECTOR, 2 * area * SECTOR)
        firsts = [place + header.directory_sectors for place in places]
        for place, first in zip(places, firsts, strict=True):
            entries = array("I", range(first, first + header.tables * TABLE_SECTORS, TABLE_SECTORS))
            file.write_from(place * SECTOR, u32_bytes(entries))
        for index, table in self._present(source):
            keep = self._entries(index)
            made = table[:keep] + _EMPTY[keep:]
            if moved:
                made = array("I", [moved.get(entry, entry) for entry in made])
            if made == _EMPTY:
                continue
            for first in firsts:
                file.write_from((first + index * TABLE_SECTORS) * SECTOR, u32_bytes(made))
