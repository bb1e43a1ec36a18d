"""A disk of a machine: the running link, the change tracker, and who may do I/O on it.

All I/O of a guest, and all writes of the data port to a disk of a machine that is off, pass here: through the
machine's stun gate, past the change tracker, to the current leaf of the chain. A snapshot or a consolidation
replaces the leaf inside a stun; a guest device goes on without noticing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from vdkit.block.device import BaseWritableDevice, WritableDevice
from vdkit.block.extent import Extent, RangeSet
from vdkit.errors import Closed
from vdkit.sim import links
from vdkit.sim.controllers import PLAIN, DiskOptions, Slot
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import FileFault
from vdkit.sim.gate import StunGate
from vdkit.sim.locks import FileLock, LockMode
from vdkit.sim.snapshot import DiskState
from vdkit.sim.tracking import ANY, DEFAULT_PAGE, GRANULARITY, ChangedAreas, ChangeTracker, disabled, page_of


class DiskOwner(Protocol):
    """What a disk needs of its machine."""

    @property
    def name(self) -> str: ...

    @property
    def powered_on(self) -> bool: ...

    @property
    def gate(self) -> StunGate: ...


class SimDisk:
    """See the module. Created by :class:`~vdkit.sim.machine.Machine`; paths are datastore paths, sizes
    bytes.
    """

    def __init__(
        self, owner: DiskOwner, slot: Slot, datastore: Datastore, leaf: str, options: DiskOptions = PLAIN
    ) -> None:
        """``leaf`` is a name in the datastore. Opens the chain to learn about it. Raises ModelFault."""
        self.slot = slot
        self.options = options
        self.datastore = datastore
        self._owner = owner
        self._running: WritableDevice | None = None
        self._lock: FileLock | None = None
        self._tracker: ChangeTracker | None = None
        self._memory: tuple[object, RangeSet] | None = None
        self._mutex = threading.Lock()
        self.facts = links.inspect(datastore, leaf)

    def __repr__(self) -> str:
        return f"<SimDisk {self.key} {self.file}>"

    # -- what it is ------------------------------------------------------------------------------

    @property
    def key(self) -> int:
        return self.slot.key

    @property
    def unit(self) -> int:
        return self.slot.unit

    @property
    def leaf(self) -> str:
        """Name of the current leaf in the datastore."""
        return self.facts.name

    @property
    def file(self) -> str:
        """Datastore path of the current leaf."""
        return self.datastore.path(self.facts.name)

    @property
    def capacity(self) -> int:
        return self.facts.capacity

    @property
    def tracker(self) -> ChangeTracker | None:
        """None while the disk is not tracked."""
        return self._tracker

    @property
    def change_id(self) -> str | None:
        tracker = self._tracker
        return None if tracker is None else tracker.change_id

    def state(self) -> DiskState:
        """The disk as the API shows it now."""
        facts = self.facts
        return DiskState(
            slot=self.slot,
            capacity=facts.capacity,
            file=self.datastore.path(facts.name),
            parents=tuple(self.datastore.path(name) for name in facts.parents),
            thin=facts.thin,
            uuid=facts.uuid,
            content_id=facts.content_id,
            change_id=self.change_id,
            options=self.options,
        )

    # -- power -----------------------------------------------------------------------------------

    def attach(self) -> None:
        """Lock and open the chain for a guest. Raises Locked, or ModelFault."""
        self._lock = self.datastore.locks.acquire(self.running_locks(), self._holder)
        try:
            self.open_leaf()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Close the chain and let the files go."""
        self.close_leaf()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def open_leaf(self) -> None:
        self._running = links.open_leaf(self.datastore, self.leaf)

    def close_leaf(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def fork(self, name: str) -> None:
        """Freeze the leaf under a new delta ``name``, inside a stun; nothing has changed if it fails."""
        running = self._running is not None
        before = self.facts
        self.close_leaf()
        try:
            links.fork(self.datastore, self.leaf, name, self.capacity)
            try:
                self.facts = links.inspect(self.datastore, name)
                if running:
                    self.relock([])
            except BaseException:
                self.facts = before
                links.delete(self.datastore, name)
                raise
        finally:
            if running:
                self.open_leaf()

    def unfork(self) -> None:
        """Back to the link below an empty leaf, inside a stun: a :meth:`fork` taken back."""
        running = self._running is not None
        self.close_leaf()
        empty = self.leaf
        self.refresh(self.datastore.path(self.facts.parents[0]))
        if running:
            self.relock([])
            self.open_leaf()
        links.delete(self.datastore, empty)

    def grow(self, capacity: int) -> None:
        """Lengthen the only link, inside a stun. Raises Locked or ModelFault."""
        running = self._running is not None
        self.close_leaf()
        try:
            if running:
                links.grow(self.datastore, self.leaf, capacity)
            else:
                with self.datastore.locks.acquire(self.running_locks(), self._holder):
                    links.grow(self.datastore, self.leaf, capacity)
            self.refresh(self.file)
            if self._tracker is not None:
                self._tracker.grow(self.capacity)
        finally:
            if running:
                self.open_leaf()

    def refresh(self, file: str) -> None:
        """The leaf is ``file`` (a datastore path) from now on; learn about it."""
        self.facts = links.inspect(self.datastore, split_path(file)[1])

    def relock(self, exclusive: list[str]) -> None:
        """Hold the files of the present chain, those named ``exclusive`` alone. Raises Locked."""
        if self._lock is not None:
            wanted = dict(self.running_locks()) | dict.fromkeys(exclusive, LockMode.WRITE)
            self._lock = self.datastore.locks.exchange(self._lock, wanted.items(), self._holder)

    @property
    def _holder(self) -> str:
        return f"machine {self._owner.name}"

    def running_locks(self) -> list[tuple[str, LockMode]]:
        """What a running machine holds: its leaf alone, the parents with other readers."""
        return [(self.leaf, LockMode.WRITE), *((name, LockMode.READ) for name in self.facts.parents)]

    def all_exclusive(self) -> list[tuple[str, LockMode]]:
        """What somebody who deletes the disk must hold."""
        return [(name, LockMode.WRITE) for name in (self.leaf, *self.facts.parents)]

    # -- tracking --------------------------------------------------------------------------------

    def track(self) -> None:
        """Begin tracking, with everything in use marked as changed; inside a stun or while off."""
        self._forget_answer()
        if self._tracker is None:
            self._tracker = ChangeTracker(self.file, self.capacity, self._written())

    def untrack(self) -> None:
        self._forget_answer()
        self._tracker = None

    def reset_tracking(self) -> None:
        """Begin a new history, as a revert does."""
        self._forget_answer()
        if self._tracker is not None:
            self._tracker.reset(self._written())

    def inherit(self, other: SimDisk) -> None:
        """Go on with the tracking of the disk that was here before."""
        self._tracker = other._tracker

    def _forget_answer(self) -> None:
        with self._mutex:
            self._memory = None

    def _written(self) -> RangeSet:
        """What a new history begins with: what is in use, or all of it while somebody else writes."""
        if self._lock is None and self.datastore.locks.holder(self.leaf) is not None:
            return RangeSet([(0, self.capacity)])
        return self.in_use()

    def in_use(self, file: str | None = None) -> RangeSet:
        """Areas in use of the current disk, or of a frozen link, widened to the tracking granularity."""
        name = self.leaf if file is None else file
        running = self._running
        if running is not None and name == self.leaf:
            found = RangeSet.from_extents(running.extents())
        else:
            with links.open_frozen(self.datastore, name) as device:
                found = RangeSet.from_extents(device.extents())
        return found.aligned(GRANULARITY, self.capacity)

    def changed(
        self, change_id: str, until: DiskState | None, start: int, *, page: int = DEFAULT_PAGE
    ) -> ChangedAreas:
        """QueryChangedDiskAreas: from ``change_id`` (or ``*``) up to a snapshot's state of the disk, or now.

        ``start`` is in bytes; at most ``page`` areas come at once. Raises ModelFault.
        """
        tracker = self._tracker
        if tracker is None or (until is not None and until.change_id is None):
            raise disabled(self.file)
        tracker.require_answer()
        if until is None and self._owner.powered_on:
            raise FileFault(self.file, "the machine runs: name a snapshot")
        capacity = self.capacity if until is None else until.capacity
        key = (change_id, until.change_id, until.file) if until is not None else None
        with self._mutex:
            memory = self._memory
        if key is not None and memory is not None and memory[0] == key:
            ranges = memory[1]
        else:
            ranges = self._areas(tracker, change_id, until, capacity)
            with self._mutex:
                self._memory = (key, ranges)
        return page_of(ranges, start, capacity, page=page)

    def _areas(
        self, tracker: ChangeTracker, change_id: str, until: DiskState | None, capacity: int
    ) -> RangeSet:
        if change_id != ANY:
            found = tracker.changed_since(change_id, None if until is None else until.change_id)
        elif self.datastore.kind != "VMFS":
            # Only VMFS tells the host what is in use.
            found = RangeSet([(0, capacity)])
        else:
            name = None if until is None else split_path(until.file)[1]
            found = self.in_use(name)
        return found.clip(0, capacity)

    # -- I/O -------------------------------------------------------------------------------------

    def guest(self) -> WritableDevice:
        """The disk as the guest of the running machine sees it. Its size is that of this moment."""
        return GuestDevice(self)

    def guest_read(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        with self._owner.gate.io():
            self._live().read_many(pieces)

    def guest_write(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        with self._owner.gate.io():
            live = self._live()
            for offset, view in pieces:
                self.record(offset, len(view))
            live.write_many(pieces)

    def guest_zero(self, offset: int, length: int) -> None:
        with self._owner.gate.io():
            live = self._live()
            self.record(offset, length)
            live.write_zeroes(offset, length)

    def guest_flush(self) -> None:
        with self._owner.gate.io():
            self._live().flush()

    def guest_extents(self, offset: int, length: int) -> list[Extent]:
        with self._owner.gate.io():
            return list(self._live().extents(offset, length))

    def record(self, offset: int, length: int) -> None:
        """Tell the tracker of a write; the caller is inside the gate."""
        tracker = self._tracker
        if tracker is not None:
            tracker.record(offset, length)

    @contextmanager
    def outside_write(self, offset: int, length: int) -> Iterator[None]:
        """A write to the closed disk by somebody who holds its lock: counted and tracked like a guest's."""
        with self._owner.gate.io():
            self.record(offset, length)
            yield

    def _live(self) -> WritableDevice:
        if self._running is None:
            raise Closed(f"{self.file}: the machine {self._owner.name} does not run")
        return self._running


class GuestDevice(BaseWritableDevice):
    """A running disk. It stays good over snapshots; closing it changes nothing for the machine."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__(name=f"guest of {disk.file}", capacity=disk.capacity, writable=True)
        self._disk = disk

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._disk.guest_read([(offset, view)])

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._disk.guest_read(pieces)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._disk.guest_write([(offset, view)])

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._disk.guest_write(pieces)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._disk.guest_zero(offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield from self._disk.guest_extents(offset, length)

    def _flush(self) -> None:
        self._disk.guest_flush()
