"""First-class disks: disks in a datastore that have an id and need no machine.

What is known of a disk lies in ``catalog/ID.vmfd`` of its datastore, as text like a .vmx (a host's own files
of this kind are not described in public, and ours look different); disks that are made here lie in ``fcd``.
Source: the vSphere Web Services API reference (VStorageObject).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vdkit.block.device import BlockDevice
from vdkit.errors import VixError
from vdkit.sim import diskaccess, links, ports
from vdkit.sim.controllers import Slot
from vdkit.sim.datastore import Datastore
from vdkit.sim.disk import SimDisk
from vdkit.sim.faults import (
    FileLocked,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidState,
    ModelFault,
    NotFound,
)
from vdkit.sim.gate import StunGate
from vdkit.sim.locks import Locked, LockMode
from vdkit.sim.vmx import MAX_TEXT_BYTES, VmxText

if TYPE_CHECKING:
    from vdkit.sim.inventory import Inventory
    from vdkit.sim.machine import Machine

CATALOG = "catalog"
FOLDER = "fcd"
_SUFFIX = ".vmfd"
_MAX_SNAPSHOTS = 1024


@dataclass(frozen=True)
class DiskSnapshot:
    """A frozen link; ``file`` is its name in the datastore."""

    id: str
    file: str
    description: str
    created: datetime


@dataclass(frozen=True)
class FirstClassDisk:
    """``file``: the name of its current link in the datastore."""

    id: str
    name: str
    datastore: Datastore
    file: str
    created: datetime
    snapshots: tuple[DiskSnapshot, ...] = ()

    @property
    def path(self) -> str:
        return self.datastore.path(self.file)

    @property
    def capacity(self) -> int:
        """Bytes."""
        return links.inspect(self.datastore, self.file).capacity

    def snapshot(self, snapshot_id: str) -> DiskSnapshot:
        """Raises NotFound."""
        for one in self.snapshots:
            if one.id == snapshot_id:
                return one
        raise NotFound(f"disk {self.id} has no snapshot {snapshot_id}")


class FirstClassDisks:
    """All of an inventory. Every method may raise ModelFault."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._mutex = threading.Lock()

    def ids(self, datastore: Datastore) -> list[str]:
        names = datastore.files(CATALOG)
        return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))

    def find(self, datastore: Datastore, disk_id: str) -> FirstClassDisk | None:
        return self.get(datastore, disk_id) if disk_id in self.ids(datastore) else None

    def get(self, datastore: Datastore, disk_id: str) -> FirstClassDisk:
        """Raises NotFound."""
        if disk_id not in self.ids(datastore):
            raise NotFound(f"there is no disk {disk_id} on {datastore.name}")
        name = f"{CATALOG}/{disk_id}{_SUFFIX}"
        text = VmxText.parse(datastore.read_text(name, MAX_TEXT_BYTES), datastore.path(name))
        snapshots = tuple(
            DiskSnapshot(
                text[f"snapshot{number}.id"],
                text[f"snapshot{number}.file"],
                text.get(f"snapshot{number}.description"),
                datetime.fromisoformat(text[f"snapshot{number}.created"]),
            )
            for number in range(text.number("snapshots", 0, high=_MAX_SNAPSHOTS))
        )
        created = datetime.fromisoformat(text["created"])
        found = FirstClassDisk(disk_id, text["name"], datastore, text["file"], created, snapshots)
        return self._current(found)

    def _current(self, disk: FirstClassDisk) -> FirstClassDisk:
        """With the link that a machine's snapshots have made of it meanwhile."""
        for machine in self._inventory.machines:
            for used in list(machine.disks.values()):
                if used.datastore is disk.datastore and disk.file in (used.leaf, *used.facts.parents):
                    return replace(disk, file=used.leaf)
        return disk

    def consumers(self, disk: FirstClassDisk) -> Iterator[Machine]:
        """The machines that it is attached to."""
        for machine in self._inventory.machines:
            if any(disk.path == used.file for used in list(machine.disks.values())):
                yield machine

    def create(self, datastore: Datastore, name: str, capacity: int, *, thin: bool) -> FirstClassDisk:
        disk_id = str(uuid.uuid4())
        datastore.store.make_folder(FOLDER)
        file = f"{FOLDER}/{disk_id.replace('-', '')}.vmdk"
        links.create(datastore, file, capacity, thin=thin)
        try:
            return self._save(FirstClassDisk(disk_id, name, datastore, file, self._now()))
        except VixError:
            links.delete(datastore, file)
            raise

    def register(self, datastore: Datastore, file: str, name: str) -> FirstClassDisk:
        """A disk that is there already."""
        if not file.endswith(".vmdk") or not datastore.exists(file):
            raise FileNotFound(datastore.path(file))
        if any(self.get(datastore, one).file == file for one in self.ids(datastore)):
            raise InvalidState(f"{datastore.path(file)} is a first-class disk already")
        links.inspect(datastore, file)
        return self._save(FirstClassDisk(str(uuid.uuid4()), name, datastore, file, self._now()))

    def snapshot(self, disk: FirstClassDisk, description: str) -> DiskSnapshot:
        """Of a disk that no machine has."""
        if next(self.consumers(disk), None) is not None:
            raise InvalidState(f"disk {disk.id} is attached: make a snapshot of its machine")
        child = links.next_delta(disk.datastore, disk.file)
        try:
            held = disk.datastore.locks.acquire([(disk.file, LockMode.READ)], "a snapshot")
        except Locked as error:
            raise FileLocked(disk.path, str(error)) from error
        with held:
            links.fork(disk.datastore, disk.file, child, disk.capacity)
            made = DiskSnapshot(str(uuid.uuid4()), disk.file, description, self._now())
            try:
                self._save(replace(disk, file=child, snapshots=(*disk.snapshots, made)))
            except VixError:
                links.delete(disk.datastore, child)
                raise
        return made

    def delete(self, disk: FirstClassDisk) -> None:
        if next(self.consumers(disk), None) is not None:
            raise InvalidState(f"disk {disk.id} is attached: detach it first")
        facts = links.inspect(disk.datastore, disk.file)
        try:
            names = (disk.file, *facts.parents)
            held = disk.datastore.locks.acquire([(name, LockMode.WRITE) for name in names], "a deletion")
        except Locked as error:
            raise FileLocked(disk.path, str(error)) from error
        with held:
            disk.datastore.discard(f"{CATALOG}/{disk.id}{_SUFFIX}")
            for name in (disk.file, *facts.parents):
                links.delete(disk.datastore, name)

    def _now(self) -> datetime:
        return self._inventory.clock.now().astimezone(UTC)

    def _save(self, disk: FirstClassDisk) -> FirstClassDisk:
        if not disk.name.strip() or len(disk.name) > 255:
            raise InvalidArgument("name")
        text = VmxText()
        text["name"], text["file"], text["created"] = disk.name, disk.file, disk.created.isoformat()
        text["snapshots"] = str(len(disk.snapshots))
        for number, one in enumerate(disk.snapshots):
            text[f"snapshot{number}.id"], text[f"snapshot{number}.file"] = one.id, one.file
            text[f"snapshot{number}.description"] = one.description
            text[f"snapshot{number}.created"] = one.created.isoformat()
        with self._mutex:
            disk.datastore.store.make_folder(CATALOG)
            disk.datastore.write_text(f"{CATALOG}/{disk.id}{_SUFFIX}", text.render())
        return disk


