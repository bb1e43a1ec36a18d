"""The diagnosis of disks and of the machine itself: from plain data to findings, without any call.

Sources: the published vSphere documentation on change tracking, snapshots and disk modes, the virtual disk
development kit's release notes and guide on what each transport can open, and users' threads (each cause here
was somebody's lost night; see ``docs/explanation/change-tracking.md``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vdkit.disklib.modes import ModeName, disk_obstacle, disk_subject
from vdkit.errors import ExitCode
from vdkit.jobs.findings import DiskReport, DiskVerdict, Finding, ModeUse, note, problem, warning
from vdkit.vsphere.model import (
    Backing,
    ControllerKind,
    Power,
    Tracking,
    VirtualDisk,
    VirtualMachine,
)
from vdkit.vsphere.placement import DatastoreFacts, Placement

#: The first version of virtual hardware whose changes are tracked.
MIN_HARDWARE: Final = 7
#: The version of virtual hardware that came with virtual volumes; older machines lie on them by accident.
VVOL_MIN_HARDWARE: Final = 11
#: Snapshots of a machine with change tracking that others have found to be too many.
MANY_SNAPSHOTS: Final = 28
#: Snapshots in a row that a host makes.
MAX_SNAPSHOTS: Final = 32
SECTOR: Final = 512
#: Modes that open a disk of a host, in the order in which they are shown.
_REMOTE: Final[tuple[ModeName, ...]] = ("nbdssl", "nbd", "hotadd", "san")
#: Bytes that a hosted (sparse, flat) VMDK can describe, and the largest disk of vSphere.
HOSTED_MAX_BYTES: Final = 2 << 40
VSPHERE_MAX_BYTES: Final = 62 << 40

_TRACKING_COMMAND: Final = "vdkit tracking {vm} --enable"


def disk_report(vm: VirtualMachine, disk: VirtualDisk, datastore: DatastoreFacts | None) -> DiskReport:
    """Everything about one disk; ``datastore`` is where it lies, None if the account does not see that."""
    verdict, cause, remedy = _verdict(vm, disk)
    kind = datastore.kind.upper() if datastore is not None else ""
    return DiskReport(
        key=disk.key,
        label=disk.label,
        file=disk.file,
        verdict=verdict,
        cause=cause,
        remedy=remedy,
        in_backup=disk.in_snapshots and not _stops_snapshots(disk),
        modes=tuple(modes(disk, kind)),
        findings=tuple(_findings(vm, disk, datastore, verdict, cause, remedy)),
    )


def subject_of(disk: VirtualDisk) -> str:
    return f"disk {disk.key} ({disk.label})"


# -- can it be incremental? --------------------------------------------------------------------------


def _verdict(vm: VirtualMachine, disk: VirtualDisk) -> tuple[DiskVerdict, str, str | None]:
    state = disk.tracking
    command = _TRACKING_COMMAND.format(vm=vm.moref)
    match state.tracking:
        case Tracking.ACTIVE:
            return DiskVerdict.TRACKED, state.reason, None
        case Tracking.OFF | Tracking.PENDING if vm.snapshots:
            remedy = f"delete the snapshots of the machine, then: {command}"
            return DiskVerdict.AFTER_REMEDY, f"{state.reason}, and it cannot begin above snapshots", remedy
        case Tracking.OFF | Tracking.PENDING if vm.template:
            remedy = f"convert it to a machine, then: {command}"
            return DiskVerdict.AFTER_REMEDY, f"{state.reason}, and a template is not reconfigured", remedy
        case Tracking.OFF:
            return DiskVerdict.WILL_START, state.reason, f"the next backup switches it on, or: {command}"
        case Tracking.PENDING:
            cure = "the next backup makes and removes a snapshot first"
            return DiskVerdict.WILL_START, state.reason, f"{cure}, or: {command}, or a power cycle"
        case Tracking.UNSUPPORTED if disk.backing is Backing.OTHER:
            return DiskVerdict.NEVER, state.reason, state.remedy
        case Tracking.UNSUPPORTED:
            return DiskVerdict.AFTER_REMEDY, state.reason, state.remedy
    raise AssertionError(f"unreachable: {state.tracking}")


def _findings(
    vm: VirtualMachine,
    disk: VirtualDisk,
    datastore: DatastoreFacts | None,
    verdict: DiskVerdict,
    cause: str,
    remedy: str | None,
) -> Iterator[Finding]:
    what = subject_of(disk)
    if _stops_snapshots(disk):
        yield problem(
            "disk.shared",
            what,
            f"{cause}; no snapshot of the machine can be made",
            remedy,
            ExitCode.CONTROL,
        )
    elif not disk.in_snapshots:
        check = "disk.rdm-physical" if disk.backing is Backing.RAW_MAPPING_PHYSICAL else "disk.independent"
        text = f"NOT in a backup: {cause}"
        yield problem(check, what, text, remedy, ExitCode.SOURCE_INCOMPLETE)
    elif verdict in (DiskVerdict.AFTER_REMEDY, DiskVerdict.NEVER):
        text = f"every backup reads all of it: {cause}"
        yield problem("disk.untracked", what, text, remedy, ExitCode.CHANGE_TRACKING)
    elif verdict is DiskVerdict.WILL_START:
        check = "disk.pending" if disk.tracking.tracking is Tracking.PENDING else "disk.off"
        yield warning(check, what, f"the next backup is a full one: {cause}", remedy)
    yield from _kind(disk, what)
    yield from _place(vm, disk, datastore, what)


def _stops_snapshots(disk: VirtualDisk) -> bool:
    return disk.shared and disk.in_snapshots


def _kind(disk: VirtualDisk, what: str) -> Iterator[Finding]:
    if disk.backing is Backing.RAW_MAPPING:
        text = "a raw mapping in virtual mode: backed up like any disk, and restored as an ordinary one"
        yield note("disk.rdm-virtual", what, text)
    if disk.encrypted:
        yield note("disk.encrypted", what, "encrypted: only nbdssl reads it, and in clear behind the TLS")
    if disk.capacity % SECTOR or disk.capacity <= 0:
        text = f"its {disk.capacity} bytes are not whole sectors of {SECTOR}"
        remedy = "grow it by a little with the machine powered off"
        yield problem("disk.size", what, text, remedy, ExitCode.CONTROL)
    elif disk.capacity > VSPHERE_MAX_BYTES:
        text = f"its {disk.capacity} bytes are more than the {VSPHERE_MAX_BYTES} of vSphere's largest disk"
        yield warning("disk.size", what, text, "look at it with the host's own tools")
    elif disk.capacity > HOSTED_MAX_BYTES:
        text = "larger than 2 TiB: it can be backed up and restored, but not converted to a hosted VMDK type"
        yield note("disk.size", what, text)
    if disk.controller is not None and disk.controller.kind is ControllerKind.IDE:
        yield note("disk.controller", what, "on IDE: HotAdd cannot open it, every other mode can")


def _place(
    vm: VirtualMachine, disk: VirtualDisk, datastore: DatastoreFacts | None, what: str
) -> Iterator[Finding]:
    if datastore is None:
        return
    if not datastore.accessible:
        text = f"its datastore {datastore.name} is not accessible"
        remedy = "look at the storage of the host"
        yield problem("disk.datastore", what, text, remedy, ExitCode.CONTROL)
    if datastore.kind.upper() == "VVOL":
        version = vm.hardware_version
        if version is not None and version < VVOL_MIN_HARDWARE:
            text = f"on virtual volumes, but the machine has virtual hardware {version}"
            remedy = f"raise the hardware version to {VVOL_MIN_HARDWARE} or later"
            yield warning("disk.vvol", what, text, remedy)
        if disk.capacity > HOSTED_MAX_BYTES:
            yield note("disk.vvol", what, "larger than 2 TiB on virtual volumes: HotAdd cannot open it")


# -- by which way can it be read? --------------------------------------------------------------------


def modes(disk: VirtualDisk, kind: str) -> Iterator[ModeUse]:
    """The transport modes for a disk on a datastore of that type (upper case, empty if unknown)."""
    unreachable = None if disk.in_snapshots else "no snapshot holds it: only with the machine powered off"
    facts = disk_subject(disk, datastore=kind)
    for mode in _REMOTE:
        refusal = unreachable or disk_obstacle(mode, facts)
        yield ModeUse(mode, refusal is None, refusal or _condition(mode, disk, kind))


def _condition(mode: str, disk: VirtualDisk, kind: str) -> str:
    bus = disk.controller.kind if disk.controller is not None else None
    match mode:
        case "hotadd" if disk.encrypted:
            return "if the proxy is an encrypted machine too"
        case "hotadd" if kind == "VVOL":
            return "if the proxy lies on the same virtual volumes datastore"
        case "hotadd" if kind == "VSAN":
            return "if the proxy lies on vSAN as well, where there are deltas"
        case "hotadd" if bus in (ControllerKind.SATA, ControllerKind.NVME):
            return f"it is {bus.value.upper()} here, and SCSI on the proxy"
        case "hotadd":
            return "if the proxy is a machine that sees the datastore"
        case "san" if disk.backing is Backing.RAW_MAPPING:
            return "if the LUN has the same number on host and proxy"
        case "san":
            return "if the LUN is visible here"
        case _:
            return "over the network"


# -- the machine -------------------------------------------------------------------------------------


def machine_findings(vm: VirtualMachine, placed: Placement | None) -> Iterator[Finding]:
    """What concerns all of its disks."""
    what = f"machine {vm.name}"
    if not vm.disks:
        yield problem("machine.disks", what, "it has no disk", None, ExitCode.CONTROL)
    elif not any(disk.in_snapshots for disk in vm.disks):
        text = "it has no disk that a snapshot can hold: there is nothing to back up"
        remedy = "make a disk dependent, or back it up from inside the guest"
        yield problem("machine.disks", what, text, remedy, ExitCode.CONTROL)
    if vm.instance_uuid is None:
        text = "it has no instance UUID to file its points under"
        yield problem("machine.uuid", what, text, "register it at vCenter", ExitCode.CONTROL)
    if not vm.change_tracking_supported:
        version = "older" if vm.hardware_version is None else str(vm.hardware_version)
        text = f"virtual hardware {version} tracks no changes ({MIN_HARDWARE} or later does)"
        remedy = "upgrade its virtual hardware with the machine powered off"
        yield problem("machine.hardware", what, text, remedy, ExitCode.CHANGE_TRACKING)
    if vm.template:
        text = "a template: no snapshot can be made of it"
        remedy = "convert it to a machine for the backup; the Python library opens its disks as they are"
        yield problem("machine.template", what, text, remedy, ExitCode.CONTROL)
    if placed is not None and not placed.usable:
        text = "the host does not reach it (disconnected, orphaned or inaccessible)"
        remedy = "look at the host and its storage in the host's client"
        yield problem("machine.connection", what, text, remedy, ExitCode.CONTROL)
    if vm.consolidation_needed:
        text = "its disks need consolidation: the next backup does that first, which may take long"
        remedy = "consolidate them now in the host's client, and see what held them"
        yield warning("machine.consolidation", what, text, remedy)
    yield from _snapshot_findings(vm, what)
    if vm.power is Power.SUSPENDED:
        text = "suspended: a snapshot freezes the disks, not what the guest had in memory"
        yield note("machine.power", what, text)
    elif vm.power is Power.ON and placed is not None and not placed.tools_running:
        text = "VMware Tools do not run: its file systems cannot be brought to rest (--quiesce fails)"
        yield note("machine.tools", what, text, "install or start open-vm-tools in the guest")


def _snapshot_findings(vm: VirtualMachine, what: str) -> Iterator[Finding]:
    found = list(vm.all_snapshots())
    if not found:
        return
    deepest = max(_depth(vm))
    text = f"{len(found)} snapshots, {deepest} in a row"
    if deepest >= MAX_SNAPSHOTS:
        remedy = "delete snapshots, the oldest first"
        text = f"{text}: a host makes no more than {MAX_SNAPSHOTS}"
        yield problem("machine.snapshots", what, text, remedy, ExitCode.CONTROL)
    elif deepest >= MANY_SNAPSHOTS:
        text = f"{text}: with change tracking, {MANY_SNAPSHOTS} were found to be too many"
        yield warning("machine.snapshots", what, text, "delete those that nobody needs")
    else:
        yield note("machine.snapshots", what, text)


def _depth(vm: VirtualMachine) -> Iterator[int]:
    todo = [(root, 1) for root in vm.snapshots]
    while todo:
        snapshot, depth = todo.pop()
        yield depth
        todo += [(child, depth + 1) for child in snapshot.children]
