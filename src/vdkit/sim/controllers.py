"""Where a machine's disks are plugged in, and how: controllers, slots, modes, sharing, raw mappings, keys.

Numbers of devices are those that hosts give: a disk of SCSI controller ``b`` at unit ``u`` has the key
``2000 + 16 b + u``, one on SATA ``16000 + 30 b + u``, NVMe ``32000 + 15 b + u``, IDE ``3000 + 2 b + u``.
Sources: the vSphere Web Services API reference (VirtualController and its kinds, VirtualDiskMode,
VirtualDiskSharing), and configurations of machines that people have published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from vdkit.sim.faults import InvalidDeviceSpec


@dataclass(frozen=True)
class BusKind:
    """What all controllers of a bus have in common. ``reserved`` is the unit that a controller itself has."""

    name: str
    controllers: int
    first_controller_key: int
    first_disk_key: int
    disks: int
    reserved: int | None = None

    @property
    def units(self) -> tuple[int, ...]:
        """Units that a disk may have."""
        return tuple(unit for unit in range(self.disks) if unit != self.reserved)


#: The order decides how disks are counted for their labels.
BUSES = {
    bus.name: bus
    for bus in (
        BusKind("scsi", 4, 1000, 2000, 16, reserved=7),
        BusKind("sata", 4, 15000, 16000, 30),
        BusKind("nvme", 4, 31000, 32000, 15),
        BusKind("ide", 2, 200, 3000, 2),
    )
}
#: Kinds of controllers, the name of the bus of each, and what a .vmx file calls them.
KINDS = {
    "pvscsi": ("scsi", "pvscsi"),
    "lsilogic": ("scsi", "lsilogic"),
    "lsisas": ("scsi", "lsisas1068"),
    "buslogic": ("scsi", "buslogic"),
    "ahci": ("sata", ""),
    "nvme": ("nvme", ""),
    "ide": ("ide", ""),
}
#: What a bus has where nothing is said.
DEFAULT_KIND = {"scsi": "pvscsi", "sata": "ahci", "nvme": "nvme", "ide": "ide"}
#: Ways to share a SCSI bus, as a .vmx file and as the API call them.
SHARED_BUS = {"none": "noSharing", "virtual": "virtualSharing", "physical": "physicalSharing"}
MODES = (
    "persistent",
    "nonpersistent",
    "undoable",
    "append",
    "independent_persistent",
    "independent_nonpersistent",
)
SHARING = ("sharingNone", "sharingMultiWriter")
MAPPINGS = ("", "virtualMode", "physicalMode")

_NODE = re.compile(r"^(scsi|sata|nvme|ide)(\d):(\d{1,2})$", re.IGNORECASE)


class Slot(NamedTuple):
    """A place for a disk, ``scsi0:1``: the name of the kind of bus, the controller's number, the unit."""

    bus: str = "scsi"
    number: int = 0
    unit: int = 0

    @classmethod
    def parse(cls, node: str) -> Slot | None:
        """``scsi0:1``; None for what is no place for a disk."""
        match = _NODE.match(node)
        if match is None:
            return None
        slot = cls(match[1].lower(), int(match[2]), int(match[3]))
        return slot if slot.exists else None

    @property
    def kind(self) -> BusKind:
        return BUSES[self.bus]

    @property
    def exists(self) -> bool:
        return 0 <= self.number < self.kind.controllers and self.unit in self.kind.units

    @property
    def node(self) -> str:
        return f"{self.bus}{self.number}:{self.unit}"

    @property
    def key(self) -> int:
        """Device key of a disk there."""
        return self.kind.first_disk_key + self.kind.disks * self.number + self.unit

    @property
    def controller_key(self) -> int:
        return self.kind.first_controller_key + self.number

    @property
    def label(self) -> str:
        """``Hard disk 1`` for ``scsi0:0``."""
        before = 0
        for bus in BUSES.values():
            if bus.name == self.bus:
                break
            before += bus.controllers * len(bus.units)
        units = self.kind.units
        position = units.index(self.unit) if self.unit in units else self.unit
        return f"Hard disk {before + self.number * len(units) + position + 1}"


@dataclass(frozen=True)
class Controller:
    """A controller of a machine; ``shared_bus`` is the API's word (``noSharing``)."""

    kind: str = "pvscsi"
    number: int = 0
    shared_bus: str = "noSharing"

    def __post_init__(self) -> None:
        bus = KINDS.get(self.kind)
        if bus is None or not 0 <= self.number < BUSES[bus[0]].controllers:
            raise InvalidDeviceSpec(f"there is no controller {self.kind} {self.number}")
        if self.shared_bus not in SHARED_BUS.values() or (
            bus[0] != "scsi" and self.shared_bus != "noSharing"
        ):
            raise InvalidDeviceSpec(f"controller {self.kind}: bus sharing {self.shared_bus}")

    @property
    def bus(self) -> str:
        return KINDS[self.kind][0]

    @property
    def key(self) -> int:
        return BUSES[self.bus].first_controller_key + self.number

    @property
    def shared(self) -> bool:
        return self.shared_bus != "noSharing"


@dataclass(frozen=True)
class DiskOptions:
    """How a disk is attached, in the API's words. ``key_id`` names the key of an encrypted disk."""

    mode: str = "persistent"
    sharing: str = "sharingNone"
    mapping: str = ""
    key_id: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.sharing not in SHARING or self.mapping not in MAPPINGS:
            raise InvalidDeviceSpec(f"a disk {self.mode}, {self.sharing}, mapping {self.mapping or 'none'}")

    @property
    def in_snapshots(self) -> bool:
        """False for what a snapshot leaves alone."""
        return not self.mode.startswith("independent") and self.mapping != "physicalMode"


PLAIN = DiskOptions()
