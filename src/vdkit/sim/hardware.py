"""Devices of a machine: disks added, attached, removed, grown; memory and processors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from vdkit.errors import VixError
from vdkit.sim import links
from vdkit.sim.controllers import BUSES, KINDS, PLAIN, Controller, DiskOptions, Slot
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.disk import SimDisk
from vdkit.sim.faults import (
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    GenericVmConfigFault,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidDeviceSpec,
)
from vdkit.sim.locks import Locked, LockMode

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

_MAX_MEMORY_MIB = 24 << 20
_MAX_CPUS = 960
#: The first version of virtual hardware whose disks are tracked.
TRACKING_HARDWARE = 7


def set_sizes(machine: Machine, *, memory_mib: int | None, cpus: int | None, annotation: str | None) -> None:
    config = machine.config
    if memory_mib is not None:
        if not 4 <= memory_mib <= _MAX_MEMORY_MIB or memory_mib % 4:
            raise InvalidArgument("configSpec.memoryMB")
        config = replace(config, memory_mib=memory_mib)
    if cpus is not None:
        if not 1 <= cpus <= _MAX_CPUS:
            raise InvalidArgument("configSpec.numCPUs")
        config = replace(config, cpus=cpus)
    if annotation is not None:
        config = replace(config, annotation=annotation)
    machine.config = config


def set_options(machine: Machine, key: int, options: DiskOptions) -> None:
    """Mode, sharing, mapping and encryption of a disk, as an edit of the device changes them."""
    disk = machine.disk(key)
    if disk.options.in_snapshots != options.in_snapshots:
        _without_snapshots(machine, disk)
    disk.options = options
    if not trackable(machine, disk):
        disk.untrack()
    machine.save()


def trackable(machine: Machine, disk: SimDisk) -> bool:
    """Whether a host tracks changes of such a disk of such a machine."""
    controller = machine.controllers.get(disk.slot[:2])
    shared = controller is not None and controller.shared
    return (
        machine.config.hardware_version >= TRACKING_HARDWARE
        and disk.options.in_snapshots
        and disk.options.sharing == "sharingNone"
        and not shared
    )


def snapshot_obstacle(machine: Machine) -> str | None:
    """Why a host makes no snapshot of the machine at all; None if it does."""
    for disk in machine.disks.values():
        controller = machine.controllers.get(disk.slot[:2])
        if controller is not None and controller.shared:
            return f"controller {disk.slot.bus}{disk.slot.number} shares its bus: no snapshot can be made"
        if disk.options.sharing == "sharingMultiWriter" and disk.options.in_snapshots:
            return f"{disk.slot.label} is shared by several writers: no snapshot can be made"
    return None


def add_controller(machine: Machine, controller: Controller) -> None:
    """One that is there already is replaced, which its disks do not notice."""
    machine.controllers = {**machine.controllers, (controller.bus, controller.number): controller}


def next_controller(machine: Machine, kind: str, *, shared_bus: str = "noSharing") -> Controller:
    """A controller of that kind at the first number that is free on its bus."""
    bus = BUSES[KINDS[kind][0]]
    for number in range(bus.controllers):
        if (bus.name, number) not in machine.controllers:
            return Controller(kind, number, shared_bus)
    raise InvalidDeviceSpec(f"{machine.name} has no room for another {bus.name} controller")


def add_disk(
    machine: Machine,
    capacity: int,
    *,
    thin: bool,
    path: str | None,
    unit: int | None,
    controller: Controller | None = None,
    options: DiskOptions = PLAIN,
) -> SimDisk:
    slot = free_slot(machine, unit, controller)
    datastore, name = _place(machine, path)
    if datastore.exists(name):
        raise FileAlreadyExists(datastore.path(name))
    links.create(datastore, name, capacity, thin=thin)
    try:
        return _plug(machine, datastore, name, slot, controller, options)
    except BaseException:
        links.delete(datastore, name)
        raise


def attach_disk(
    machine: Machine,
    path: str,
    *,
    unit: int | None,
    controller: Controller | None = None,
    options: DiskOptions = PLAIN,
) -> SimDisk:
    slot = free_slot(machine, unit, controller)
    datastore, name = _place(machine, path)
    if not datastore.exists(name):
        raise FileNotFound(datastore.path(name))
    if any(disk.file == datastore.path(name) for disk in machine.disks.values()):
        raise InvalidDeviceSpec(f"{datastore.path(name)} is attached already")
    return _plug(machine, datastore, name, slot, controller, options)


def free_slot(machine: Machine, wanted: int | None, controller: Controller | None = None) -> Slot:
    """A slot of a controller (the first SCSI controller if none is named): that unit, or the first free."""
    bus, number = (controller.bus, controller.number) if controller is not None else ("scsi", 0)
    taken = {disk.slot for disk in machine.disks.values()}
    slots = [Slot(bus, number, unit) for unit in BUSES[bus].units]
    if wanted is not None:
        slot = Slot(bus, number, wanted)
        if slot not in slots or slot in taken:
            raise InvalidDeviceSpec(f"unit {wanted} of controller {bus}{number} is not free")
        return slot
    free = next((slot for slot in slots if slot not in taken), None)
    if free is None:
        raise InvalidDeviceSpec(f"controller {bus}{number} has no free unit")
    return free


def _place(machine: Machine, path: str | None) -> tuple[Datastore, str]:
    """Where a disk's descriptor is to be; without a path, a free name beside the .vmx file."""
    stem = machine.stem
    if path is not None:
        store_name, name = split_path(path)
        datastore = machine.home.datastore(store_name)
        if name.endswith(".vmdk"):
            return datastore, name
        if name:
            raise InvalidDatastorePath(path)
        # Only a datastore was named: its own choice of folder and name.
        if datastore is not machine.datastore:
            datastore.store.make_folder(machine.folder)
    else:
        datastore = machine.datastore
    candidate, number = f"{stem}.vmdk", 0
    while datastore.exists(candidate):
        number += 1
        candidate = f"{stem}_{number}.vmdk"
    return datastore, candidate


