"""Changed block tracking of one disk.

A change id is ``<uuid>/<number>``: the uuid changes whenever the history is broken, the number is an epoch.
Writes belong to the open epoch; a snapshot closes it, and the id that snapshot carries is the number just
closed. So "changed since ``uuid/n`` up to a snapshot with ``uuid/m``" is the union of the epochs ``n+1 ..
m``, exactly, even for blocks written again later. The id of the running disk is the last one closed: who
saves it by mistake gets more areas than needed, never fewer.

What breaks the history (a new uuid): tracking switched off and on, a revert to a snapshot, a restart of the
host. When tracking begins on a disk that holds data, the first epoch starts with all of it marked, as hosts
were seen to do. Sources: the vSphere API reference (QueryChangedDiskAreas) and published observations,
gathered in our VADP notes; the files that a host keeps for this (``-ctk.vmdk``) are not public and not
imitated.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from vdkit.block.extent import RangeSet
from vdkit.sim.blockmap import BlockMap
from vdkit.sim.faults import FileFault, InvalidArgument, NotSupported
from vdkit.sim.vmx import uuid_to_vmx

#: Bytes per tracked block.
GRANULARITY = 1 << 16
#: Areas in one answer; the rest comes with the next call.
DEFAULT_PAGE = 2000
#: Old releases forget what lies beyond a multiple of this many bytes when a disk grows past it.
GROWTH_BOUNDARY = 128 << 30
#: The id that asks for the areas in use instead of a difference.
ANY = "*"

_CHANGE_ID = re.compile(r"^(?P<uuid>[0-9A-Fa-f -]{32,47})/(?P<epoch>[0-9]{1,18})$")


class ChangedAreas(NamedTuple):
    """One answer: it speaks of ``[start, start + length)`` only; ``areas`` are ``(offset, length)`` bytes."""

    start: int
    length: int
    areas: list[tuple[int, int]]


class ChangeTracker:
    """See the module. Any method may be called from any thread.

    ``path`` is the disk's datastore path, for messages; ``in_use`` are the byte ranges that hold data now.
    """

    def __init__(self, path: str, capacity: int, in_use: Iterable[tuple[int, int]] = ()) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._capacity = capacity
        #: The first boundary that the disk has grown past while it was tracked, in bytes.
        self.grown_past: int | None = None
        self._lost = False
        self._uuid = ""
        self._epochs: dict[int, BlockMap] = {}
        self._open = 1
        self.reset(in_use)

    # -- the life of the disk --------------------------------------------------------------------

    def reset(self, in_use: Iterable[tuple[int, int]] = ()) -> None:
        """Begin a new history: every id given out so far becomes unknown."""
        first = BlockMap()
        for offset, length in in_use:
            if length:
                first.add(offset // GRANULARITY, (offset + length - 1) // GRANULARITY)
        fresh = uuid_to_vmx("52" + uuid.uuid4().hex[2:])
        with self._mutex:
            self._uuid = fresh
            self._epochs = {1: first}
            self._open = 1
            self._lost = False

    def lose(self) -> None:
        """What a hot-remove by a backup appliance does: no question about the disk is answered any more."""
        with self._mutex:
            self._lost = True

    def record(self, offset: int, length: int) -> None:
        """A write, in bytes. Called before the bytes change, so that nothing is missed if the write fails."""
        if length:
            with self._mutex:
                self._epochs[self._open].add(offset // GRANULARITY, (offset + length - 1) // GRANULARITY)

    def freeze(self) -> str:
        """Close the epoch, as a snapshot does, and return its id."""
        with self._mutex:
            frozen = self._open
            self._open += 1
            self._epochs[self._open] = BlockMap()
            return f"{self._uuid}/{frozen}"

    def grow(self, capacity: int) -> None:
        """New space reads as zeroes and was never written, so it is no change."""
        with self._mutex:
            before, self._capacity = self._capacity, capacity
            boundary = (before // GROWTH_BOUNDARY + 1) * GROWTH_BOUNDARY
            if self.grown_past is None and capacity > boundary:
                self.grown_past = boundary

    # -- questions -------------------------------------------------------------------------------

    @property
    def change_id(self) -> str:
        """The id of the running disk: everything written after it is in some open or later epoch."""
        with self._mutex:
            return f"{self._uuid}/{self._open - 1}"

    def changed_since(self, change_id: str, until: str | None = None) -> RangeSet:
        """All changes after ``change_id`` up to the id of a snapshot, or up to now."""
        since = self._parse(change_id, "changeId")
        with self._mutex:
            if self._lost:
                raise InvalidArgument("deviceKey")
            last = self._open
            if until is not None:
                frozen = self._parse(until, "snapshot")
                last = self._known(frozen, until)
            first = self._known(since, change_id)
            if first > last:
                # An empty answer would be taken for "nothing changed".
                raise InvalidArgument("changeId", f"{change_id} is newer than the snapshot")
            union = BlockMap()
            for epoch in range(first + 1, last + 1):
                union.update(self._epochs[epoch])
            capacity = self._capacity
        ranges = RangeSet((block * GRANULARITY, count * GRANULARITY) for block, count in union.runs())
        return ranges.clip(0, capacity)

    def require_answer(self) -> None:
        """Raises the fault of a disk whose tracking was lost."""
        with self._mutex:
            if self._lost:
                raise InvalidArgument("deviceKey")

    def _parse(self, change_id: str, argument: str) -> tuple[str, int]:
        match = _CHANGE_ID.match(change_id)
        if match is None:
            raise InvalidArgument(argument, f"{change_id[:80]!r} is not a change id")
        return match["uuid"], int(match["epoch"])

    def _known(self, parsed: tuple[str, int], text: str) -> int:
        name, epoch = parsed
        if name != self._uuid or epoch >= self._open:
            raise FileFault(self.path, f"change id {text} is not known: tracking was reset after it")
        return epoch


def page_of(ranges: RangeSet, start: int, capacity: int, *, page: int = DEFAULT_PAGE) -> ChangedAreas:
    """The answer that begins at ``start``: at most ``page`` areas, and how far it speaks.

    The caller asks again at ``start + length`` until that is ``capacity``.
    """
    if not 0 <= start < capacity:
        raise InvalidArgument("startOffset")
    areas: list[tuple[int, int]] = []
    for offset, length in ranges.clip(start, capacity - start):
        if len(areas) == page:
            # Silent about what lies beyond the last area given, even the gap: the next call says it.
            end = areas[-1][0] + areas[-1][1]
            return ChangedAreas(start, end - start, areas)
        areas.append((offset, length))
    return ChangedAreas(start, capacity - start, areas)


def disabled(path: str) -> NotSupported:
    """The fault of a disk that is not tracked."""
    return NotSupported(f"Change tracking is not active on disk {path}")
