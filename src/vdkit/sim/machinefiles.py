"""A machine as files: ``vm.vmx``, the snapshot list ``vm.vmsd``, and the configuration of each snapshot.

The .vmx and .vmsd files have the keys that a host writes. A snapshot's configuration lies in a ``vm-
SnapshotN.vmsn`` beside them: on a host that is a binary file, ours is text like a .vmx. Keys that start
with ``vdkit.`` are ours; keys that we do not know are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vdkit.errors import FormatError, VixError
from vdkit.sim import hardware, links, vmxdevices
from vdkit.sim.consolidation import delete_links, recover, tree_of
from vdkit.sim.controllers import Slot
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.disk import SimDisk
from vdkit.sim.faults import FileNotFound, GenericVmConfigFault
from vdkit.sim.snapshot import (
    DiskSpec,
    DiskState,
    MachineConfig,
    Merging,
    Snapshot,
    new_uuid,
)
from vdkit.sim.vmx import MAX_TEXT_BYTES, VmxText, uuid_from_vmx, uuid_to_vmx

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

Register = Callable[[Datastore, str, MachineConfig], "Machine"]

#: Names of VMDK files that are no link's descriptor: extents, tracking files, mappings.
_NOT_A_LINK = re.compile(r"(-flat|-delta|-sesparse|-ctk|-rdmp?|-pt|-[sf]\d{3,4})\.vmdk$", re.IGNORECASE)
#: Folders of a datastore whose disks belong to no machine: first-class disks, and the catalog of them.
NO_MACHINES = ("fcd", "catalog")
_VOLUME = re.compile(r"^/vmfs/volumes/([^/]+)/(.+)$")
#: Snapshots read from one list.
_MAX_SNAPSHOTS = 1024
#: Disks of one snapshot: more than all slots of a machine.
_MAX_DISKS = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: vmx names of guest systems whose API name is not made by the rule of :func:`guest_id`.
_GUESTS = {
    "other": "otherGuest",
    "other-64": "otherGuest64",
    "otherlinux": "otherLinuxGuest",
    "otherlinux-64": "otherLinux64Guest",
}


# -- the names of things -----------------------------------------------------------------------------


def guest_id(text: str) -> str:
    """``ubuntu-64`` of a vmx file to ``ubuntu64Guest`` of the API."""
    known = _GUESTS.get(text.lower())
    if known is not None:
        return known
    if not text or "Guest" in text:
        return text or "otherLinux64Guest"
    return f"{text.removesuffix('-64')}{'64' if text.endswith('-64') else ''}Guest"


def guest_os(api: str) -> str:
    """The other way."""
    for name, known in _GUESTS.items():
        if known == api:
            return name
    stem = api.removesuffix("Guest")
    return f"{stem.removesuffix('64')}-64" if stem.endswith("64") else stem


def _reference(machine: Machine, datastore: Datastore, name: str) -> str:
    """How a .vmx names a disk: relative where it can."""
    folder, _, base = name.rpartition("/")
    if datastore is machine.datastore and folder == machine.folder:
        return base
    return f"/vmfs/volumes/{datastore.name}/{name}"


def _resolve(machine: Machine, reference: str) -> tuple[Datastore, str]:
    match = _VOLUME.match(reference)
    if match is None:
        datastore, name = machine.datastore, f"{machine.folder}/{reference}".lstrip("/")
    else:
        datastore, name = machine.home.datastore(match[1]), match[2]
    merging = machine.merging
    if merging is not None and merging.child == datastore.path(name) and not links.is_whole(datastore, name):
        # The host went down after the merge and before the files said so.
        return _split(machine, merging.parent)
    return datastore, name


def _vmsd(machine: Machine) -> str:
    return f"{machine.stem}.vmsd"


def _vmsn(machine: Machine, uid: int) -> str:
    return f"{machine.stem}-Snapshot{uid}.vmsn"


# -- writing -----------------------------------------------------------------------------------------


def save(machine: Machine) -> None:
    """Both files, each replaced as a whole."""
    text = machine.text
    _put_config(text, machine.config)
    vmxdevices.discard_absent(text, {disk.slot for disk in machine.disks.values()})
    vmxdevices.put_controllers(text, machine.controllers.values())
    for disk in machine.disks.values():
        vmxdevices.put_disk(text, disk.slot, disk.options)
        text[f"{disk.slot.node}.fileName"] = _reference(machine, disk.datastore, disk.leaf)
        text.set_flag(f"{disk.slot.node}.ctkEnabled", machine.config.change_tracking)
    text.set_flag("vdkit.poweredOn", machine.powered_on)
    machine.datastore.write_text(machine.vmx_name, text.render())
    _save_snapshots(machine)


def _put_config(text: VmxText, config: MachineConfig) -> None:
    if ".encoding" not in text:
        text[".encoding"] = "UTF-8"
    if "config.version" not in text:
        text["config.version"] = "8"
    text["virtualHW.version"] = str(config.hardware_version)
    text["displayName"] = config.name
    if guest_id(text.get("guestOS")) != config.guest_id:
        text["guestOS"] = guest_os(config.guest_id)
    text["memSize"] = str(config.memory_mib)
    text["numvcpus"] = str(config.cpus)
    text["firmware"] = config.firmware
    text["uuid.bios"] = uuid_to_vmx(config.bios_uuid)
    text["vc.uuid"] = uuid_to_vmx(config.instance_uuid)
    if "uuid.location" not in text:
        text["uuid.location"] = uuid_to_vmx(config.bios_uuid)
    text["annotation"] = config.annotation
    if config.key_id or "vdkit.keyId" in text:
        text["vdkit.keyId"] = config.key_id
    text.set_flag("ctkEnabled", config.change_tracking)


def _save_snapshots(machine: Machine) -> None:
    everyone = list(machine.snapshots())
    text = VmxText([(".encoding", "UTF-8")])
    text["snapshot.lastUID"] = str(machine.last_snapshot_uid)
    if machine.current_snapshot is not None:
        text["snapshot.current"] = str(machine.current_snapshot.uid)
    text["snapshot.numSnapshots"] = str(len(everyone))
    for index, snapshot in enumerate(everyone):
        _put_snapshot(machine, text, f"snapshot{index}", snapshot)
    text.set_flag("vdkit.consolidationNeeded", machine.consolidation_needed)
    if machine.merging is not None:
        text["vdkit.merge.child"] = machine.merging.child
        text["vdkit.merge.parent"] = machine.merging.parent
        text["vdkit.merge.cid"] = str(machine.merging.cid)
    for index, link in enumerate(machine.dropped_links):
        text[f"vdkit.dropped{index}"] = link
    machine.datastore.write_text(_vmsd(machine), text.render())
    wanted = {_vmsn(machine, snapshot.uid) for snapshot in everyone}
    for name in _own_files(machine, ".vmsn"):
        if name not in wanted:
            machine.datastore.discard(name)


def _put_snapshot(machine: Machine, text: VmxText, at: str, snapshot: Snapshot) -> None:
    micros = (snapshot.created - _EPOCH) // timedelta(microseconds=1)
    # Halves as signed 32-bit numbers, as hosts write them.
    low = (micros & 0xFFFFFFFF) - ((micros & 0x80000000) << 1)
    name = _vmsn(machine, snapshot.uid)
    text[f"{at}.uid"] = str(snapshot.uid)
    text[f"{at}.filename"] = name.rpartition("/")[2]
    text[f"{at}.displayName"] = snapshot.name
    text[f"{at}.description"] = snapshot.description
    if snapshot.parent is not None:
        text[f"{at}.parent"] = str(snapshot.parent.uid)
    text[f"{at}.type"] = "1" if snapshot.powered_on else "0"
    text[f"{at}.createTimeHigh"] = str(micros >> 32)
    text[f"{at}.createTimeLow"] = str(low)
    text.set_flag(f"{at}.vdkit.memory", snapshot.memory)
    text.set_flag(f"{at}.vdkit.quiesced", snapshot.quiesced)
    text[f"{at}.numDisks"] = str(len(snapshot.disks))
    for number, state in enumerate(snapshot.disks.values()):
        datastore, link = _split(machine, state.file)
        text[f"{at}.disk{number}.fileName"] = _reference(machine, datastore, link)
        text[f"{at}.disk{number}.node"] = state.slot.node
        vmxdevices.put_options(text, f"{at}.disk{number}", state.options)
    if not machine.datastore.exists(name):
        frozen = VmxText()
        _put_config(frozen, snapshot.config)
        machine.datastore.write_text(name, frozen.render())


def _split(machine: Machine, path: str) -> tuple[Datastore, str]:
    name, rest = split_path(path)
    return machine.home.datastore(name), rest


# -- reading -----------------------------------------------------------------------------------------


def described(datastore: Datastore, folder: str) -> list[str]:
    """The .vmx files of a folder."""
    names = [] if folder in NO_MACHINES else datastore.files(folder)
    return [f"{folder}/{name}" for name in names if name.lower().endswith((".vmx", ".vmtx"))]


def discover(datastore: Datastore, folder: str, register: Register, used: Collection[str]) -> Machine | None:
    """The machine made for the disks of a folder without .vmx files; None if there are none.

    ``used``: datastore paths of links that are somebody's already. A linked clone keeps those of its original
    that it stands on when that one is deleted: running them would change what the clone reads.
    """
    if folder in NO_MACHINES:
        return None
    names = [f"{folder}/{name}" for name in datastore.files(folder) if name.lower().endswith(".vmdk")]
    leaves = _leaves(datastore, [name for name in names if datastore.path(name) not in used])
    if not leaves:
        return None
    machine = register(datastore, f"{folder}/{folder}.vmx", MachineConfig.new(folder))
    try:
        for name in leaves:
            hardware.attach_disk(machine, datastore.path(name), unit=None)
        machine.save()
    except VixError:
        machine.home.removed(machine)
        raise
    return machine


def _leaves(datastore: Datastore, names: list[str]) -> list[str]:
    """Of the disks of a folder, the ends of their chains. Raises GenericVmConfigFault if one has two."""
    chains = [links.inspect(datastore, name) for name in names if not _NOT_A_LINK.search(name)]
    parents = {parent for chain in chains for parent in chain.parents}
    ends = [chain for chain in chains if chain.name not in parents]
    bases = [chain.base for chain in ends]
    if len(set(bases)) < len(bases):
        raise GenericVmConfigFault(
            f"{datastore.path(bases[0])}: several deltas stand on it, and no .vmx file says which is current"
        )
    return [chain.name for chain in ends]


def load(datastore: Datastore, vmx_name: str, register: Register) -> Machine:
    """Register what a .vmx file describes. Raises VixError, and then nothing is registered."""
    if not datastore.exists(vmx_name):
        raise FileNotFound(datastore.path(vmx_name))
    text = VmxText.parse(datastore.read_text(vmx_name, MAX_TEXT_BYTES), datastore.path(vmx_name))
    stem = vmx_name.rpartition("/")[2].rpartition(".")[0]
    template = vmx_name.lower().endswith(".vmtx")
    machine = register(datastore, vmx_name, replace(_config(text, stem), template=template))
    machine.text = text
    try:
        _load_merging(machine)
        machine.controllers = {(c.bus, c.number): c for c in vmxdevices.controllers(text)}
        for slot, reference, options in vmxdevices.disks(text):
            store, name = _resolve(machine, reference)
            machine.disks[slot.key] = SimDisk(machine, slot, store, name, options)
        machine.disks = dict(sorted(machine.disks.items()))
        _load_snapshots(machine)
        recover(machine)
        machine.apply_tracking()
        if text.flag("vdkit.poweredOn"):
            machine.power_on()
        else:
            machine.save()
    except VixError:
        machine.home.removed(machine)
        raise
    return machine


def _config(text: VmxText, fallback: str) -> MachineConfig:
    bios, instance = text.get("uuid.bios"), text.get("vc.uuid")
    made = MachineConfig(
        name=text.get("displayName") or fallback,
        bios_uuid=uuid_from_vmx(bios or new_uuid("564d")),
        instance_uuid=uuid_from_vmx(instance or new_uuid("52")),
    )
    firmware = text.get("firmware", "bios").lower()
    if firmware not in ("bios", "efi"):
        raise FormatError(f"firmware: {firmware!r} is neither bios nor efi")
    return replace(
        made,
        guest_id=guest_id(text.get("guestOS")),
        memory_mib=text.number("memSize", made.memory_mib, low=4, high=1 << 25),
        cpus=text.number("numvcpus", 1, low=1, high=1024),
        firmware=firmware,
        hardware_version=text.number("virtualHW.version", made.hardware_version, low=3, high=99),
        change_tracking=text.flag("ctkEnabled"),
        annotation=text.get("annotation"),
        key_id=text.get("vdkit.keyId"),
    )


def _snapshot_list(machine: Machine) -> VmxText:
    name = _vmsd(machine)
    if not machine.datastore.exists(name):
        return VmxText()
    return VmxText.parse(machine.datastore.read_text(name, MAX_TEXT_BYTES), machine.datastore.path(name))


def _load_merging(machine: Machine) -> None:
    text = _snapshot_list(machine)
    if "vdkit.merge.child" in text:
        cid = text.number("vdkit.merge.cid", 0, high=(1 << 32) - 1)
        machine.merging = Merging(text["vdkit.merge.child"], text["vdkit.merge.parent"], cid)


def _load_snapshots(machine: Machine) -> None:
    where = machine.datastore.path(_vmsd(machine))
    text = _snapshot_list(machine)
    by_uid: dict[int, Snapshot] = {}
    for index in range(text.number("snapshot.numSnapshots", 0, high=_MAX_SNAPSHOTS)):
        snapshot = _read_snapshot(machine, text, f"snapshot{index}", by_uid, where)
        by_uid[snapshot.uid] = snapshot
        siblings = machine.snapshot_roots if snapshot.parent is None else snapshot.parent.children
        siblings.append(snapshot)
    machine.last_snapshot_uid = max(text.number("snapshot.lastUID", 0), *by_uid, 0)
    current = text.number("snapshot.current", 0)
    if current and current not in by_uid:
        raise FormatError(f"{where}: the current snapshot {current} is not in the list")
    machine.current_snapshot = by_uid.get(current)
    machine.consolidation_needed = text.flag("vdkit.consolidationNeeded")
    for key in text:
        if key.startswith("vdkit.dropped"):
            datastore, link = _split(machine, text[key])
            if datastore.exists(link):
                facts = links.inspect(datastore, link)
                machine.dropped_links[text[key]] = datastore.path(facts.parents[0]) if facts.parents else None


def _read_snapshot(
    machine: Machine, text: VmxText, at: str, known: dict[int, Snapshot], where: str
) -> Snapshot:
    uid = text.number(f"{at}.uid", 0)
    parent_uid = text.number(f"{at}.parent", 0)
    if uid <= 0 or uid in known or (parent_uid and parent_uid not in known):
        raise FormatError(f"{where}: {at} has no proper uid or parent")
    low = text.number(f"{at}.createTimeLow", 0, low=-(1 << 31), high=(1 << 32) - 1)
    micros = (text.number(f"{at}.createTimeHigh", 0, high=1 << 22) << 32) | (low & 0xFFFFFFFF)
    frozen = _vmsn(machine, uid)
    config = machine.config
    if machine.datastore.exists(frozen):
        saved = machine.datastore.read_text(frozen, MAX_TEXT_BYTES)
        config = _config(VmxText.parse(saved, machine.datastore.path(frozen)), config.name)
    return Snapshot(
        moref=machine.home.snapshot_moref(machine, uid),
        uid=uid,
        name=text.get(f"{at}.displayName") or f"Snapshot {uid}",
        description=text.get(f"{at}.description"),
        created=_EPOCH + timedelta(microseconds=micros),
        powered_on=text.get(f"{at}.type") == "1",
        memory=text.flag(f"{at}.vdkit.memory"),
        quiesced=text.flag(f"{at}.vdkit.quiesced"),
        config=config,
        disks=_read_disks(machine, text, at),
        parent=known.get(parent_uid),
    )


def _read_disks(machine: Machine, text: VmxText, at: str) -> dict[int, DiskState]:
    found: dict[int, DiskState] = {}
    for number in range(text.number(f"{at}.numDisks", 0, high=_MAX_DISKS)):
        node = text.get(f"{at}.disk{number}.node")
        slot = Slot.parse(node)
        if slot is None:
            raise FormatError(f"{at}.disk{number}.node: {node!r} is no place for a disk")
        datastore, name = _resolve(machine, text[f"{at}.disk{number}.fileName"])
        options = vmxdevices.options(text, f"{at}.disk{number}")
        # Change ids do not survive a restart: what was tracked before it is not known any more.
        found[slot.key] = SimDisk(machine, slot, datastore, name, options).state()
    return found


# -- all files ---------------------------------------------------------------------------------------


def _own_files(machine: Machine, *suffixes: str) -> list[str]:
    """Files in the machine's folder that bear its name and one of the endings."""
    stem = machine.stem.rpartition("/")[2]
    return [
        f"{machine.folder}/{name}"
        for name in machine.datastore.files(machine.folder)
        if name.startswith(stem) and name.endswith(suffixes)
    ]


