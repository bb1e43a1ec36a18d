"""Devices of a machine: disks added, attached, removed, grown; memory and processors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vdkit.errors import VixError
from vdkit.sim import links
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
from vdkit.sim.locks import Locked
from vdkit.sim.snapshot import FIRST_DISK_KEY, UNITS

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

_MAX_MEMORY_MIB = 24 << 20
_MAX_CPUS = 960


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


def add_disk(machine: Machine, capacity: int, *, thin: bool, path: str | None, unit: int | None) -> SimDisk:
    unit = free_unit(machine, unit)
    datastore, name = _place(machine, path)
    if datastore.exists(name):
        raise FileAlreadyExists(datastore.path(name))
    links.create(datastore, name, capacity, thin=thin)
    try:
        return _plug(machine, datastore, name, unit)
    except BaseException:
        links.delete(datastore, name)
        raise


def attach_disk(machine: Machine, path: str, *, unit: int | None) -> SimDisk:
    unit = free_unit(machine, unit)
    datastore, name = _place(machine, path)
    if not datastore.exists(name):
        raise FileNotFound(datastore.path(name))
    if any(disk.file == datastore.path(name) for disk in machine.disks.values()):
        raise InvalidDeviceSpec(f"{datastore.path(name)} is attached already")
    return _plug(machine, datastore, name, unit)


def free_unit(machine: Machine, wanted: int | None) -> int:
    taken = {disk.unit for disk in machine.disks.values()}
    if wanted is not None:
        if wanted not in UNITS or wanted in taken:
            raise InvalidDeviceSpec(f"unit {wanted} of the SCSI controller is not free")
        return wanted
    free = next((unit for unit in UNITS if unit not in taken), None)
    if free is None:
        raise InvalidDeviceSpec("the SCSI controller has no free unit")
    return free


def _place(machine: Machine, path: str | None) -> tuple[Datastore, str]:
    """Where a disk's descriptor is to be; without a path, a free name beside the .vmx file."""
    stem = machine.vmx_name.removesuffix(".vmx")
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


def _plug(machine: Machine, datastore: Datastore, name: str, unit: int) -> SimDisk:
    disk = SimDisk(machine, FIRST_DISK_KEY + UNITS.index(unit), unit, datastore, name)
    with machine.gate.stun():
        if machine.powered_on:
            try:
                disk.attach()
            except Locked as error:
                raise FileLocked(disk.file, str(error)) from error
        elif machine.config.change_tracking:
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
        delete_chain(disk)


def delete_chain(disk: SimDisk) -> None:
    """All links of a disk that is not open. Raises FileLocked, and FileFault where a file resists."""
    try:
        held = disk.datastore.locks.acquire(disk.all_exclusive(), "a deletion")
    except Locked as error:
        raise FileLocked(disk.file, str(error)) from error
    with held:
        for name in (disk.leaf, *disk.facts.parents):
            links.delete(disk.datastore, name)


def grow_disk(machine: Machine, key: int, capacity: int) -> None:
    disk = machine.disk(key)
    if capacity < disk.capacity:
        raise InvalidDeviceSpec(f"disk {key} has {disk.capacity} bytes and cannot shrink to {capacity}")
    if disk.facts.parents:
        raise GenericVmConfigFault(f"{machine.name}: disk {key} has snapshots and cannot be grown")
    try:
        with machine.gate.stun():
            disk.grow(capacity)
    except Locked as error:
        raise FileLocked(disk.file, str(error)) from error
    except VixError:
        machine.save()
        raise
    machine.save()
