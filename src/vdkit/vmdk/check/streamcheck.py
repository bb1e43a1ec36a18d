"""Check of a streamOptimized extent: footer, markers, tables, end; with ``deep`` every grain's data too.

Source of facts: VMware's "Virtual Disk Format 5.0"; what readers refuse or misread was found by trying them
(a stream whose end marker is not its last sector, grains out of order, a short last grain).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.errors import FormatError
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.directory import Area, Directory, examine, read_directory, slabs
from vdkit.vmdk.check.report import FileReport, Severity
from vdkit.vmdk.check.shape import Shape
from vdkit.vmdk.check.streamwalk import StreamWalker, Walk
from vdkit.vmdk.check.tablecheck import report_directories
from vdkit.vmdk.header import ENTRIES_PER_TABLE, GD_AT_END, TABLE_SECTORS, SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.streamscan import find_footer
from vdkit.vmdk.tables import u32s


@dataclass(slots=True)
class StreamState:
    """``copies`` is empty if there are no tables to follow; ``footer`` says why."""

    header: SparseHeader
    shape: Shape
    copies: list[Directory]
    walk: Walk
    footer: str
    at_end: bool


def look_at_stream(ctx: Context, file: BlockDevice, header: SparseHeader, start: int) -> StreamState:
    """Read all of it; nothing is reported."""
    shape = Shape(
        where=file.name,
        entries=ENTRIES_PER_TABLE,
        grain=header.grain,
        capacity=header.capacity,
        lowest=max(1, header.overhead),
        file_bytes=file.capacity,
        zero_entries=header.zero_grains,
        start=start,
    )
    at_end = header.directory == GD_AT_END
    footer_problem, tables = "", header
    if at_end:
        try:
            found = find_footer(file, header, recover=False)
        except FormatError as error:
            found, footer_problem = None, error.message
        if found is None:
            footer_problem = footer_problem or f"{file.name}: no footer before the end of the file"
        else:
            tables = found
    copies: list[Directory] = []
    if not footer_problem:
        copies = _directories(file, header, tables, shape)
    known = _known(shape, copies)
    walker = StreamWalker(
        file,
        header,
        known=known,
        deep=ctx.deep,
        step=lambda done, total: ctx.step(file.name, done, total),
    )
    return StreamState(header, shape, copies, walker.run(), footer_problem, at_end)


def _directories(
    file: BlockDevice, header: SparseHeader, tables: SparseHeader, shape: Shape
) -> list[Directory]:
    copies = [read_directory(file, shape, "grain directory", tables.directory)]
    places = [tables.directory]
    second = tables.redundant_directory
    if tables.redundant and 0 < second <= file.capacity // SECTOR - tables.directory_sectors:
        copies.append(read_directory(file, shape, "redundant grain directory", second))
        places.append(second)
    areas = [Area(0, 1, "header")]
    areas += [Area(place, place + header.directory_sectors, "grain directory") for place in places]
    if header.descriptor:
        areas.append(Area(header.descriptor, header.descriptor + header.descriptor_sectors, "descriptor"))
    examine(file, shape, copies, areas)
    return copies


def _known(shape: Shape, copies: Sequence[Directory]) -> RangeSet:
    sectors = -(-shape.tables * 4 // SECTOR)
    made = [(copy.sector, sectors) for copy in copies]
    for copy in copies:
        made += [
            (sector, TABLE_SECTORS) for i, sector in enumerate(copy.entries) if sector and i not in copy.bad
        ]
    return RangeSet(made)


def check_stream(ctx: Context, file: BlockDevice, header: SparseHeader, *, start: int) -> StreamState:
    state = look_at_stream(ctx, file, header, start)
    where, walk = file.name, state.walk
    if state.footer:
        ctx.error(
            "H7" if "contradict" in state.footer else "S1",
            "footer",
            where,
            state.footer.removeprefix(f"{where}: "),
            offset=max(0, file.capacity - 2 * SECTOR),
            repair="read the stream through and write new tables, footer and end marker",
        )
    report_directories(ctx, state.shape, state.copies)
    allocated = len(walk.sectors)
    if state.copies:
        allocated = _compare(ctx, file, state)
    _report_walk(ctx, state)
    _report_tail(ctx, file, state)
    ctx.reporter.files.append(
        FileReport(where, file.capacity, state.shape.grains, allocated, walk.junk_sectors * SECTOR)
    )
    return state


def _compare(ctx: Context, file: BlockDevice, state: StreamState) -> int:
    """Tables against the grains that are there; how many grains are both."""
    walk, shape = state.walk, state.shape
    used = bytearray(len(walk.sectors))
    damaged = {damage.sector for damage in walk.damaged}
    for slab in slabs(file, shape, state.copies):
        data = slab.primary if slab.primary is not None else slab.redundant
        assert data is not None
        entries = u32s(data)
        if slab.redundant is not None and slab.primary is not None and slab.primary != slab.redundant:
            ctx.error(
                "T2",
                "tables-differ",
                shape.where,
                f"of {slab.tables} grain tables from {slab.first} on the redundant copies differ",
                repair="write both from the grains that are there",
            )
        _check_entries(ctx, state, slab.first, entries, used, damaged)
    listed = _Listed(file, state)
    for at, mark in enumerate(used):
        if not mark:
            _report_unused(ctx, state, at, listed)
    return sum(used)


def _check_entries(
    ctx: Context, state: StreamState, index: int, entries: array[int], used: bytearray, damaged: set[int]
) -> None:
    walk, shape = state.walk, state.shape
    first = index * shape.entries
    for i, entry in enumerate(entries):
        if entry == 0 or (entry == 1 and shape.zero_entries) or first + i >= shape.grains:
            continue
        at = walk.find(entry)
        if at is not None and walk.numbers[at] == first + i:
            used[at] = 1
            continue
        if entry in damaged:
            continue  # told with the grain itself
        start, length = shape.run(first + i)
        what = "is no grain" if at is None else f"is grain {walk.numbers[at]} of the disk"
        ctx.error(
            "S1",
            "grain-entry",
            shape.where,
            f"grain {first + i} of the disk is said to be at sector {entry}, but what is there {what}",
            offset=entry * SECTOR,
            repair="enter the place where the stream has that grain, else 0: what it held is lost",
            start=start,
            length=length,
        )


class _Listed:
    """What the tables say of single grains."""

    def __init__(self, file: BlockDevice, state: StreamState) -> None:
        self._file = file
        self._state = state
        self._index = -1
        self._table: array[int] | None = None

    def entry(self, number: int) -> int:
        index, at = divmod(number, ENTRIES_PER_TABLE)
        if index != self._index:
            sector = next((c.usable(index) for c in self._state.copies if c.usable(index)), 0)
            self._index, self._table = index, None
            if sector:
                data = bytearray(ENTRIES_PER_TABLE * 4)
                self._file.read_into(sector * SECTOR, data)
                self._table = u32s(data)
        return self._table[at] if self._table is not None else 0


def _report_unused(ctx: Context, state: StreamState, at: int, listed: _Listed) -> None:
    walk, shape = state.walk, state.shape
    number, sector = walk.numbers[at], walk.sectors[at]
    start, length = shape.run(number)
    entry = listed.entry(number)
    if entry > 1 and walk.find(entry) is not None:
        ctx.error(
            "O1",
            "grain-superseded",
            shape.where,
            f"grain {number} of the disk is at sector {sector} too; the tables name another place",
            offset=sector * SECTOR,
            severity=Severity.LEAK,
        )
        return
    if entry:
        return  # told as a wrong entry
    ctx.error(
        "S1",
        "grain-unlisted",
        shape.where,
        f"grain {number} of the disk is at sector {sector}, but the tables do not say so",
        offset=sector * SECTOR,
        repair="enter it in the tables",
        start=start,
        length=length,
    )


def _report_walk(ctx: Context, state: StreamState) -> None:
    walk, shape = state.walk, state.shape
    for damage in walk.damaged:
        start, length = shape.run(damage.number)
        ctx.error(
            "S1",
            "grain-damaged",
            shape.where,
            f"grain {damage.number} of the disk at sector {damage.sector} is damaged: {damage.reason}",
            offset=damage.sector * SECTOR,
            repair="make it read as zeroes; what it held is lost",
            start=start,
            length=length,
        )
    if walk.junk_sectors and walk.first_junk is not None:
        ctx.error(
            "S1",
            "stream-junk",
            shape.where,
            f"{walk.junk_sectors} sectors are no part of a stream",
            offset=walk.first_junk * SECTOR,
            severity=Severity.LEAK,
        )
    if not walk.ascending:
        ctx.note(
            "S1",
            "stream-order",
            shape.where,
            "the grains are not in ascending order: readers that take the stream as it comes fail",
        )
    if walk.short_last:
        ctx.note(
            "S1",
            "stream-short-grain",
            shape.where,
            "the last grain is not stored at its full size: VirtualBox and 7-Zip fail on it",
        )
    if walk.zero_gaps:
        ctx.note(
            "S1",
            "stream-gap",
            shape.where,
            f"{walk.zero_gaps} runs of zeroes inside the stream look like its end",
        )


def _report_tail(ctx: Context, file: BlockDevice, state: StreamState) -> None:
    """Exactly one end marker, as the last sector."""
    walk, where = state.walk, file.name
    if state.footer:
        return
    odd = file.capacity % SECTOR
    if walk.tail_zeroes == 1 and not odd:
        return
    if walk.tail_zeroes > 1 or odd:
        text = f"{max(0, walk.tail_zeroes - 1) * SECTOR + odd} bytes follow the end marker"
    else:
        text = "the end marker is missing"
    # Where the tables come first nobody needs the end, but VMware's importers count on it.
    severity = Severity.ERROR if state.at_end else Severity.NOTE
    ctx.error(
        "S1",
        "stream-end",
        where,
        f"{text}: it must be the last sector, once",
        offset=walk.end * SECTOR,
        repair="cut or extend the file so that the end marker is its last sector",
        severity=severity,
    )