def files_of(machine: Machine) -> list[str]:
    found = [
        machine.datastore.path(name)
        for name in _own_files(machine, ".vmx", ".vmtx", ".vmsd", ".vmsn", ".nvram")
    ]
    for path in tree_of(machine):
        datastore, name = _split(machine, path)
        found += [datastore.path(file) for file in links.files_of(datastore, name)]
    return found


def delete_all(machine: Machine) -> None:
    """Every link of every disk and snapshot, then the machine's own files, then its folder if it is empty."""
    delete_links(machine, {**machine.dropped_links, **tree_of(machine)})
    for name in _own_files(
        machine, ".vmx", ".vmtx", ".vmsd", ".vmsn", ".nvram", ".vmx~", ".vmtx~", ".vmsd~", ".log"
    ):
        machine.datastore.discard(name)
    if machine.folder and not machine.datastore.files(machine.folder):
        machine.datastore.discard(machine.folder)


def delete_made(machine: Machine, attached: Sequence[DiskSpec]) -> None:
    """Take back a machine whose making failed: its new disks, not those that were there before."""
    keep = {spec.path for spec in attached}
    for disk in machine.disks.values():
        if disk.file not in keep:
            hardware.delete_chain(disk, machine.home.shared_links(machine))
    machine.disks = {}
    machine.dropped_links = {}
    delete_all(machine)
