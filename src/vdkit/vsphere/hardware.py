"""From pyVmomi's objects to the plain data of :mod:`vdkit.vsphere.model`.

Source: the vSphere Web Services API reference (VirtualMachineConfigInfo, VirtualDisk and its backings).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import LimitExceeded
from vdkit.vsphere.model import (
    Backing,
    Controller,
    ControllerKind,
    Power,
    Snapshot,
    Tracking,
    TrackingState,
    VirtualDisk,
    VirtualMachine,
)
from vdkit.vsphere.properties import Row

_BACKING = vim.vm.device.VirtualDevice
#: Links of a chain below a disk; ESXi allows 32 snapshots.
MAX_LINKS: Final = 255
#: Snapshots nested in each other; a bound on recursion.
MAX_SNAPSHOT_DEPTH: Final = 255
_MIB: Final = 1 << 20

#: What :func:`machine` reads.
MACHINE_PROPERTIES: Final = (
    "name",
    "parent",
    "parentVApp",
    "capability.changeTrackingSupported",
    "config.changeTrackingEnabled",
    "config.files.vmPathName",
    "config.firmware",
    "config.guestId",
    "config.hardware.device",
    "config.hardware.memoryMB",
    "config.hardware.numCPU",
    "config.instanceUuid",
    "config.template",
    "config.uuid",
    "config.version",
    "runtime.consolidationNeeded",
    "runtime.powerState",
    "snapshot",
)

_BACKINGS: Final[tuple[tuple[Any, Backing], ...]] = (
    (vim.vm.device.VirtualDisk.SeSparseBackingInfo, Backing.SESPARSE),
    (vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo, Backing.RAW_MAPPING),
    (vim.vm.device.VirtualDisk.RawDiskVer2BackingInfo, Backing.RAW_DISK),
    (vim.vm.device.VirtualDisk.SparseVer2BackingInfo, Backing.SPARSE),
    (vim.vm.device.VirtualDisk.FlatVer2BackingInfo, Backing.FLAT),
)

#: Most special first: the first type that fits decides.
_CONTROLLERS: Final[tuple[tuple[Any, ControllerKind], ...]] = (
    (vim.vm.device.ParaVirtualSCSIController, ControllerKind.PVSCSI),
    (vim.vm.device.VirtualLsiLogicSASController, ControllerKind.LSISAS),
    (vim.vm.device.VirtualLsiLogicController, ControllerKind.LSILOGIC),
    (vim.vm.device.VirtualBusLogicController, ControllerKind.BUSLOGIC),
    (vim.vm.device.VirtualSATAController, ControllerKind.SATA),
    (vim.vm.device.VirtualNVMEController, ControllerKind.NVME),
    (vim.vm.device.VirtualIDEController, ControllerKind.IDE),
    (vim.vm.device.VirtualController, ControllerKind.OTHER),
)


def machine(row: Row, path: str) -> VirtualMachine:
    """The machine of a row of :data:`MACHINE_PROPERTIES`."""
    enabled = bool(row.get("config.changeTrackingEnabled", False))
    supported = bool(row.get("capability.changeTrackingSupported", True))
    tree = row.get("snapshot")
    return VirtualMachine(
        moref=row.moref,
        name=plain_name(row.get("name", "")),
        path=path,
        power=_power(row.get("runtime.powerState")),
        disks=tuple(disks(row.get("config.hardware.device", ()), enabled=enabled, supported=supported)),
        snapshots=snapshots(tree.rootSnapshotList) if tree is not None else (),
        instance_uuid=row.get("config.instanceUuid"),
        bios_uuid=row.get("config.uuid"),
        change_tracking=enabled,
        change_tracking_supported=supported,
        consolidation_needed=bool(row.get("runtime.consolidationNeeded", False)),
        template=bool(row.get("config.template", False)),
        guest_id=row.get("config.guestId"),
        firmware=row.get("config.firmware"),
        hardware_version=_hardware_version(row.get("config.version")),
        cpus=int(row.get("config.hardware.numCPU", 1)),
        memory_mib=int(row.get("config.hardware.memoryMB", 0)),
        vmx=row.get("config.files.vmPathName"),
    )


def plain_name(name: str) -> str:
    """A name as people wrote it: the API escapes slash, backslash and per cent."""
    return (
        name.replace("%2f", "/")
        .replace("%2F", "/")
        .replace("%5c", "\\")
        .replace("%5C", "\\")
        .replace("%25", "%")
    )


def escaped_name(name: str) -> str:
    """The reverse of :func:`plain_name`: a name as the API wants it."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def disks(devices: Iterable[Any], *, enabled: bool, supported: bool) -> Iterator[VirtualDisk]:
    """The disks among ``devices``, with the state of change tracking of each."""
    found = list(devices)
    by_key = {one.key: one for one in controllers(found)}
    for device in found:
        if isinstance(device, vim.vm.device.VirtualDisk):
            on = by_key.get(device.controllerKey or 0)
            yield _disk(device, on, enabled=enabled, supported=supported)