class _Nobody:
    """Whose a disk is that no machine has."""

    name = "no machine"
    powered_on = False

    def __init__(self) -> None:
        self.gate = StunGate()


class DatastoreGrant:
    """What a ticket for the files of a datastore allows: the first-class disks that no machine has."""

    def __init__(self, disks: FirstClassDisks, datastore: Datastore) -> None:
        self._disks = disks
        self._datastore = datastore

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        """See :class:`~vdkit.sim.ports.Grant`."""
        disk, name = self._scope(path, writable=writable)
        store = self._datastore
        if writable and name != disk.file:
            raise ports.denied(path, writable=True)
        try:
            alone = SimDisk(_Nobody(), Slot(), store, name)
            wanted = [(name, LockMode.READ), *((link, LockMode.READ) for link in alone.facts.parents)]
            lock = diskaccess.lock_links(store, path, alone.running_locks() if writable else wanted)
            try:
                if writable:
                    return diskaccess.HeldDisk(links.open_leaf(store, name), lock, alone)
                return diskaccess.HeldDisk(links.open_frozen(store, name), lock, None)
            except BaseException:
                lock.release()
                raise
        except ModelFault as error:
            raise ports.Refusal(ports.CODE_DISK, str(error)) from error

    def disk_database(self, path: str) -> dict[str, str]:
        _, name = self._scope(path, writable=False)
        try:
            return diskaccess.disk_database(self._datastore, name)
        except ModelFault as error:
            raise ports.Refusal(ports.CODE_DISK, str(error)) from error

    def _scope(self, path: str, *, writable: bool) -> tuple[FirstClassDisk, str]:
        """The disk and the name of the link that the path means. Raises Refusal."""
        prefix = self._datastore.path("")
        name = path.removeprefix(prefix).lstrip()
        if not path.startswith(prefix) or not self._datastore.exists(name):
            raise ports.missing(path)
        for one in self._disks.ids(self._datastore):
            try:
                disk = self._disks.get(self._datastore, one)
                chain = (disk.file, *links.inspect(self._datastore, disk.file).parents)
            except (ModelFault, InvalidDatastorePath):
                continue
            if name in chain and next(self._disks.consumers(disk), None) is None:
                return disk, name
        raise ports.denied(path, writable=writable)
