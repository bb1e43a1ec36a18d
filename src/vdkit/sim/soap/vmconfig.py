"""A machine's configuration as the API shows it: devices, files, options; now or at a snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.controllers import BUSES, Controller
from vdkit.sim.datastore import split_path
from vdkit.sim.snapshot import DiskState, MachineConfig

if TYPE_CHECKING:
    from vdkit.sim.inventory import Inventory
    from vdkit.sim.machine import Machine

PCI_KEY = 100
NETWORK_CARD_KEY = 4000
#: Where the first SCSI controller sits on the PCI bus; the others follow as hosts place them.
_PCI_UNITS = {"scsi": 3, "sata": 24, "nvme": 30}
_LSI = "LSI Logic"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Device = vim.vm.device
#: Kinds of controllers: type, what the label calls the bus, summary.
_CONTROLLERS: dict[str, tuple[Any, str, str]] = {
    "pvscsi": (Device.ParaVirtualSCSIController, "SCSI", "VMware paravirtual SCSI"),
    "lsilogic": (Device.VirtualLsiLogicController, "SCSI", _LSI),
    "lsisas": (Device.VirtualLsiLogicSASController, "SCSI", f"{_LSI} SAS"),
    "buslogic": (Device.VirtualBusLogicController, "SCSI", "BusLogic"),
    "ahci": (Device.VirtualAHCIController, "SATA", "AHCI"),
    "nvme": (Device.VirtualNVMEController, "NVME", "NVME"),
    "ide": (Device.VirtualIDEController, "IDE", "IDE"),
}


def config_info(inventory: Inventory, machine: Machine) -> Any:
    """``vm.config``"""
    states = [disk.state() for disk in list(machine.disks.values())]
    return _config(inventory, machine, machine.config, states)


def frozen_config(
    inventory: Inventory, machine: Machine, config: MachineConfig, disks: list[DiskState]
) -> Any:
    """``snapshot.config``: with the change ids of the moment of the snapshot."""
    return _config(inventory, machine, config, disks)


def _config(inventory: Inventory, machine: Machine, config: MachineConfig, disks: list[DiskState]) -> Any:
    tracked = config.change_tracking
    return vim.vm.ConfigInfo(
        changeVersion=change_version(config, disks),
        modified=_EPOCH,
        name=config.name,
        guestFullName="Other Linux (64-bit)",
        guestId=config.guest_id,
        alternateGuestName="",
        version=config.version,
        uuid=config.bios_uuid,
        instanceUuid=config.instance_uuid,
        template=config.template,
        annotation=config.annotation,
        files=vim.vm.FileInfo(
            vmPathName=machine.vmx_path,
            snapshotDirectory=f"{machine.datastore.path(machine.folder)}/",
            suspendDirectory=f"{machine.datastore.path(machine.folder)}/",
            logDirectory=f"{machine.datastore.path(machine.folder)}/",
        ),
        flags=vim.vm.FlagInfo(diskUuidEnabled=False, enableLogging=True),
        hardware=vim.vm.VirtualHardware(
            numCPU=config.cpus,
            numCoresPerSocket=1,
            memoryMB=config.memory_mib,
            device=devices(inventory, list(machine.controllers.values()), disks),
        ),
        extraConfig=_extra_config(disks) if tracked else [],
        changeTrackingEnabled=tracked,
        keyId=_key(config.key_id),
        firmware=config.firmware,
    )


def change_version(config: MachineConfig, disks: Iterable[DiskState]) -> str:
    """Differs whenever the configuration does; change ids and file names of links are no configuration."""
    text = repr((config, [(d.slot, d.capacity, d.uuid, d.options) for d in disks]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _extra_config(disks: list[DiskState]) -> list[Any]:
    keys = ["ctkEnabled", *(f"{disk.slot.node}.ctkEnabled" for disk in disks)]
    return [vim.option.OptionValue(key=key, value="TRUE") for key in keys]


def devices(inventory: Inventory, controllers: list[Controller], disks: list[DiskState]) -> list[Any]:
    """The controllers, the network card, and the disks in order of their keys."""
    pci = Device.VirtualPCIController(
        key=PCI_KEY,
        deviceInfo=_described("PCI controller 0", "PCI controller 0"),
        busNumber=0,
        device=[*(one.key for one in controllers if one.bus != "ide"), NETWORK_CARD_KEY],
    )
    ide = [Controller("ide", number) for number in range(BUSES["ide"].controllers)]
    present = {(one.bus, one.number): one for one in [*ide, *controllers]}
    shown = [_controller(one, disks) for one in sorted(present.values(), key=lambda one: one.key)]
    network = inventory.network
    card = Device.VirtualVmxnet3(
        key=NETWORK_CARD_KEY,
        deviceInfo=_described("Network adapter 1", network.name),
        backing=Device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=network.name, network=vim.Network(network.moref)
        ),
        controllerKey=PCI_KEY,
        unitNumber=7,
        addressType="generated",
        macAddress="00:0c:29:00:00:01",
    )
    return [pci, *shown, card, *(_disk(inventory, state) for state in sorted(disks, key=lambda d: d.key))]


def _controller(controller: Controller, disks: list[DiskState]) -> Any:
    kind, bus, summary = _CONTROLLERS[controller.kind]
    facts: dict[str, Any] = {}
    if controller.bus == "scsi":
        facts = {
            "hotAddRemove": True,
            "sharedBus": controller.shared_bus,
            "scsiCtlrUnitNumber": BUSES["scsi"].reserved,
        }
    if controller.bus != "ide":
        facts |= {"controllerKey": PCI_KEY, "unitNumber": _PCI_UNITS[controller.bus] + controller.number}
    return kind(
        key=controller.key,
        deviceInfo=_described(f"{bus} controller {controller.number}", summary),
        busNumber=controller.number,
        device=[disk.key for disk in disks if disk.slot.controller_key == controller.key],
        **facts,
    )


def _key(key_id: str) -> Any:
    if not key_id:
        return None
    return vim.encryption.CryptoKeyId(
        keyId=key_id, providerId=vim.encryption.KeyProviderId(id="simulated-kms")
    )


def _described(label: str, summary: str) -> Any:
    return vim.Description(label=label, summary=summary)


def _disk(inventory: Inventory, state: DiskState) -> Any:
    return Device.VirtualDisk(
        key=state.key,
        deviceInfo=_described(state.label, f"{state.capacity // 1024:,} KB"),
        backing=_backing(inventory, state),
        controllerKey=state.slot.controller_key,
        unitNumber=state.unit,
        capacityInKB=state.capacity // 1024,
        capacityInBytes=state.capacity,
    )


def _backing(inventory: Inventory, state: DiskState) -> Any:
    """The chain of backings, the running link outermost. Only that one has a change id."""
    nearest = None
    for file in reversed(state.parents):
        nearest = _link(inventory, state, file, nearest)
    backing = _link(inventory, state, state.file, nearest)
    backing.contentId = state.content_id
    backing.changeId = state.change_id
    return backing


def _link(inventory: Inventory, state: DiskState, file: str, parent: Any) -> Any:
    datastore = inventory.datastore(split_path(file)[0])
    options = state.options
    common: dict[str, Any] = {
        "fileName": file,
        "datastore": vim.Datastore(datastore.moref),
        "diskMode": options.mode,
        "uuid": state.uuid,
        "sharing": options.sharing,
        "parent": parent,
    }
    if datastore.kind == "VVOL":
        common["backingObjectId"] = f"rfc4122.{state.uuid.lower()}"
    if options.mapping:
        return Device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            lunUuid=f"0200000000{state.uuid.replace('-', '').replace(' ', '').lower()}",
            deviceName=f"vml.0200000000{state.uuid.replace('-', '').replace(' ', '').lower()}",
            compatibilityMode=options.mapping,
            **common,
        )
    backing = Device.VirtualDisk.FlatVer2BackingInfo(
        split=False,
        writeThrough=False,
        thinProvisioned=state.thin,
        digestEnabled=False,
        keyId=_key(options.key_id),
        **common,
    )
    if parent is not None:
        backing.deltaDiskFormat = "redoLogFormat"
    return backing


def runtime_info(inventory: Inventory, machine: Machine) -> Any:
    """``vm.runtime``"""
    return vim.vm.RuntimeInfo(
        host=vim.HostSystem(inventory.places.host_of(machine).moref),
        connectionState="connected",
        powerState=machine.power_state,
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        toolsInstallerMounted=False,
        numMksConnections=0,
        onlineStandby=False,
        consolidationNeeded=machine.consolidation_needed,
    )


def summary(inventory: Inventory, machine: Machine, ref: Any) -> Any:
    """``vm.summary``"""
    config = machine.config
    committed, unshared = _space(machine)
    return vim.vm.Summary(
        vm=ref,
        runtime=runtime_info(inventory, machine),
        guest=vim.vm.Summary.GuestSummary(
            guestId=config.guest_id,
            toolsStatus="toolsNotInstalled",
            toolsRunningStatus="guestToolsNotRunning",
        ),
        config=vim.vm.Summary.ConfigSummary(
            name=config.name,
            template=config.template,
            vmPathName=machine.vmx_path,
            memorySizeMB=config.memory_mib,
            numCpu=config.cpus,
            numEthernetCards=1,
            numVirtualDisks=len(machine.disks),
            uuid=config.bios_uuid,
            instanceUuid=config.instance_uuid,
            guestId=config.guest_id,
            guestFullName="Other Linux (64-bit)",
            annotation=config.annotation,
            hwVersion=config.version,
        ),
        storage=vim.vm.Summary.StorageSummary(
            committed=committed, uncommitted=0, unshared=unshared, timestamp=inventory.clock.now()
        ),
        quickStats=vim.vm.Summary.QuickStats(),
        overallStatus="green",
    )


def _space(machine: Machine) -> tuple[int, int]:
    """Bytes that the machine's files have, and those shared with nobody: the same here."""
    total = sum(size for _, size in _sizes(machine))
    return total, total


