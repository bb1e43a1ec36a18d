"""Controllers and disks in the text of a ``.vmx`` file.

Keys are those that a host writes (``scsi1.virtualDev``, ``scsi0:1.mode``, ``scsi0:1.sharing``). That a disk
is a raw mapping or encrypted stands elsewhere on a host, and here in keys of ours that contain ``vdkit.``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from vdkit.errors import FormatError
from vdkit.sim.controllers import (
    DEFAULT_KIND,
    KINDS,
    SHARED_BUS,
    Controller,
    DiskOptions,
    Slot,
)
from vdkit.sim.faults import InvalidDeviceSpec
from vdkit.sim.vmx import VmxText

_CONTROLLER = re.compile(r"^(scsi|sata|nvme|ide)(\d)\.present$", re.IGNORECASE)
_DISK = re.compile(r"^((?:scsi|sata|nvme|ide)\d+:\d+)\.fileName$", re.IGNORECASE)
_SLOT = re.compile(r"^((?:scsi|sata|nvme|ide)\d+:\d+)\.", re.IGNORECASE)
_DEVICE_TYPE = {
    "scsi": "scsi-hardDisk",
    "sata": "ata-hardDisk",
    "nvme": "nvme-hardDisk",
    "ide": "ata-hardDisk",
}
_IS_DISK = frozenset({name.lower() for name in _DEVICE_TYPE.values()} | {"disk"})


# -- writing -----------------------------------------------------------------------------------------


def discard_absent(text: VmxText, present: Collection[Slot]) -> None:
    """Forget disks that are not there any more; other devices in slots are left alone."""
    for node in dict.fromkeys(match[1] for key in list(text) if (match := _SLOT.match(key))):
        slot = Slot.parse(node)
        if slot is not None and slot not in present and _is_disk(text, node):
            text.discard(f"{node}.")


def put_controllers(text: VmxText, controllers: Iterable[Controller]) -> None:
    for controller in controllers:
        at = f"{controller.bus}{controller.number}"
        text[f"{at}.present"] = "TRUE"
        device = KINDS[controller.kind][1]
        if device:
            text[f"{at}.virtualDev"] = device
        if controller.shared or f"{at}.sharedBus" in text:
            text[f"{at}.sharedBus"] = next(
                name for name, api in SHARED_BUS.items() if api == controller.shared_bus
            )


def put_disk(text: VmxText, slot: Slot, options: DiskOptions) -> None:
    text[f"{slot.node}.present"] = "TRUE"
    text[f"{slot.node}.deviceType"] = _DEVICE_TYPE[slot.bus]
    put_options(text, slot.node, options)


def put_options(text: VmxText, at: str, options: DiskOptions) -> None:
    """What is as usual is not written, unless it was."""
    pairs = {
        "mode": ("" if options.mode == "persistent" else options.mode.replace("_", "-"), "persistent"),
        "sharing": ("multi-writer" if options.sharing == "sharingMultiWriter" else "", "none"),
        "vdkit.mapping": (options.mapping, ""),
        "vdkit.keyId": (options.key_id, ""),
    }
    for name, (value, usual) in pairs.items():
        key = f"{at}.{name}"
        if value or key in text:
            text[key] = value or usual


# -- reading -----------------------------------------------------------------------------------------


def controllers(text: VmxText) -> Iterator[Controller]:
    """The controllers of a machine; the first SCSI controller is always there. Raises FormatError."""
    found = {("scsi", 0)}
    found |= {slot[:2] for slot, _, _ in disks(text)}
    for key in text:
        match = _CONTROLLER.match(key)
        if match is not None and text.flag(key):
            found.add((match[1].lower(), int(match[2])))
    for bus, number in sorted(found):
        at = f"{bus}{number}"
        sharing = text.get(f"{at}.sharedBus", "none").lower() or "none"
        if sharing not in SHARED_BUS:
            raise FormatError(f"{at}.sharedBus: {sharing!r} is not known")
        try:
            yield Controller(_kind(text, bus, at), number, SHARED_BUS[sharing])
        except InvalidDeviceSpec as error:
            raise FormatError(f"{at}: {error}") from error


def _kind(text: VmxText, bus: str, at: str) -> str:
    device = text.get(f"{at}.virtualDev").lower()
    if bus != "scsi" or not device:
        return DEFAULT_KIND[bus]
    for kind, (_, name) in KINDS.items():
        if name == device:
            return kind
    raise FormatError(f"{at}.virtualDev: {device!r} is not a controller that is simulated")


def disks(text: VmxText) -> Iterator[tuple[Slot, str, DiskOptions]]:
    """Slot, file and options of each disk that is present. Raises FormatError."""
    for key in list(text):
        match = _DISK.match(key)
        if match is None:
            continue
        node = match[1].lower()
        if not text.flag(f"{node}.present", True) or not _is_disk(text, node):
            continue
        slot = Slot.parse(node)
        if slot is None:
            raise FormatError(f"{key}: a machine has no such slot")
        yield slot, text[key], options(text, node)


def options(text: VmxText, at: str) -> DiskOptions:
    mode = text.get(f"{at}.mode", "persistent").lower().replace("-", "_") or "persistent"
    shared = text.get(f"{at}.sharing").lower() == "multi-writer"
    try:
        return DiskOptions(
            mode=mode,
            sharing="sharingMultiWriter" if shared else "sharingNone",
            mapping=text.get(f"{at}.vdkit.mapping"),
            key_id=text.get(f"{at}.vdkit.keyId"),
        )
    except InvalidDeviceSpec as error:
        raise FormatError(f"{at}: {error}") from error


def _is_disk(text: VmxText, at: str) -> bool:
    kind = text.get(f"{at}.deviceType").lower()
    return kind in _IS_DISK if kind else text.get(f"{at}.fileName").lower().endswith(".vmdk")
