"""Disks of a machine opened from outside, as the data port does: locked, and past the change tracker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.sim import links, ports
from vdkit.sim.datastore import Datastore
from vdkit.sim.disk import SimDisk
from vdkit.sim.locks import FileLock, Locked, LockMode
from vdkit.sim.machine import Machine

_HOLDER = "a disk session of the data port"


def links_of(machine: Machine, key: int | None) -> set[str]:
    """Datastore paths of all links of a disk (None: of all disks), those of snapshots included."""
    found: set[str] = set()
    states = [disk.state() for disk in list(machine.disks.values())]
    for snapshot in machine.snapshots():
        states += snapshot.disks.values()
    for state in states:
        if key is None or state.key == key:
            found |= {state.file, *state.parents}
    return found


def open_for_reading(machine: Machine, datastore: Datastore, name: str) -> BlockDevice:
    """A link with its parents. Raises Refusal or ModelFault."""
    path = datastore.path(name)
    if machine.powered_on and any(disk.file == path for disk in machine.disks.values()):
        raise ports.running(path)
    facts = links.inspect(datastore, name)
    lock = lock_links(datastore, path, [(link, LockMode.READ) for link in (name, *facts.parents)])
    try:
        if links.inspect(datastore, name).parents != facts.parents:
            # A consolidation went by between the look and the lock.
            raise ports.locked(path)
        return HeldDisk(links.open_frozen(datastore, name), lock, None)
    except BaseException:
        lock.release()
        raise


def open_for_writing(machine: Machine, datastore: Datastore, name: str) -> WritableDevice:
    """The current leaf of a disk of a machine that is off. Raises Refusal or ModelFault."""
    path = datastore.path(name)
    disk = next((disk for disk in list(machine.disks.values()) if disk.file == path), None)
    if disk is None:
        # A link that others stand on: to change it would change what they see.
        raise ports.denied(path, writable=True)
    if machine.powered_on:
        raise ports.running(path)
    lock = lock_links(datastore, path, disk.running_locks())
    try:
        if disk.file != path:
            # A snapshot went by between the look and the lock.
            raise ports.locked(path)
        return HeldDisk(links.open_leaf(datastore, name), lock, disk)
    except BaseException:
        lock.release()
        raise


def lock_links(datastore: Datastore, path: str, wanted: list[tuple[str, LockMode]]) -> FileLock:
    """The files of a disk for a data session. Raises Refusal."""
    try:
        return datastore.locks.acquire(wanted, _HOLDER)
    except Locked as error:
        raise ports.locked(path) from error


def disk_database(datastore: Datastore, name: str) -> dict[str, str]:
    """Keys without ``ddb.``; what the base says holds unless a nearer link says otherwise."""
    facts = links.inspect(datastore, name)
    merged: dict[str, str] = {}
    for link in reversed((name, *facts.parents)):
        with links.storage(datastore, link):
            for key, value in links.descriptor_of(datastore, link).items("ddb."):
                merged[key[len("ddb.") :]] = value
    return merged


class HeldDisk(BaseWritableDevice):
    """An opened disk and the locks on its files, both given back by ``close``. With ``disk``: tracked
    writes.
    """

    def __init__(self, chain: BlockDevice, lock: FileLock, disk: SimDisk | None) -> None:
        super().__init__(
            name=chain.name,
            capacity=chain.capacity,
            sector_size=chain.sector_size,
            alignment=chain.alignment,
            writable=disk is not None,
        )
        self._chain = chain
        self._target: WritableDevice | None = (
            chain if disk is not None and isinstance(chain, WritableDevice) else None
        )
        self._lock = lock
        self._disk = disk

    @property
    def io_batch(self) -> int:
        return self._chain.io_batch

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._chain.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._chain.read_many(pieces)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._chain.extents(offset, length)

    def _write_from(self, offset: int, view: memoryview) -> None:
        target, disk = self._writing()
        with disk.outside_write(offset, len(view)):
            target.write_from(offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        target, disk = self._writing()
        with disk.outside_write(offset, length):
            target.write_zeroes(offset, length)

    def _flush(self) -> None:
        target, _ = self._writing()
        target.flush()

    def _writing(self) -> tuple[WritableDevice, SimDisk]:
        # BaseWritableDevice has refused before, if this was opened for reading.
        assert self._target is not None and self._disk is not None
        return self._target, self._disk

    def _close(self) -> None:
        try:
            if self._target is not None:
                self._target.flush()
        finally:
            try:
                self._chain.close()
            finally:
                self._lock.release()
