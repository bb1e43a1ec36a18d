"""What the grain tables of one extent may say, and what to make of two copies that disagree.

Source of facts: VMware's "Virtual Disk Format 5.0" (both copies are updated at each allocation, so that
after a crash they differ by entries that one of them does not have yet).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from vdkit.vmdk.kinds import SECTOR


class Fault(Enum):
    """What can be wrong with one entry of a grain table."""

    OUTSIDE = "grain-outside-file"
    METADATA = "grain-in-metadata"
    TRUNCATED = "grain-truncated"
    ZERO_MARK = "zero-mark-without-flag"


class Choice(Enum):
    """What becomes of an entry; the order of trust when both copies hold something usable."""

    SAME = "same"
    PRIMARY = "primary"
    REDUNDANT = "redundant"
    EXTEND = "extend"
    LOST = "lost"


class Decision(NamedTuple):
    entry: int
    choice: Choice
    fault: Fault | None
    other: int
    """What the copy that was not chosen says."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One extent's geometry, in sectors, but ``file_bytes`` and ``start`` (where it begins in the disk)."""

    where: str
    entries: int
    grain: int
    capacity: int
    lowest: int
    file_bytes: int
    zero_entries: bool
    start: int = 0

    @property
    def table_sectors(self) -> int:
        return -(-self.entries * 4 // SECTOR)

    @property
    def grains(self) -> int:
        return -(-self.capacity // self.grain)

    @property
    def tables(self) -> int:
        return -(-self.grains // self.entries)

    @property
    def last_whole(self) -> int:
        """The highest sector at which a whole grain is inside the file; may be negative."""
        return self.file_bytes // SECTOR - self.grain

    def fault(self, number: int, entry: int) -> Fault | None:
        """What is wrong with the entry of grain ``number``."""
        if entry == 0:
            return None
        if entry == 1:
            return None if self.zero_entries else Fault.ZERO_MARK
        if entry < self.lowest:
            return Fault.METADATA
        if entry <= self.last_whole:
            return None
        if entry * SECTOR >= self.file_bytes:
            return Fault.OUTSIDE
        needed = min(self.grain, self.capacity - number * self.grain)
        return Fault.TRUNCATED if entry * SECTOR + needed * SECTOR > self.file_bytes else None

    def decide(self, number: int, primary: int, redundant: int) -> Decision:
        fault = self.fault(number, primary)
        if primary == redundant:
            return self._alone(primary, fault, Choice.SAME)
        other = self.fault(number, redundant)
        if fault is None and (other is not None or primary != 0):
            return Decision(primary, Choice.PRIMARY, other, redundant)
        if other is None:
            return Decision(redundant, Choice.REDUNDANT, fault, primary)
        if fault is Fault.TRUNCATED:
            return Decision(primary, Choice.EXTEND, fault, redundant)
        if other is Fault.TRUNCATED:
            return Decision(redundant, Choice.EXTEND, other, primary)
        return Decision(0, Choice.LOST, fault, redundant)

    @staticmethod
    def _alone(entry: int, fault: Fault | None, choice: Choice) -> Decision:
        if fault is None:
            return Decision(entry, choice, None, entry)
        if fault is Fault.TRUNCATED:
            return Decision(entry, Choice.EXTEND, fault, entry)
        return Decision(0, Choice.LOST, fault, entry)

    def decisions(
        self, index: int, primary: array[int] | None, redundant: array[int] | None
    ) -> Iterator[tuple[int, Decision]]:
        """``(number of the grain, decision)`` for the entries of table ``index`` that need one."""
        first = index * self.entries
        count = min(self.entries, self.grains - first)
        one = primary if primary is not None else redundant
        two = redundant if redundant is not None else primary
        if one is None or two is None:
            return
        for i in range(count):
            a, b = one[i], two[i]
            if a == b and (a == 0 or self.lowest <= a <= self.last_whole):
                continue
            made = self.decide(first + i, a, b)
            if made.fault is not None or made.choice is not Choice.SAME:
                yield first + i, made

    def run(self, number: int, count: int = 1) -> tuple[int, int]:
        """Bytes of the disk that ``count`` grains from ``number`` on hold: offset and length."""
        begin = number * self.grain
        end = min(self.capacity, begin + count * self.grain)
        return self.start + begin * SECTOR, (end - begin) * SECTOR
