"""ConfigSpec: what ReconfigVM_Task and CreateVM_Task ask of a machine, checked first and then done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.controllers import BUSES, PLAIN, Controller, DiskOptions
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
#: Keys of the IDE controllers, which every machine has.
_IDE = (200, 201)
_KINDS = (
    (Device.ParaVirtualSCSIController, "pvscsi"),
    (Device.VirtualLsiLogicSASController, "lsisas"),
    (Device.VirtualLsiLogicController, "lsilogic"),
    (Device.VirtualBusLogicController, "buslogic"),
    (Device.VirtualAHCIController, "ahci"),
    (Device.VirtualNVMEController, "nvme"),
    (Device.VirtualIDEController, "ide"),
)


def _ignored(device: Any) -> bool:
    """What a specification may name although the simulated machine has a fixed one of its kind."""
    return isinstance(device, Device.VirtualController | Device.VirtualEthernetCard)


def _controllers(changes: list[Any], have: Iterable[Controller]) -> dict[int, Controller]:
    """By the keys that a specification gives them: what the machine has, and what is to be added."""
    known = {one.key: one for one in have}
    for index, change in enumerate(changes):
        device = change.device
        kind = next((name for kind, name in _KINDS if isinstance(device, kind)), None)
        if kind is None or change.operation not in ("add", "edit"):
            continue
        number = device.busNumber or 0
        if change.operation == "edit" and device.key in known:
            number = known[device.key].number
        try:
            made = Controller(kind, number, getattr(device, "sharedBus", None) or "noSharing")
        except InvalidDeviceSpec as error:
            raise InvalidDeviceSpec(str(error), device_index=index) from error
        known[device.key] = made
        known[made.key] = made
    return known


def _controller_of(device: Any, known: Mapping[int, Controller], index: int) -> Controller | None:
    """None for a disk that names no controller: it goes on the first one."""
    if device.controllerKey is None:
        return None
    found = known.get(device.controllerKey)
    if found is None and device.controllerKey in _IDE:
        found = Controller("ide", _IDE.index(device.controllerKey))
    if found is None and device.controllerKey == BUSES["scsi"].first_controller_key:
        return None
    if found is None:
        raise InvalidDeviceSpec(
            f"there is no controller {device.controllerKey} for the disk", device_index=index
        )
    return found


def _options(device: Any, index: int, before: DiskOptions = PLAIN) -> DiskOptions:
    backing = device.backing
    key = getattr(backing, "keyId", None)
    try:
        return DiskOptions(
            mode=getattr(backing, "diskMode", None) or before.mode,
            sharing=getattr(backing, "sharing", None) or before.sharing,
            mapping=getattr(backing, "compatibilityMode", None) or before.mapping,
            key_id=key.keyId if key is not None else before.key_id,
        )
    except InvalidDeviceSpec as error:
        raise InvalidDeviceSpec(str(error), device_index=index) from error


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
    changes = _changes(spec)
    known = _controllers(changes, [Controller()])
    for index, change in enumerate(changes):
        device = _disk_of(change, index)
        if device is None:
            continue
        if change.operation != "add":
            raise InvalidDeviceSpec("a new machine has no device to change", device_index=index)
        if change.fileOperation is None:
            found.append(
                DiskSpec(
                    path=_path(device),
                    unit=_unit(device),
                    controller=_controller_of(device, known, index),
                    options=_options(device, index),
                )
            )
        else:
            found.append(_new_disk(change, device, index, known))
    return found


def _changes(spec: Any) -> list[Any]:
    if len(spec.deviceChange) > MAX_CHANGES:
        raise invalid_argument("spec.deviceChange")
    return list(spec.deviceChange)


def _new_disk(change: Any, device: Any, index: int, known: Mapping[int, Controller]) -> DiskSpec:
    if change.fileOperation != "create":
        raise InvalidDeviceSpec(f"file operation {change.fileOperation}", device_index=index)
    return DiskSpec(
        capacity=_capacity(device, index),
        thin=bool(getattr(device.backing, "thinProvisioned", None)),
        path=_path(device),
        unit=_unit(device),
        controller=_controller_of(device, known, index),
        options=_options(device, index),
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
    changes = _changes(spec)
    known = _controllers(changes, machine.controllers.values())
    present = set(machine.controllers.values())
    for made in dict.fromkeys(known.values()):
        if made not in present:
            found.append(partial(machine.add_controller, made))
    for index, change in enumerate(changes):
        device = _disk_of(change, index)
        if device is not None:
            found += _disk_steps(machine, change, device, index, known)
    return found


def _disk_steps(
    machine: Machine, change: Any, device: Any, index: int, known: Mapping[int, Controller]
) -> list[Step]:
    match change.operation:
        case "add" if change.fileOperation is None:
            path, unit = _path(device), _unit(device)
            if path is None:
                raise InvalidDeviceSpec("an existing disk needs a file name", device_index=index)
            controller, options = _controller_of(device, known, index), _options(device, index)
            return [lambda: machine.attach_disk(path, unit=unit, controller=controller, options=options)]
        case "add":
            new = _new_disk(change, device, index, known)
            return [
                lambda: machine.add_disk(
                    new.capacity,
                    thin=new.thin,
                    path=new.path,
                    unit=new.unit,
                    controller=new.controller,
                    options=new.options,
                )
            ]
        case "remove":
            destroy = change.fileOperation == "destroy"
            key = machine.disk(device.key).key
            return [lambda: machine.remove_disk(key, destroy_files=destroy)]
        case "edit":
            return _edit_steps(machine, device, index)
        case _:
            raise InvalidDeviceSpec(f"operation {change.operation}", device_index=index)


def _edit_steps(machine: Machine, device: Any, index: int) -> list[Step]:
    disk = machine.disk(device.key)
    wanted, options = _capacity(device, index), _options(device, index, disk.options)
    if wanted < disk.capacity:
        raise InvalidDeviceSpec("a disk cannot shrink", device_index=index)
    found: list[Step] = []
    if wanted > disk.capacity:
        found.append(lambda: machine.grow_disk(disk.key, wanted))
    if options != disk.options:
        found.append(lambda: machine.set_disk_options(disk.key, options))
    return found
