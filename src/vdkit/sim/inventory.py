"""What a simulated host has: datacenter, hosts, datastores, network, machines, each with its id.

The ``esx`` personality uses the ids of a stand-alone host (``ha-host``, machines ``1``, ``2``), ``vcenter``
those of a vCenter (``host-9``, ``vm-42``), which may have several ESXi hosts. Ids stay the same for as long
as the inventory lives.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vdkit.errors import UsageError, VixError
from vdkit.sim import machinefiles
from vdkit.sim.clock import Clock, SystemClock
from vdkit.sim.consolidation import tree_of
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import (
    DuplicateName,
    FileAlreadyExists,
    InvalidDatastorePath,
    InvalidName,
    ManagedObjectNotFound,
    NotFound,
)
from vdkit.sim.home import Hook, no_hook
from vdkit.sim.machine import Machine
from vdkit.sim.places import Entity, Places
from vdkit.sim.snapshot import DiskSpec, MachineConfig, Snapshot
from vdkit.sim.tracking import DEFAULT_PAGE

PERSONALITIES = ("esx", "vcenter")
#: What a host is called that nobody has named.
HOST_NAME = "localhost.localdomain"
_MAX_NAME = 80


class Inventory:
    """See the module. ``hook`` is called at the start of operations (see :mod:`~vdkit.sim.home`)."""

    def __init__(
        self,
        *,
        personality: str = "esx",
        clock: Clock | None = None,
        host_names: Sequence[str] = (HOST_NAME,),
    ) -> None:
        """``host_names`` are those of the ESXi hosts: one, or on a vCenter several."""
        if personality not in PERSONALITIES:
            raise InvalidName(personality)
        if not host_names or (personality == "esx" and len(host_names) > 1):
            raise UsageError(
                f"{len(host_names)} hosts with the personality {personality}",
                remedy="only a vCenter has several hosts, and each has one at least",
            )
        self.personality = personality
        self.clock: Clock = clock or SystemClock()
        self.hook: Hook = no_hook
        self.areas_per_page = DEFAULT_PAGE
        self.instance_uuid = str(uuid.uuid4())
        #: Machines that were found and could not be registered: datastore path and why.
        self.skipped: list[tuple[str, VixError]] = []
        self.version = 0
        self._mutex = threading.RLock()
        self._listeners: list[Callable[[Machine], None]] = []
        self._datastores: dict[str, Datastore] = {}
        self._machines: dict[str, Machine] = {}
        self._next_id = 1 if personality == "esx" else 42
        self._next_snapshot = 100
        self._make_entities(host_names)

    def _make_entities(self, host_names: Sequence[str]) -> None:
        esx = self.personality == "esx"

        def made(kind: str, ha: str, vc: str, name: str, parent: Entity | None) -> Entity:
            return Entity(kind, ha if esx else vc, name, parent)

        root = self.root_folder = made(
            "Folder", "ha-folder-root", "group-d1", "ha-folder-root" if esx else "Datacenters", None
        )
        center = self.datacenter = made(
            "Datacenter", "ha-datacenter", "datacenter-2", "ha-datacenter" if esx else "Datacenter", root
        )
        self.vm_folder = made("Folder", "ha-folder-vm", "group-v3", "vm", center)
        self.host_folder = made("Folder", "ha-folder-host", "group-h4", "host", center)
        self.datastore_folder = made("Folder", "ha-folder-datastore", "group-s5", "datastore", center)
        self.network_folder = made("Folder", "ha-folder-network", "group-n6", "network", center)
        kind = "ComputeResource" if esx else "ClusterComputeResource"
        self.compute = made(
            kind, "ha-compute-res", "domain-c7", host_names[0] if esx else "Cluster", self.host_folder
        )
        self.pool = made("ResourcePool", "ha-root-pool", "resgroup-8", "Resources", self.compute)
        hosts = [
            made("HostSystem", "ha-host", f"host-{9 + 100 * number}", name, self.compute)
            for number, name in enumerate(host_names)
        ]
        #: The first, or only, ESXi host.
        self.host = hosts[0]
        self.places = Places(hosts, self.vm_folder)
        self.network = made(
            "Network", "HaNetwork-VM Network", "network-11", "VM Network", self.network_folder
        )

    @property
    def entities(self) -> list[Entity]:
        """All that is neither a machine nor a datastore nor a folder of machines, parents first."""
        return [
            self.root_folder,
            self.datacenter,
            self.vm_folder,
            self.host_folder,
            self.datastore_folder,
            self.network_folder,
            self.compute,
            self.pool,
            *self.places.hosts,
            self.network,
        ]

    # -- datastores ------------------------------------------------------------------------------

    @property
    def datastores(self) -> list[Datastore]:
        with self._mutex:
            return list(self._datastores.values())

    def add_datastore(self, datastore: Datastore, *, load: bool = True) -> Datastore:
        """Give it an id and, unless told otherwise, register the machines found in it."""
        with self._mutex:
            if datastore.name in self._datastores:
                raise DuplicateName(datastore.name, "Datastore", self._datastores[datastore.name].moref)
            count = len(self._datastores)
            if self.personality == "esx":
                stable = uuid.uuid5(uuid.NAMESPACE_URL, datastore.store.name).hex
                datastore.moref = f"{stable[:8]}-{stable[8:16]}-{stable[16:20]}-{stable[20:32]}"
            else:
                datastore.moref = f"datastore-{20 + count}"
            self._datastores[datastore.name] = datastore
        if load:
            self.load(datastore)
        return datastore

    def add_folder(self, folder: str | Path, name: str = "datastore1", *, kind: str = "VMFS") -> Datastore:
        """A folder of this machine as a datastore, with the machines found in it."""
        return self.add_datastore(Datastore.from_folder(name, folder, kind=kind))

    def datastore(self, name: str) -> Datastore:
        with self._mutex:
            found = self._datastores.get(name)
        if found is None:
            raise InvalidDatastorePath(f"[{name}]")
        return found

    def resolve(self, path: str) -> tuple[Datastore, str]:
        """A datastore path to its datastore and the name in it. Raises InvalidDatastorePath."""
        name, rest = split_path(path)
        return self.datastore(name), rest

    # -- machines --------------------------------------------------------------------------------

    @property
    def machines(self) -> list[Machine]:
        with self._mutex:
            return list(self._machines.values())

    def machine(self, moref: str) -> Machine:
        """Raises ManagedObjectNotFound."""
        with self._mutex:
            found = self._machines.get(moref)
        if found is None:
            raise ManagedObjectNotFound("VirtualMachine", moref)
        return found

    def find(self, name: str) -> Machine:
        """By name. Raises NotFound."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise NotFound(f"there is no virtual machine {name!r}")

    def move(self, machine: Machine, host: str) -> None:
        """vMotion to an ESXi host by name or id. Raises NotFound."""
        self.places.move(machine, self.places.host(host))
        self.changed(machine)

    def snapshot(self, moref: str) -> tuple[Machine, Snapshot]:
        """Raises ManagedObjectNotFound."""
        for machine in self.machines:
            for snapshot in machine.snapshots():
                if snapshot.moref == moref:
                    return machine, snapshot
        raise ManagedObjectNotFound("VirtualMachineSnapshot", moref)

    def load(self, datastore: Datastore) -> list[Machine]:
        """Register every machine found; those that cannot be are in :attr:`skipped`.

        A folder with a base disk and no .vmx file gets one, unless another machine uses the disk. Machines
        that ran when the host went down run again (as with autostart); their change tracking begins anew, as
        after a crash of a host.
        """
        folders = [name.rstrip("/") for name in datastore.files() if name.endswith("/")]
        found: list[Machine] = []
        bare = []
        for folder in folders:
            with self._skipping(datastore.path(f"{folder}/")):
                files = machinefiles.described(datastore, folder)
                if not files:
                    bare.append(folder)
                for name in files:
                    found.append(machinefiles.load(datastore, name, self._register))
        # Only now is it known which disks are somebody's.
        for folder in bare:
            with self._skipping(datastore.path(f"{folder}/")):
                made = machinefiles.discover(datastore, folder, self._register, self.shared_links(None))
                if made is not None:
                    found.append(made)
        return found

    @contextmanager
    def _skipping(self, path: str) -> Iterator[None]:
        try:
            yield
        except VixError as error:
            self.skipped.append((path, error))

    def create_machine(
        self,
        name: str,
        datastore: str,
        disks: Sequence[DiskSpec] = (),
        *,
        config: MachineConfig | None = None,
        vmx_path: str | None = None,
    ) -> Machine:
        """A new machine with its disks. ``config`` (its name is ignored) tells the rest; all or nothing."""
        self.check_name(name)
        home = self.datastore(datastore)
        vmx_name = self.free_vmx_name(home, name, vmx_path)
        fresh = config or MachineConfig.new(name)
        machine = self._register(home, vmx_name, replace(fresh, name=name))
        try:
            self.hook("createMachine", machine)
            home.store.make_folder(machine.folder)
            for spec in disks:
                if spec.path is not None and not spec.capacity:
                    machine.attach_disk(
                        spec.path, unit=spec.unit, controller=spec.controller, options=spec.options
                    )
                else:
                    machine.add_disk(
                        spec.capacity,
                        thin=spec.thin,
                        path=spec.path,
                        unit=spec.unit,
                        controller=spec.controller,
                        options=spec.options,
                    )
            machine.save()
        except VixError:
            machinefiles.delete_made(machine, [spec for spec in disks if not spec.capacity and spec.path])
            self.removed(machine)
            raise
        self.changed(machine)
        return machine

    def register_machine(self, vmx_path: str, name: str | None = None) -> Machine:
        """A machine whose .vmx file is in a datastore already."""
        datastore, vmx_name = self.resolve(vmx_path)
        for machine in self.machines:
            if machine.datastore is datastore and machine.vmx_name == vmx_name:
                raise FileAlreadyExists(vmx_path)
        machine = machinefiles.load(datastore, vmx_name, self._register)
        if name is not None and name != machine.name:
            machine.rename(name)
        return machine

    def free_vmx_name(self, datastore: Datastore, name: str, wanted: str | None = None) -> str:
        """``vm/vm.vmx``, or ``vm_1/vm.vmx`` where that folder is taken."""
        if wanted is not None:
            asked, path = self.resolve(wanted)
            if asked is datastore and path:
                vmx = path if path.endswith(".vmx") else f"{path.rstrip('/')}/{file_name(name)}.vmx"
                if datastore.exists(vmx):
                    raise FileAlreadyExists(datastore.path(vmx))
                return vmx
        stem = file_name(name)
        folder = stem
        number = 0
        while datastore.exists(folder):
            number += 1
            folder = f"{stem}_{number}"
        return f"{folder}/{stem}.vmx"

    def _register(self, datastore: Datastore, vmx_name: str, config: MachineConfig) -> Machine:
        with self._mutex:
            self.check_name(config.name)
            moref = str(self._next_id) if self.personality == "esx" else f"vm-{self._next_id}"
            self._next_id += 1
            machine = Machine(self, moref, datastore, vmx_name, config)
            self._machines[moref] = machine
            self.places.admit(moref)
            return machine

    # -- what machines ask -----------------------------------------------------------------------

    def shared_links(self, machine: Machine | None) -> frozenset[str]:
        found: set[str] = set()
        for other in self.machines:
            if other is not machine:
                found.update(tree_of(other))
        return frozenset(found)

    def snapshot_moref(self, machine: Machine, uid: int) -> str:
        if self.personality == "esx":
            return f"{machine.moref}-snapshot-{uid}"
        with self._mutex:
            self._next_snapshot += 1
            return f"snapshot-{self._next_snapshot}"

    def check_name(self, name: str, machine: Machine | None = None) -> None:
        if not name.strip() or len(name) > _MAX_NAME or any(ord(char) < 32 for char in name):
            raise InvalidName(name[:_MAX_NAME])
        for other in self.machines:
            if other is not machine and other.name == name:
                raise DuplicateName(name, "VirtualMachine", other.moref)

    def changed(self, machine: Machine) -> None:
        with self._mutex:
            self.version += 1
            listeners = list(self._listeners)
        for listener in listeners:
            listener(machine)

    def removed(self, machine: Machine) -> None:
        with self._mutex:
            self._machines.pop(machine.moref, None)
        self.places.forget(machine)
        self.changed(machine)

    def subscribe(self, listener: Callable[[Machine], None]) -> Callable[[], None]:
        """Call ``listener`` after every change of a machine, on the thread that made it; returns the undo."""
        with self._mutex:
            self._listeners.append(listener)

        def undo() -> None:
            with self._mutex:
                self._listeners.remove(listener)

        return undo

    def close(self) -> None:
        """The host goes down; everything is flushed to the datastores."""
        for machine in self.machines:
            machine.close()


def file_name(name: str) -> str:
    """A machine's name as a file name: what a path cannot hold becomes ``_``."""
    cleaned = re.sub(r'[\x00-\x1f/\\:*?"<>|\[\]]', "_", name).strip(" .")
    return cleaned or "vm"
