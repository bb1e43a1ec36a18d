"""Making, changing, starting and deleting virtual machines; what a restore needs.

Source: the vSphere Web Services API reference (CreateVM_Task, ReconfigVM_Task, VirtualDeviceConfigSpec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from pyVmomi import vim

from vdkit.errors import (
    AlreadyExists,
    Ambiguous,
    ControlError,
    ObjectNotFound,
    TaskFailed,
    UsageError,
    VixError,
)
from vdkit.vsphere import tasks
from vdkit.vsphere.hardware import escaped_name, plain_name
from vdkit.vsphere.inventory import get_machine
from vdkit.vsphere.model import Power, VirtualMachine
from vdkit.vsphere.properties import Row, of_all
from vdkit.vsphere.session import Session

Adapter = Literal["lsilogic", "buslogic", "lsisas", "pvscsi"]
Firmware = Literal["bios", "efi"]

#: Disks that hang on one SCSI controller: units 0 to 15 without 7, the controller's own.
DISKS_PER_CONTROLLER: Final = 15
MAX_CONTROLLERS: Final = 4
#: Bytes of a sector, as the API counts disks.
SECTOR: Final = 512
#: Characters that the API allows in a name.
MAX_NAME: Final = 80

_CONTROLLERS: Final = {
    "lsilogic": vim.vm.device.VirtualLsiLogicController,
    "buslogic": vim.vm.device.VirtualBusLogicController,
    "lsisas": vim.vm.device.VirtualLsiLogicSASController,
    "pvscsi": vim.vm.device.ParaVirtualSCSIController,
}


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk to make, empty. ``capacity`` is bytes, whole sectors of 512."""

    capacity: int
    thin: bool = True


@dataclass(frozen=True, slots=True)
class NewMachine:
    """A machine to make: its files go into a folder of its name on ``datastore``."""

    name: str
    datastore: str
    disks: tuple[NewDisk, ...]
    guest_id: str = "otherGuest64"
    firmware: Firmware = "bios"
    adapter: Adapter = "lsilogic"
    cpus: int = 1
    memory_mib: int = 1024
    hardware_version: int | None = None
    """None leaves it to the host."""


@dataclass(frozen=True, slots=True)
class _Place:
    folder: Any
    pool: Any


def create(
    session: Session,
    new: NewMachine,
    *,
    deadline: float = tasks.DEFAULT_DEADLINE,
    progress: Callable[[int], None] | None = None,
) -> VirtualMachine:
    """Make a machine, powered off, with empty disks in the order given.

    ``deadline`` is in seconds. Raises AlreadyExists if any machine has that name, ObjectNotFound for the
    datastore, NoPrivilege, DiskFull.
    """
    _check(new)
    require_free_name(session, new.name)
    place = _place(session, new.datastore)
    version = None if new.hardware_version is None else f"vmx-{new.hardware_version:02d}"
    spec = vim.vm.ConfigSpec(
        name=escaped_name(new.name),
        files=vim.vm.FileInfo(vmPathName=f"[{new.datastore}]"),
        guestId=new.guest_id,
        firmware=new.firmware,
        numCPUs=new.cpus,
        memoryMB=new.memory_mib,
        version=version,
        deviceChange=list(_devices(new)),
    )
    what = f"create machine {new.name!r} on [{new.datastore}]"
    made = None
    try:
        made = tasks.run(
            session,
            what,
            lambda: place.folder.CreateVM_Task(spec, place.pool, None),
            deadline=deadline,
            progress=progress,
        )
        if made is None:
            raise ControlError(f"{session.where}: {what}: the host names no machine after success")
        return get_machine(session, made._GetMoId())
    except BaseException as error:
        refused = isinstance(error, VixError) and not (error.retryable or isinstance(error, TaskFailed))
        if made is not None or not refused:
            # Nobody deletes what nobody knows: whether it is ours cannot be told by its name.
            error.add_note(f"a machine {new.name!r} may have been made on [{new.datastore}]: delete it")
        raise


def require_free_name(session: Session, name: str) -> None:
    """Raises AlreadyExists if a machine is called ``name``."""
    rows = of_all(session, {vim.VirtualMachine: ("name",)}, "list the names of the machines")
    taken = [row.moref for row in rows if plain_name(row.get("name", "")) == name]
    if taken:
        raise AlreadyExists(
            f"{session.where}: a machine is called {name!r} already (moref={taken[0]})",
            remedy="choose another name",
        )


def reconfigure(
    session: Session, vm: VirtualMachine, *, cpus: int | None = None, memory_mib: int | None = None
) -> VirtualMachine:
    """Change what is given, and return the machine as it is then."""
    spec = vim.vm.ConfigSpec(numCPUs=cpus, memoryMB=memory_mib)
    machine = session.managed(vim.VirtualMachine, vm.moref)
    tasks.run(session, f"reconfigure {vm.name} ({vm.moref})", lambda: machine.ReconfigVM_Task(spec))
    return get_machine(session, vm.moref)


