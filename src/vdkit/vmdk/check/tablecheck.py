"""Findings about the directories and tables of one extent: rules G1, T1, T2 and O1.

Source of facts: VMware's "Virtual Disk Format 5.0" and the classes of damage that VMware's own checker is
publicly known to report.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from vdkit.block.device import BlockDevice
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.directory import Directory, occupied
from vdkit.vmdk.check.report import FileReport, Severity
from vdkit.vmdk.check.shape import Choice, Decision, Fault, Shape
from vdkit.vmdk.check.tablescan import TableScan
from vdkit.vmdk.kinds import SECTOR

_FAULTS = {
    Fault.OUTSIDE: "points past the end of the file",
    Fault.METADATA: "points into the header or the tables",
    Fault.TRUNCATED: "points to a grain that the end of the file cuts off",
    Fault.ZERO_MARK: "is 1 (zeroes), which the header's flags do not allow",
}


def report_directories(ctx: Context, shape: Shape, copies: Sequence[Directory]) -> None:
    """Rule G1, from what ``examine`` has found."""
    for copy in copies:
        for index, reason in sorted(copy.bad.items()):
            start, length = shape.run(
                index * shape.entries, min(shape.entries, shape.grains - index * shape.entries)
            )
            ctx.error(
                "G1",
                "directory-entry",
                shape.where,
                f"entry {index} of the {copy.what}, {copy.entries[index]}, is {reason}",
                offset=copy.sector * SECTOR + index * 4,
                expected="" if copy.base is None else copy.base + index * shape.table_sectors,
                found=copy.entries[index],
                repair="take its place from the layout, or else copy the other directory's table",
                start=start,
                length=length,
            )


class _Tables:
    """Says what is odd about a table."""

    def __init__(self, ctx: Context, shape: Shape, copies: Sequence[Directory], absent: str) -> None:
        self._ctx = ctx
        self._shape = shape
        self._copies = copies
        self._absent = absent

    def on_table(self, index: int, primary: array[int] | None, redundant: array[int] | None) -> None:
        group: list[tuple[int, Decision]] = []
        for number, decision in self._shape.decisions(index, primary, redundant):
            if group and not self._continues(group[-1], number, decision):
                self._say(index, group)
                group = []
            group.append((number, decision))
        if group:
            self._say(index, group)
        self._past_the_end(index, primary if primary is not None else redundant)

    @staticmethod
    def _continues(last: tuple[int, Decision], number: int, decision: Decision) -> bool:
        one = last[1]
        return (
            number == last[0] + 1
            and decision.choice is one.choice
            and decision.fault is one.fault
            and (decision.entry == decision.other) == (one.entry == one.other)
        )

    def _say(self, index: int, group: list[tuple[int, Decision]]) -> None:
        number, decision = group[0]
        shape = self._shape
        start, length = shape.run(number, len(group))
        at = self._copies[0].usable(index) or self._copies[-1].usable(index)
        offset = at * SECTOR + number % shape.entries * 4
        first = f"entry {number % shape.entries} of grain table {index}"
        what = first if len(group) == 1 else f"{len(group)} entries from {first}"
        fault = _FAULTS[decision.fault] if decision.fault is not None else ""
        match decision.choice:
            case Choice.LOST:
                assert decision.fault is not None
                kind, code = decision.fault.value, "T1"
                text = f"{what}: {decision.other} {fault}"
                repair = f"make it 0: the range then reads as {self._absent}; what it held is lost"
            case Choice.EXTEND:
                kind, code = Fault.TRUNCATED.value, "T1"
                text = f"{what}: {decision.entry} {fault}"
                repair = "extend the file with zeroes to the end of the grain"
            case Choice.PRIMARY:
                kind, code = "tables-differ", "T2"
                text = f"{what} is {decision.entry}, in the redundant copy {decision.other}"
                text += f", which {fault}" if fault else ""
                repair = "copy the primary entry to the redundant table"
            case Choice.REDUNDANT | Choice.SAME:
                kind, code = "tables-differ", "T2"
                text = f"{what} is {decision.other}, in the redundant copy {decision.entry}"
                text += f"; the primary one {fault}" if fault else ""
                repair = "copy the redundant entry to the primary table, if nothing else uses that grain"
        self._ctx.error(
            code, kind, shape.where, text, offset=offset, found=decision.other if fault else decision.entry,
            expected=decision.entry if code == "T2" else "", repair=repair, start=start, length=length,
        )  # fmt: skip

    def _past_the_end(self, index: int, table: array[int] | None) -> None:
        inside = self._shape.grains - index * self._shape.entries
        if table is None or inside >= self._shape.entries:
            return
        count = sum(entry != 0 for entry in table[inside:])
        if count:
            self._ctx.error(
                "T1",
                "entry-past-capacity",
                self._shape.where,
                f"{count} entries of grain table {index} are for grains behind the end of the disk",
                repair="make them 0",
                severity=Severity.LEAK,
            )


def check_tables(
    ctx: Context,
    file: BlockDevice,
    shape: Shape,
    copies: Sequence[Directory],
    *,
    has_parent: bool,
    used_end: int | None = None,
    aligned: bool = True,
) -> None:
    """``used_end``: the first free sector, if the format keeps one; else the end of the file."""
    report_directories(ctx, shape, copies)
    tables = _Tables(ctx, shape, copies, "the parent's" if has_parent else "zeroes")
    scan = TableScan(
        file, shape, copies, occupied(shape, copies), lambda done, total: ctx.step(shape.where, done, total)
    )
    totals = scan.run(tables.on_table)
    lost = 0
    if totals.shared:
        for shared in scan.shared(totals.allocated):
            lost += 1
            _say_shared(ctx, shape, shared.sector, shared.number, shared.keeper)
    if totals.unaligned and aligned and not lost:
        ctx.note(
            "T1",
            "grain-unaligned",
            shape.where,
            f"{totals.unaligned} grains do not begin at a multiple of the grain size",
        )
    end = shape.file_bytes // SECTOR if used_end is None else min(used_end, shape.file_bytes // SECTOR)
    begin = -(-shape.lowest // shape.grain) * shape.grain if aligned else shape.lowest
    leaked = end - begin - (totals.used - lost * shape.grain)
    if leaked >= (shape.grain if aligned else max(1, shape.grain)):
        where = totals.first_orphan
        ctx.error(
            "O1",
            "unreferenced",
            shape.where,
            f"{leaked * SECTOR} bytes of the file are used by nothing",
            offset=None if where is None else where * SECTOR,
            repair="none in place; defragmenting or converting the disk gives them back",
            severity=Severity.LEAK,
        )
    ctx.reporter.files.append(
        FileReport(
            shape.where,
            shape.file_bytes,
            shape.grains,
            totals.allocated,
            max(0, leaked) * SECTOR if leaked >= shape.grain else 0,
        )
    )


def _say_shared(ctx: Context, shape: Shape, sector: int, number: int, keeper: int) -> None:
    start, length = shape.run(number)
    if keeper < 0:
        kind, text = "grain-in-metadata", "which is inside a grain table"
        repair = "make it 0; what it held is lost"
    else:
        kind = "grain-shared"
        text = f"as does grain {keeper} of the disk (byte {shape.run(keeper)[0]})"
        repair = "give the grain a copy of its own (or keep the first only)"
    ctx.error(
        "T1", kind, shape.where, f"grain {number} of the disk points to sector {sector}, {text}",
        offset=sector * SECTOR, repair=repair, start=start, length=length,
    )  # fmt: skip
