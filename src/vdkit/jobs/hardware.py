"""The facts of a machine that a restore needs to make one like it, kept in the manifest as JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdkit.errors import PointInvalid
from vdkit.vsphere.machines import NewDisk, NewMachine
from vdkit.vsphere.model import VirtualMachine


def facts_of(vm: VirtualMachine) -> dict[str, object]:
    """What ``docs/reference/repository.md`` calls the hardware facts."""
    return {
        "guest_id": vm.guest_id,
        "firmware": vm.firmware,
        "hardware_version": vm.hardware_version,
        "cpus": vm.cpus,
        "memory_mib": vm.memory_mib,
        "bios_uuid": vm.bios_uuid,
        "path": vm.path,
        "disks": [
            {"key": disk.key, "file": disk.file, "thin": disk.thin, "capacity": disk.capacity}
            for disk in vm.disks
        ],
    }


def machine_like(
    facts: Mapping[str, object], name: str, datastore: str, capacities: list[int], *, where: str
) -> NewMachine:
    """The machine to make for a restore, with one empty thin disk for each capacity (bytes).

    Facts that are missing get the host's or our defaults; facts of another type are refused.
    """
    firmware = _fact(facts, "firmware", str, where)
    if firmware not in (None, "bios", "efi"):
        raise PointInvalid(f"{where}: firmware {firmware!r} is neither bios nor efi")
    new = NewMachine(name, datastore, tuple(NewDisk(capacity) for capacity in capacities))
    return NewMachine(
        name=name,
        datastore=datastore,
        disks=new.disks,
        guest_id=_fact(facts, "guest_id", str, where) or new.guest_id,
        firmware="efi" if firmware == "efi" else "bios",
        cpus=_fact(facts, "cpus", int, where) or new.cpus,
        memory_mib=_fact(facts, "memory_mib", int, where) or new.memory_mib,
        hardware_version=_fact(facts, "hardware_version", int, where),
    )


def datastore_of(facts: Mapping[str, object]) -> str | None:
    """The datastore that the machine's first disk lay on."""
    disks = facts.get("disks")
    if not isinstance(disks, list) or not disks or not isinstance(disks[0], dict):
        return None
    file = disks[0].get("file")
    if not isinstance(file, str) or not file.startswith("[") or "]" not in file:
        return None
    return file[1:].split("]", 1)[0]


def _fact(facts: Mapping[str, object], key: str, kind: type[Any], where: str) -> Any:
    value = facts.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise PointInvalid(f"{where}: hardware fact {key!r} is {value!r}, not {kind.__name__}")
    return value