def _plug(
    machine: Machine,
    datastore: Datastore,
    name: str,
    slot: Slot,
    controller: Controller | None,
    options: DiskOptions,
) -> SimDisk:
    disk = SimDisk(machine, slot, datastore, name, options)
    if controller is not None:
        add_controller(machine, controller)
    with machine.gate.stun():
        if machine.powered_on:
            try:
                disk.attach()
            except Locked as error:
                raise FileLocked(disk.file, str(error)) from error
        elif machine.config.change_tracking and trackable(machine, disk):
            disk.track()
        machine.disks = dict(sorted({**machine.disks, disk.key: disk}.items()))
    machine.save()
    return disk


def _without_snapshots(machine: Machine, disk: SimDisk) -> None:
    if any(disk.key in snapshot.disks for snapshot in machine.snapshots()):
        raise GenericVmConfigFault(
            f"{machine.name}: disk {disk.key} belongs to a snapshot; remove the snapshots first"
        )


def remove_disk(machine: Machine, key: int, *, destroy_files: bool) -> None:
    disk = machine.disk(key)
    _without_snapshots(machine, disk)
    with machine.gate.stun():
        disk.detach()
        machine.disks = {other: found for other, found in machine.disks.items() if other != key}
    machine.save()
    if destroy_files:
        delete_chain(disk, machine.home.shared_links(machine))


def delete_chain(disk: SimDisk, shared: Collection[str] = ()) -> None:
    """All links of a disk that is not open, except those that others stand on (``shared``, by path). Raises
    FileLocked, and FileFault where a file resists.
    """
    store = disk.datastore
    names = [name for name in (disk.leaf, *disk.facts.parents) if store.path(name) not in shared]
    try:
        held = store.locks.acquire([(name, LockMode.WRITE) for name in names], "a deletion")
    except Locked as error:
        raise FileLocked(disk.file, str(error)) from error
    with held:
        for name in names:
            links.delete(store, name)


def grow_disk(machine: Machine, key: int, capacity: int) -> None:
    disk = machine.disk(key)
    if capacity < disk.capacity:
        raise InvalidDeviceSpec(f"disk {key} has {disk.capacity} bytes and cannot shrink to {capacity}")
    if disk.facts.parents or disk.file in machine.home.shared_links(machine):
        raise GenericVmConfigFault(f"{machine.name}: disk {key} has snapshots or clones and cannot be grown")
    try:
        with machine.gate.stun():
            disk.grow(capacity)
    except Locked as error:
        raise FileLocked(disk.file, str(error)) from error
    except VixError:
        machine.save()
        raise
    machine.save()
