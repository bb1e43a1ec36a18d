"""Mending directories and tables of grains, in a patch.

Every decision is one of the table in ``docs/explanation/check-and-repair.md``. Source of facts: VMware's
"Virtual Disk Format 5.0".
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable

from vdkit.errors import LimitExceeded
from vdkit.vmdk.check.directory import Directory, occupied
from vdkit.vmdk.check.options import Duplicates, Options, Outcome
from vdkit.vmdk.check.patch import Patch
from vdkit.vmdk.check.shape import Choice, Decision, Fault, Shape
from vdkit.vmdk.check.tablescan import Shared, TableScan
from vdkit.vmdk.grains import MAX_SECTOR
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.tables import u32_bytes, u32s

#: Entries on which the copies differ that are remembered, in case the grain turns out to be another's.
_MAX_TAKEN = 1 << 20
#: Rounds in which shared grains are told apart: undoing what was taken may uncover others.
_ROUNDS = 4


class TableMender:
    """``reread`` reads and examines the directories of the patch; ``geometry`` gives its present shape."""

    def __init__(
        self,
        patch: Patch,
        shape: Callable[[], Shape],
        reread: Callable[[Shape], list[Directory]],
        options: Options,
        outcome: Outcome,
        *,
        has_parent: bool,
    ) -> None:
        self._patch = patch
        self._has_parent = has_parent
        self._shape_of = shape
        self._reread = reread
        self._options = options
        self._outcome = outcome
        self._taken: dict[int, int] = {}
        self._end = 0

    def run(self) -> None:
        self._mend_directories()
        shape = self._shape_of()
        copies = self._reread(shape)
        self._mend_entries(shape, copies)
        if self._end > self._patch.capacity:
            self._patch.resize(self._end)
        self._tell_apart()

    # -- directories -------------------------------------------------------------------------------

    def _mend_directories(self) -> None:
        shape = self._shape_of()
        copies = self._reread(shape)
        for step in (self._by_layout, self._anew):
            for number, copy in enumerate(copies):
                for index in sorted(copy.bad):
                    step(shape, copies, number, index)
            if any(copy.bad for copy in copies):
                shape = self._shape_of()
                copies = self._reread(shape)

    def _by_layout(self, shape: Shape, copies: list[Directory], number: int, index: int) -> None:
        """The place that the layout has for the table."""
        copy = copies[number]
        base = copy.base
        if base is None:
            if len(copies) < 2:
                return
            base = copy.sector + -(-shape.tables * 4 // SECTOR)
        place = base + index * shape.table_sectors
        if not 0 < place <= min(shape.lowest, self._patch.capacity // SECTOR) - shape.table_sectors:
            return
        self._set(copy, index, place)
        self._outcome.say(
            f"{shape.where}: {copy.what}, entry {index}: took the table's place from the layout"
        )

    def _anew(self, shape: Shape, copies: list[Directory], number: int, index: int) -> None:
        """A new table at the end of the file, with what the other copy has."""
        copy = copies[number]
        other = next((c.usable(index) for c in copies if c.usable(index)), 0)
        data = bytearray(shape.entries * 4)
        if other:
            self._patch.read_into(other * SECTOR, data)
        elif number == 0 and not self._may_lose_table(shape, index):
            return
        elif len(copies) == 1:
            self._set(copy, index, 0)
            copy.bad.pop(index, None)
            return
        place = self._append(shape, len(data))
        self._patch.write_from(place * SECTOR, data)
        self._set(copy, index, place)
        copy.bad.pop(index, None)
        self._outcome.say(f"{shape.where}: {copy.what}, entry {index}: made a new table at sector {place}")

    def _may_lose_table(self, shape: Shape, index: int) -> bool:
        count = min(shape.entries, shape.grains - index * shape.entries)
        start, length = shape.run(index * shape.entries, count)
        if not self._options.accept_loss:
            self._outcome.blocked.append(
                f"{shape.where}: grain table {index} is lost; emptying its {length} bytes from byte {start} "
                "of the disk on needs accept_loss"
            )
            return False
        self._outcome.lose(start, length)
        return True

    def _set(self, copy: Directory, index: int, sector: int) -> None:
        copy.entries[index] = sector
        self._patch.write_from(copy.sector * SECTOR + index * 4, struct.pack("<I", sector))

    def _append(self, shape: Shape, length: int) -> int:
        """Room at the end of the file, aligned to a grain; its first sector."""
        sector = -(-self._patch.capacity // (shape.grain * SECTOR)) * shape.grain
        end = sector + -(-length // SECTOR)
        if end > MAX_SECTOR:
            raise LimitExceeded(
                f"{shape.where}: the file would grow past 2 TiB, which its tables cannot address"
            )
        self._patch.resize(end * SECTOR)
        return sector

    # -- entries -----------------------------------------------------------------------------------

    def _mend_entries(self, shape: Shape, copies: list[Directory]) -> None:
        scan = TableScan(self._patch, shape, copies, occupied(shape, copies))

        def on_table(index: int, primary: array[int] | None, redundant: array[int] | None) -> None:
            one = primary if primary is not None else redundant
            assert one is not None
            made = one[:]
            for number, decision in shape.decisions(index, primary, redundant):
                made[number % shape.entries] = decision.entry
                self._note(shape, number, decision)
            inside = shape.grains - index * shape.entries
            if inside < shape.entries:
                made[inside:] = array("I", bytes(4 * (shape.entries - inside)))
            for copy, table in zip(copies, (primary, redundant), strict=False):
                if copy.usable(index) and table != made:
                    self._patch.write_from(copy.usable(index) * SECTOR, u32_bytes(made))

        scan.run(on_table)

    def _note(self, shape: Shape, number: int, decision: Decision) -> None:
        entry, other = decision.entry, decision.other
        match decision.choice:
            case Choice.LOST:
                # Zeroes it said, and as zeroes it reads, unless a parent shows through.
                if decision.fault is not Fault.ZERO_MARK or self._has_parent:
                    self._outcome.lose(*shape.run(number))
                self._outcome.say(f"{shape.where}: emptied entries that point to no grain")
            case Choice.EXTEND:
                self._end = max(self._end, (entry + shape.grain) * SECTOR)
                start, length = shape.run(number)
                there = max(0, self._patch.capacity - entry * SECTOR)
                if there < length:
                    self._outcome.lose(start + there, length - there)
                self._outcome.say(f"{shape.where}: extended the file to the end of its last grain")
            case Choice.REDUNDANT:
                if len(self._taken) < _MAX_TAKEN:
                    self._taken[number] = other if shape.fault(number, other) is None else 0
                if decision.fault is Fault.TRUNCATED and entry <= 1:
                    self._outcome.lose(*shape.run(number))  # what there was of it
                self._outcome.say(f"{shape.where}: took entries from the redundant tables")
            case Choice.PRIMARY:
                usable = shape.fault(number, other) is None
                if entry > 1 and usable and len(self._taken) < _MAX_TAKEN:
                    self._taken[number] = other
                if entry > 1 and other > 1 and usable:
                    self._outcome.inferred.append(
                        f"{shape.where}: of two usable entries for grain {number} ({entry}, {other}) the "
                        "primary one was taken"
                    )
                self._outcome.say(f"{shape.where}: copied entries to the redundant tables")
            case Choice.SAME:
                pass

    # -- shared grains -----------------------------------------------------------------------------

    def _tell_apart(self) -> None:
        for _ in range(_ROUNDS):
            shape = self._shape_of()
            copies = self._reread(shape)
            scan = TableScan(self._patch, shape, copies, occupied(shape, copies))
            totals = scan.run(_nothing)
            if not totals.shared:
                return
            found = list(scan.shared(totals.allocated))
            if not found:
                return
            done: set[int] = set()
            for shared in found:
                if shared.number not in done:
                    done.add(shared.number)
                    self._resolve(shape, copies, shared, done)

    def _resolve(self, shape: Shape, copies: list[Directory], shared: Shared, done: set[int]) -> None:
        number = shared.number
        if number in self._taken:
            self._enter(shape, copies, number, self._taken.pop(number))
            return
        if shared.keeper in self._taken:
            # One copy was behind: that grain has been given to somebody else since.
            done.add(shared.keeper)
            self._enter(shape, copies, shared.keeper, self._taken.pop(shared.keeper))
            return
        if shared.keeper < 0:
            self._enter(shape, copies, number, 0)
            self._outcome.lose(*shape.run(number))
            self._outcome.say(f"{shape.where}: emptied entries that point into tables")
            return
        if self._options.duplicates is Duplicates.KEEP_FIRST:
            self._enter(shape, copies, number, 0)
            self._outcome.lose(*shape.run(number))
            self._outcome.say(f"{shape.where}: left shared grains to their first user")
            return
        size = shape.grain * SECTOR
        self._outcome.cloned += size
        if self._outcome.cloned > self._options.max_clone:
            raise LimitExceeded(
                f"{shape.where}: copies of shared grains would take over {self._options.max_clone} bytes",
                remedy="allow more, or keep the first user of each only",
            )
        place = self._append(shape, size)
        self._patch.copy_run(shared.sector * SECTOR, place * SECTOR, size)
        self._enter(shape, copies, number, place)
        self._outcome.say(f"{shape.where}: gave grains that were shared a copy of their own")

    def _enter(self, shape: Shape, copies: list[Directory], number: int, entry: int) -> None:
        index, at = divmod(number, shape.entries)
        for copy in copies:
            if copy.usable(index):
                self._patch.write_from(copy.usable(index) * SECTOR + at * 4, struct.pack("<I", entry))


def _nothing(index: int, primary: array[int] | None, redundant: array[int] | None) -> None:
    """The tables have been mended."""


def table_at(patch: Patch, sector: int, entries: int) -> array[int]:
    data = bytearray(entries * 4)
    patch.read_into(sector * SECTOR, data)
    return u32s(data)