def power_on(session: Session, vm: VirtualMachine) -> VirtualMachine:
    """Start a machine; one that runs is left alone."""
    machine = session.managed(vim.VirtualMachine, vm.moref)
    if get_machine(session, vm.moref).power is not Power.ON:
        tasks.run(session, f"power on {vm.name} ({vm.moref})", lambda: machine.PowerOnVM_Task(None))
    return get_machine(session, vm.moref)


def power_off(session: Session, vm: VirtualMachine) -> VirtualMachine:
    """Stop a machine as if its plug were pulled; one that is off is left alone."""
    machine = session.managed(vim.VirtualMachine, vm.moref)
    if get_machine(session, vm.moref).power is not Power.OFF:
        tasks.run(session, f"power off {vm.name} ({vm.moref})", machine.PowerOffVM_Task)
    return get_machine(session, vm.moref)


def destroy(session: Session, vm: VirtualMachine) -> None:
    """Delete a powered-off machine with its files. Raises ControlError if it runs."""
    machine = session.managed(vim.VirtualMachine, vm.moref)
    tasks.run(session, f"delete {vm.name} ({vm.moref})", machine.Destroy_Task)


def _check(new: NewMachine) -> None:
    if not new.name or len(new.name) > MAX_NAME:
        raise UsageError(f"machine name {new.name!r}: 1 to {MAX_NAME} characters are needed")
    if len(new.disks) > DISKS_PER_CONTROLLER * MAX_CONTROLLERS:
        raise UsageError(f"{new.name}: more than {DISKS_PER_CONTROLLER * MAX_CONTROLLERS} disks")
    for number, disk in enumerate(new.disks):
        if disk.capacity <= 0 or disk.capacity % SECTOR:
            raise UsageError(
                f"{new.name}: disk {number}: {disk.capacity} bytes is not a positive multiple of {SECTOR}"
            )
    if new.adapter not in _CONTROLLERS:
        raise UsageError(f"{new.name}: adapter {new.adapter!r}: {', '.join(_CONTROLLERS)} are known")


def _devices(new: NewMachine) -> Iterator[Any]:
    """Controllers and disks; negative keys stand for what the host will number."""
    device = vim.vm.device
    add = device.VirtualDeviceSpec.Operation.add
    for bus in range(-(-len(new.disks) // DISKS_PER_CONTROLLER)):
        controller = _CONTROLLERS[new.adapter](
            key=-100 - bus,
            busNumber=bus,
            sharedBus=device.VirtualSCSIController.Sharing.noSharing,
        )
        yield device.VirtualDeviceSpec(operation=add, device=controller)
    for number, disk in enumerate(new.disks):
        bus, position = divmod(number, DISKS_PER_CONTROLLER)
        backing = device.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[{new.datastore}]",
            diskMode="persistent",
            thinProvisioned=disk.thin,
        )
        yield device.VirtualDeviceSpec(
            operation=add,
            fileOperation=device.VirtualDeviceSpec.FileOperation.create,
            device=device.VirtualDisk(
                key=-1000 - number,
                controllerKey=-100 - bus,
                unitNumber=position if position < 7 else position + 1,
                capacityInKB=-(-disk.capacity >> 10),
                capacityInBytes=disk.capacity,
                backing=backing,
            ),
        )


def _place(session: Session, datastore: str) -> _Place:
    """The folder and the pool for a machine on that datastore."""
    kinds: dict[Any, tuple[str, ...]] = {
        vim.Datastore: ("name",),
        vim.Datacenter: ("name", "vmFolder", "datastore"),
        vim.ComputeResource: ("name", "resourcePool", "datastore"),
    }
    rows = of_all(session, kinds, f"find datastore {datastore!r}")
    stores = [row for row in rows if row.kind == "Datastore"]
    wanted = [row for row in stores if row.get("name") == datastore]
    if not wanted:
        known = ", ".join(sorted(str(row.get("name")) for row in stores)) or "none"
        raise ObjectNotFound(
            f"{session.where}: there is no datastore {datastore!r}", remedy=f"known are: {known}"
        )
    if len(wanted) > 1:
        raise Ambiguous(
            f"{session.where}: {len(wanted)} datastores are called {datastore!r}: "
            f"{', '.join(row.moref for row in wanted)}",
            remedy="rename one of them",
        )
    centre = _with_datastore(rows, ("Datacenter",), wanted[0].moref)
    compute = _with_datastore(rows, ("ComputeResource", "ClusterComputeResource"), wanted[0].moref)
    if centre is None or compute is None:
        raise ControlError(
            f"{session.where}: no host that the account sees can use datastore {datastore!r}",
            remedy="check where the datastore is mounted and the role of the account",
        )
    return _Place(folder=centre.get("vmFolder"), pool=compute.get("resourcePool"))


def _with_datastore(rows: list[Row], kinds: tuple[str, ...], moref: str) -> Row | None:
    for row in sorted(rows, key=lambda row: str(row.get("name"))):
        if row.kind in kinds and any(store._GetMoId() == moref for store in row.get("datastore", ())):
            return row
    return None