def _sizes(machine: Machine) -> list[tuple[str, int]]:
    found = []
    for path in machine.files():
        name, rest = split_path(path)
        datastore = machine.home.datastore(name)
        if datastore.exists(rest):
            with datastore.store.open(rest) as device:
                found.append((path, device.capacity))
    return found


def layout_ex(inventory: Inventory, machine: Machine) -> Any:
    """``vm.layoutEx``: every file with its size, and the files of each disk's chain, base first."""
    files = []
    keys: dict[str, int] = {}
    for number, (path, size) in enumerate(_sizes(machine)):
        keys[path] = number
        files.append(
            vim.vm.FileLayoutEx.FileInfo(
                key=number, name=path, type=_file_type(path), size=size, uniqueSize=size, accessible=True
            )
        )
    states = [disk.state() for disk in list(machine.disks.values())]
    layout = [vim.vm.FileLayoutEx.DiskLayout(key=state.key, chain=_chain(state, keys)) for state in states]
    return vim.vm.FileLayoutEx(file=files, disk=layout, timestamp=inventory.clock.now())


def _chain(state: DiskState, keys: dict[str, int]) -> list[Any]:
    units = []
    for path in (*reversed(state.parents), state.file):
        stem = path.removesuffix(".vmdk")
        wanted = (path, f"{stem}-flat.vmdk", f"{stem}-delta.vmdk")
        units.append(vim.vm.FileLayoutEx.DiskUnit(fileKey=[keys[one] for one in wanted if one in keys]))
    return units


def _file_type(path: str) -> str:
    if path.endswith(("-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk")):
        return "diskExtent"
    suffix = path.rpartition(".")[2]
    kinds = {
        "vmdk": "diskDescriptor",
        "vmx": "config",
        "vmsd": "snapshotList",
        "log": "log",
        "nvram": "nvram",
    }
    return kinds.get(suffix, "extendedConfig")