def controllers(devices: Iterable[Any]) -> Iterator[Controller]:
    """The controllers among ``devices``, those of disks and others."""
    for device in devices:
        kind = next((kind for type_, kind in _CONTROLLERS if isinstance(device, type_)), None)
        if kind is not None:
            sharing = getattr(device, "sharedBus", None) or "noSharing"
            yield Controller(
                device.key, kind, device.busNumber or 0, shared=sharing not in ("noSharing", "none")
            )


def snapshots(trees: Iterable[Any], depth: int = 0) -> tuple[Snapshot, ...]:
    if depth > MAX_SNAPSHOT_DEPTH:
        raise LimitExceeded(f"snapshots are nested deeper than {MAX_SNAPSHOT_DEPTH}")
    return tuple(
        Snapshot(
            moref=tree.snapshot._GetMoId(),
            name=plain_name(tree.name or ""),
            description=tree.description or "",
            created=tree.createTime,
            quiesced=bool(tree.quiesced),
            children=snapshots(tree.childSnapshotList or (), depth + 1),
        )
        for tree in trees
    )


def _disk(device: Any, controller: Controller | None, *, enabled: bool, supported: bool) -> VirtualDisk:
    backing = device.backing
    kind = next((name for type_, name in _BACKINGS if isinstance(backing, type_)), Backing.OTHER)
    if kind is Backing.RAW_MAPPING and getattr(backing, "compatibilityMode", None) == "physicalMode":
        kind = Backing.RAW_MAPPING_PHYSICAL
    mode = getattr(backing, "diskMode", None) or "persistent"
    multi_writer = getattr(backing, "sharing", None) == "sharingMultiWriter"
    shared = multi_writer or (controller is not None and controller.shared)
    change_id = getattr(backing, "changeId", None) or None
    return VirtualDisk(
        key=device.key,
        label=(device.deviceInfo.label if device.deviceInfo else None) or f"disk {device.key}",
        file=getattr(backing, "fileName", None) or "",
        capacity=device.capacityInBytes or (device.capacityInKB or 0) << 10,
        backing=kind,
        uuid=getattr(backing, "uuid", None),
        change_id=change_id,
        mode=mode,
        thin=getattr(backing, "thinProvisioned", None),
        shared=shared,
        parents=tuple(_parents(backing)),
        tracking=diagnose(
            kind, mode, shared=shared, change_id=change_id, enabled=enabled, supported=supported
        ),
        controller=controller,
        unit=device.unitNumber,
        encrypted=getattr(backing, "keyId", None) is not None,
    )


def _parents(backing: Any) -> Iterator[str]:
    link = getattr(backing, "parent", None)
    for _ in range(MAX_LINKS):
        if link is None:
            return
        yield getattr(link, "fileName", None) or ""
        link = getattr(link, "parent", None)
    raise LimitExceeded(f"{backing.fileName}: the chain is longer than {MAX_LINKS} links")


def diagnose(
    kind: Backing, mode: str, *, shared: bool, change_id: str | None, enabled: bool, supported: bool
) -> TrackingState:
    """Whether changes of a disk are tracked, and if not, why and what helps."""
    if not supported:
        return TrackingState(
            Tracking.UNSUPPORTED,
            "the machine cannot track changes",
            "raise its hardware version to 7 or later",
        )
    if kind is Backing.RAW_MAPPING_PHYSICAL:
        return TrackingState(
            Tracking.UNSUPPORTED,
            "a raw device mapping in physical mode cannot be snapshotted",
            "power the machine off and map it in virtual mode, or back it up in the guest",
        )
    if kind is Backing.OTHER:
        return TrackingState(Tracking.UNSUPPORTED, "this kind of disk has no change tracking")
    if mode.startswith("independent"):
        return TrackingState(
            Tracking.UNSUPPORTED,
            f"the disk is {mode.replace('_', ' ')}: snapshots leave it out",
            "make it dependent (with the machine powered off), or back it up in the guest",
        )
    if shared:
        return TrackingState(
            Tracking.UNSUPPORTED,
            "several machines write to the disk: it cannot be snapshotted",
            "stop sharing it, or back it up in one of the guests",
        )
    if not enabled:
        return TrackingState(
            Tracking.OFF,
            "change tracking is off for the machine",
            "switch it on: vdkit tracking --enable, or the next vdkit backup",
        )
    if change_id is None:
        return TrackingState(
            Tracking.PENDING,
            "change tracking is enabled but has not started for this disk",
            "it starts with the next snapshot or power cycle: make and remove a snapshot",
        )
    return TrackingState(Tracking.ACTIVE, "changes are tracked")


def _power(state: Any) -> Power:
    match str(state):
        case "poweredOn":
            return Power.ON
        case "poweredOff":
            return Power.OFF
        case "suspended":
            return Power.SUSPENDED
        case _:
            return Power.UNKNOWN


def _hardware_version(text: str | None) -> int | None:
    digits = (text or "").removeprefix("vmx-")
    return int(digits) if digits.isdigit() else None
