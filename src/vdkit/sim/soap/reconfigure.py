"""ConfigSpec: what ReconfigVM_Task and CreateVM_Task ask of a machine, checked first and then done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.faults import InvalidDeviceSpec
from vdkit.sim.snapshot import DiskSpec
from vdkit.sim.soap import vmconfig
from vdkit.sim.soap.faults import invalid_argument

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

Device = vim.vm.device
Step = Callable[[], object]
#: Largest disk that vSphere makes, in bytes.
MAX_DISK_BYTES = 62 << 40
#: Devices in one specification.
MAX_CHANGES = 64


def _ignored(device: Any) -> bool:
    """What a specification may name although the simulated machine has a fixed one of its kind."""
    return isinstance(device, Device.VirtualController | Device.VirtualEthernetCard)


def _capacity(device: Any, index: int) -> int:
    size = device.capacityInBytes or (device.capacityInKB or 0) * 1024
    if not 0 < size <= MAX_DISK_BYTES or size % 512:
        raise InvalidDeviceSpec(f"a disk of {size} bytes", device_index=index)
    return int(size)


def _path(device: Any) -> str | None:
    """The datastore path that a backing names, None for "where the machine is"."""
    name = getattr(device.backing, "fileName", None) or ""
    return name if name and not name.rstrip().endswith("]") else None


def _unit(device: Any) -> int | None:
    unit = device.unitNumber
    return unit if unit is not None and unit >= 0 else None


def _disk_of(change: Any, index: int) -> Any | None:
    device = change.device
    if isinstance(device, Device.VirtualDisk):
        return device
    if not _ignored(device):
        raise InvalidDeviceSpec(
            f"{type(device).__name__} is not simulated: only disks are", device_index=index
        )
    return None


def disk_specs(spec: Any) -> list[DiskSpec]:
    """The disks of a machine to be made. Raises InvalidDeviceSpec."""
    found = []
    for index, change in enumerate(_changes(spec)):
        device = _disk_of(change, index)
        if device is None:
            continue
        if change.operation != "add":
            raise InvalidDeviceSpec("a new machine has no device to change", device_index=index)
        if change.fileOperation is None:
            found.append(DiskSpec(path=_path(device), unit=_unit(device)))
        else:
            found.append(_new_disk(change, device, index))
    return found


def _changes(spec: Any) -> list[Any]:
    if len(spec.deviceChange) > MAX_CHANGES:
        raise invalid_argument("spec.deviceChange")
    return list(spec.deviceChange)


def _new_disk(change: Any, device: Any, index: int) -> DiskSpec:
    if change.fileOperation != "create":
        raise InvalidDeviceSpec(f"file operation {change.fileOperation}", device_index=index)
    return DiskSpec(
        capacity=_capacity(device, index),
        thin=bool(getattr(device.backing, "thinProvisioned", None)),
        path=_path(device),
        unit=_unit(device),
    )


def steps(machine: Machine, spec: Any) -> list[Step]:
    """What to do, in order. Raises before anything is done if a part of the specification is wrong."""
    if spec.changeVersion is not None:
        states = [disk.state() for disk in list(machine.disks.values())]
        if spec.changeVersion != vmconfig.change_version(machine.config, states):
            raise vim.fault.ConcurrentAccess(
                msg="The virtual machine's configuration was changed by another client."
            )
    found: list[Step] = []
    name = spec.name
    if name and name != machine.name:
        found.append(lambda: machine.rename(name))
    if spec.changeTrackingEnabled is not None:
        enabled = bool(spec.changeTrackingEnabled)
        found.append(lambda: machine.set_change_tracking(enabled))
    if spec.memoryMB is not None or spec.numCPUs is not None or spec.annotation is not None:
        memory, cpus, annotation = spec.memoryMB, spec.numCPUs, spec.annotation
        found.append(lambda: machine.set_hardware(memory_mib=memory, cpus=cpus, annotation=annotation))
    for index, change in enumerate(_changes(spec)):
        device = _disk_of(change, index)
        if device is not None:
            found.append(_disk_step(machine, change, device, index))
    return found


def _disk_step(machine: Machine, change: Any, device: Any, index: int) -> Step:
    match change.operation:
        case "add" if change.fileOperation is None:
            path, unit = _path(device), _unit(device)
            if path is None:
                raise InvalidDeviceSpec("an existing disk needs a file name", device_index=index)
            return lambda: machine.attach_disk(path, unit=unit)
        case "add":
            new = _new_disk(change, device, index)
            return lambda: machine.add_disk(new.capacity, thin=new.thin, path=new.path, unit=new.unit)
        case "remove":
            destroy = change.fileOperation == "destroy"
            key = machine.disk(device.key).key
            return lambda: machine.remove_disk(key, destroy_files=destroy)
        case "edit":
            disk = machine.disk(device.key)
            wanted = _capacity(device, index)
            if wanted == disk.capacity:
                return lambda: None
            if wanted < disk.capacity:
                raise InvalidDeviceSpec("a disk cannot shrink", device_index=index)
            return lambda: machine.grow_disk(disk.key, wanted)
        case _:
            raise InvalidDeviceSpec(f"operation {change.operation}", device_index=index)
