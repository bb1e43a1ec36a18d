"""Change tracking that cannot be misused.

The order is the whole point. A change id belongs to the snapshot whose data were read; an id read at another
moment, or a map that was not read to its end, loses writes silently. :class:`ChangeQuery` is the order as a
state machine::

    FRESH --save_ids--> SAVED --changed_areas / full--> per disk: MAPPING -> COMPLETE --next_id
      any state --close--> CLOSED

Any other order of calls raises UsageError. A map is an iterator that asks page after page until the end of
the disk; ``*`` is not accepted as an id, because it speaks of allocation and not of content.

Sources: the vSphere Web Services API reference (QueryChangedDiskAreas, DiskChangeInfo), and the reports of
users gathered in our notes on change tracking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import TracebackType
from typing import Any, Final, Self

from pyVmomi import vim, vmodl

from vdkit.block.extent import RangeSet
from vdkit.errors import (
    ChangeTrackingError,
    NotSupported,
    TrackingOff,
    TrackingReset,
    UsageError,
)
from vdkit.vsphere import tasks
from vdkit.vsphere.consolidation import is_outstanding, merges_running
from vdkit.vsphere.faults import from_area_query
from vdkit.vsphere.hardware import disks as disks_of
from vdkit.vsphere.inventory import get_machine
from vdkit.vsphere.known_faults import host_product, losing_changes
from vdkit.vsphere.model import Tracking, VirtualDisk, VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session
from vdkit.vsphere.snapshots import NAME_PREFIX, tag, temporary_snapshot

#: Answers per disk: a 62 TiB disk with every second block changed needs about a quarter of it.
MAX_PAGES: Final = 1 << 20
#: Areas in one answer; hosts send about two thousand.
MAX_AREAS: Final = 1 << 20
#: Areas of a map that are kept apart; the bound on memory. A 62 TiB disk may have 500 million.
MAX_KEPT: Final = 1 << 20
#: Bytes of a gap that is read with its neighbours, when a map has to be kept coarser; doubled as needed.
FIRST_GAP: Final = 1 << 16

_RESET_REMEDY: Final = "take a full backup, or compare the whole disk with the last one"


# -- switching it on ---------------------------------------------------------------------------------


def enable(session: Session, vm: VirtualMachine, *, run: str) -> VirtualMachine:
    """Enable change tracking and start it, and return the machine as it is then.

    Tracking starts with the next stun of the machine, so a snapshot is made and removed where disks need it;
    ``run`` tags that snapshot. Each disk of the answer says whether it is tracked now, and if not, why. A
    machine with snapshots is refused (ChangeTrackingError): tracking that begins above them is not reliable.
    """
    if not vm.change_tracking_supported:
        raise NotSupported(
            f"{session.where}: {vm.name} ({vm.moref}) cannot track changes",
            remedy="raise its hardware version to 7 or later",
        )
    waiting = any(disk.tracking.tracking in (Tracking.OFF, Tracking.PENDING) for disk in vm.disks)
    if vm.snapshots and (waiting or not vm.change_tracking):
        names = ", ".join(repr(snapshot.name) for snapshot in vm.all_snapshots())
        raise ChangeTrackingError(
            f"{session.where}: change tracking of {vm.name} ({vm.moref}) cannot begin while it has "
            f"snapshots: {names}",
            remedy="delete them, then enable it",
        )
    if not vm.change_tracking:
        _reconfigure(session, vm, enabled=True)
        vm = get_machine(session, vm.moref)
    if any(disk.tracking.tracking is Tracking.PENDING for disk in vm.disks):
        with temporary_snapshot(
            session, vm, f"{NAME_PREFIX} change tracking", f"Starts change tracking. {tag(run)}"
        ):
            pass
        vm = get_machine(session, vm.moref)
    return vm


def disable(session: Session, vm: VirtualMachine) -> VirtualMachine:
    """Switch change tracking off; every change id saved so far becomes worthless."""
    _reconfigure(session, vm, enabled=False)
    return get_machine(session, vm.moref)


def _reconfigure(session: Session, vm: VirtualMachine, *, enabled: bool) -> None:
    machine = session.managed(vim.VirtualMachine, vm.moref)
    spec = vim.vm.ConfigSpec(changeTrackingEnabled=enabled)
    act = "enable" if enabled else "disable"
    what = f"{act} change tracking of {vm.name} ({vm.moref})"
    tasks.run(session, what, lambda: machine.ReconfigVM_Task(spec))


# -- asking for changes ------------------------------------------------------------------------------


class _State(Enum):
    FRESH = "new: call save_ids() first"
    SAVED = "ready"
    CLOSED = "closed"


class _Disk(Enum):
    UNASKED = "its changes have not been asked for"
    MAPPING = "its map has not been read to the end"
    COMPLETE = "its map has been read"


class ChangeQuery:
    """The changes of a machine's disks up to one snapshot; see the module. Use it from one thread."""

    def __init__(self, session: Session, vm: VirtualMachine, snapshot: str) -> None:
        """``snapshot`` is the id of the snapshot whose data will be read. No call is made yet."""
        self._session, self._vm, self._snapshot = session, vm, snapshot
        self._state = _State.FRESH
        self._disks: dict[int, VirtualDisk] = {}
        self._progress: dict[int, _Disk] = {}
        self._merging: str | None = None
        self._product: tuple[str, str] | None = None

    def save_ids(self) -> Mapping[int, VirtualDisk]:
        """The disks as the snapshot froze them, by device key; their change ids are the next ids to save."""
        self._require(_State.FRESH)
        paths = ("config.hardware.device", "config.changeTrackingEnabled")
        what = f"read the configuration of snapshot {self._snapshot} of {self._vm.name}"
        row = of_one(self._session, vim.vm.Snapshot, self._snapshot, paths, what)
        found = disks_of(
            row.get("config.hardware.device", ()),
            enabled=bool(row.get("config.changeTrackingEnabled", False)),
            supported=self._vm.change_tracking_supported,
        )
        self._disks = {disk.key: disk for disk in found}
        self._progress = dict.fromkeys(self._disks, _Disk.UNASKED)
        if merges_running(self._session, self._vm):
            self._merging = "a merge of its disks was running when the snapshot was made"
        elif is_outstanding(self._session, self._vm):
            self._merging = "the host says that its disks still need consolidation"
        self._state = _State.SAVED
        return dict(self._disks)

    def changed_areas(
        self, key: int, since: str, *, since_capacity: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` in bytes of what changed from the id ``since`` to the snapshot, ascending.

        ``since_capacity`` is the size in bytes that the disk had then. Raises TrackingReset when the changes
        since that id are not known, TrackingOff when they are not recorded, both here or while iterating.
        """
        disk = self._unasked(key)
        if since in ("", "*"):
            raise UsageError(f"{self._name(disk)}: {since!r} is not a saved change id; use full()")
        self._check_history(disk, since, since_capacity)
        self._progress[key] = _Disk.MAPPING
        return self._pages(disk, since)

    def changed_ranges(self, key: int, since: str, *, since_capacity: int | None = None) -> RangeSet:
        """All of :meth:`changed_areas`, and the space by which the disk grew since ``since_capacity``.

        A map of more than :data:`MAX_KEPT` areas is kept coarser: unchanged gaps between neighbours are
        added, never anything left out.
        """
        changed = gather(self.changed_areas(key, since, since_capacity=since_capacity))
        capacity = self.capacity(key)
        if since_capacity is not None and since_capacity < capacity:
            changed |= RangeSet([(since_capacity, capacity - since_capacity)])
        return changed

    def full(self, key: int) -> None:
        """Say that all of a disk will be read, so that its map is not needed; also after a map failed."""
        self._require(_State.SAVED)
        disk = self._known(key)
        if self._progress[key] is _Disk.COMPLETE:
            raise UsageError(f"{self._name(disk)}: its changes have been handed out already")
        self._progress[key] = _Disk.COMPLETE

    def next_id(self, key: int) -> str | None:
        """The id to save with the data of this snapshot; None if the disk is not tracked."""
        self._require(_State.SAVED)
        disk = self._known(key)
        if self._progress[key] is not _Disk.COMPLETE:
            raise UsageError(f"{self._name(disk)}: {self._progress[key].value}: its id must not be saved")
        return disk.change_id

    def capacity(self, key: int) -> int:
        """The size in bytes of a disk as the snapshot froze it."""
        self._require(_State.SAVED)
        return self._known(key).capacity

    def close(self) -> None:
        """No question may follow: the snapshot is about to go. Twice is fine."""
        self._state = _State.CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ----------------------------------------------------------------------------------

    def _require(self, state: _State) -> None:
        if self._state is not state:
            what = f"changes of {self._vm.name} up to {self._snapshot}"
            raise UsageError(f"{self._session.where}: {what}: {self._state.value}")

    def _known(self, key: int) -> VirtualDisk:
        if key not in self._disks:
            raise UsageError(
                f"{self._session.where}: snapshot {self._snapshot} of {self._vm.name} has no disk {key}"
            )
        return self._disks[key]

    def _unasked(self, key: int) -> VirtualDisk:
        self._require(_State.SAVED)
        disk = self._known(key)
        if self._progress[key] is not _Disk.UNASKED:
            raise UsageError(f"{self._name(disk)}: its changes have been asked for already")
        return disk

    def _name(self, disk: VirtualDisk) -> str:
        return f"{self._session.where}: changes of {self._vm.name}, disk {disk.key} ({disk.label})"

    def _check_history(self, disk: VirtualDisk, since: str, since_capacity: int | None) -> None:
        """Refuse what the host might answer, but wrongly."""
        current = disk.change_id
        if current is None:
            state = disk.tracking
            raise TrackingOff(f"{self._name(disk)}: {state.reason}", remedy=state.remedy)
        reason = _break_between(since, current)
        if reason is None:
            reason = self._merging
        if reason is None and since_capacity is not None and since_capacity > disk.capacity:
            reason = f"the disk has shrunk from {since_capacity} to {disk.capacity} bytes: it is another disk"
        if reason is None:
            if self._product is None:
                self._product = host_product(self._session, self._vm)
            reason = losing_changes(*self._product, capacity=disk.capacity, since_capacity=since_capacity)
        if reason is not None:
            raise TrackingReset(f"{self._name(disk)}: {reason}", remedy=_RESET_REMEDY)

    def _pages(self, disk: VirtualDisk, since: str) -> Iterator[tuple[int, int]]:
        offset = 0
        for _ in range(MAX_PAGES):
            self._require(_State.SAVED)
            # Never asked at the capacity itself: hosts answer that with a fault.
            if offset >= disk.capacity:
                self._progress[disk.key] = _Disk.COMPLETE
                return
            page = self._ask(disk, since, offset)
            yield from self._areas(disk, page, offset)
            offset += page.length
        raise ChangeTrackingError(f"{self._name(disk)}: the map has more than {MAX_PAGES} pages")

    def _ask(self, disk: VirtualDisk, since: str, offset: int) -> Any:
        session = self._session
        machine = session.managed(vim.VirtualMachine, self._vm.moref)
        snapshot = session.managed(vim.vm.Snapshot, self._snapshot)
        what = f"ask for the changes of {self._vm.name}, disk {disk.key} ({disk.label})"

        def ask() -> Any:
            try:
                return machine.QueryChangedDiskAreas(snapshot, disk.key, offset, since)
            except vmodl.MethodFault as fault:
                raise from_area_query(
                    fault, where=session.where, what=what, offset=offset, capacity=disk.capacity
                ) from fault

        return session.read(what, ask)

    def _areas(self, disk: VirtualDisk, page: Any, offset: int) -> list[tuple[int, int]]:
        """The areas of one page, checked: a wrong map must not become a wrong backup."""
        start, length, areas = page.startOffset, page.length or 0, page.changedArea or ()
        if start != offset or length <= 0 or offset + length > disk.capacity or len(areas) > MAX_AREAS:
            raise ChangeTrackingError(
                f"{self._name(disk)}: asked from byte {offset} of {disk.capacity}, the host speaks of "
                f"{length} bytes from {start} in {len(areas)} areas",
                remedy=_RESET_REMEDY,
            )
        checked: list[tuple[int, int]] = []
        at = offset
        for area in areas:
            # An area of no length is not nothing: it may be a length that did not fit.
            begin, size = area.start or 0, area.length or 0
            if begin < at or size <= 0 or begin + size > offset + length:
                raise ChangeTrackingError(
                    f"{self._name(disk)}: area of {size} bytes at {begin} is empty, out of order or "
                    f"outside the {length} bytes from {offset} that the answer is about",
                    remedy=_RESET_REMEDY,
                )
            at = begin + size
            checked.append((begin, size))
        return checked


def gather(areas: Iterable[tuple[int, int]], most: int = MAX_KEPT) -> RangeSet:
    """``areas``, ascending and apart, in a set of at most ``most`` ranges: the smallest gaps are filled."""
    starts: list[int] = []
    ends: list[int] = []
    gap = 0
    for offset, length in areas:
        if ends and offset - ends[-1] <= gap:
            ends[-1] = offset + length
        else:
            starts.append(offset)
            ends.append(offset + length)
        while len(starts) > most:
            gap = max(2 * gap, FIRST_GAP)
            _join(starts, ends, gap)
    return RangeSet((start, end - start) for start, end in zip(starts, ends, strict=True))


def _join(starts: list[int], ends: list[int], gap: int) -> None:
    """Join neighbours that are no further apart than ``gap`` bytes, in place."""
    kept = 0
    for at in range(1, len(starts)):
        if starts[at] - ends[kept] <= gap:
            ends[kept] = ends[at]
        else:
            kept += 1
            starts[kept], ends[kept] = starts[at], ends[at]
    del starts[kept + 1 :], ends[kept + 1 :]


def _break_between(since: str, current: str) -> str | None:
    """Why ``current`` is not a later point of the history of ``since``; None if nothing says so.

    An id looks like ``<uuid>/<number>``; one of another shape is left to the host to judge.
    """
    saved_history, _, saved = since.rpartition("/")
    history, _, number = current.rpartition("/")
    if not (saved_history and history and saved.isdigit() and number.isdigit()):
        return None
    if saved_history != history:
        return f"tracking was reset: the saved id is of history {saved_history}, the disk is in {history}"
    if int(saved) > int(number):
        return f"the disk went back in time: the saved id {since} is newer than the snapshot's {current}"
    return None
