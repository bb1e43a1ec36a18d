"""Virtual machines, their disks and snapshots as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum


class Power(Enum):
    ON = "on"
    OFF = "off"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"


class Backing(Enum):
    """What stands behind a virtual disk."""

    FLAT = "flat"
    SPARSE = "sparse"
    SESPARSE = "sesparse"
    RAW_MAPPING = "raw-mapping"
    RAW_MAPPING_PHYSICAL = "raw-mapping-physical"
    RAW_DISK = "raw-disk"
    OTHER = "other"


class ControllerKind(Enum):
    """What a disk hangs on."""

    BUSLOGIC = "buslogic"
    LSILOGIC = "lsilogic"
    LSISAS = "lsisas"
    PVSCSI = "pvscsi"
    SATA = "sata"
    NVME = "nvme"
    IDE = "ide"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller. ``number`` counts those of one bus; ``shared`` is true if several machines use it."""

    key: int
    kind: ControllerKind
    number: int = 0
    shared: bool = False


class Tracking(Enum):
    """The state of change tracking of one disk."""

    OFF = "off"
    PENDING = "pending"  # enabled for the machine, but not yet active for this disk
    ACTIVE = "active"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class TrackingState:
    """Change tracking of one disk, why, and what to do about it."""

    tracking: Tracking
    reason: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class VirtualDisk:
    """One virtual disk of a machine, or of a snapshot of it."""

    key: int
    label: str
    file: str
    """Datastore path, ``[datastore1] vm/vm.vmdk``."""
    capacity: int
    """Bytes."""
    backing: Backing
    uuid: str | None = None
    change_id: str | None = None
    mode: str = "persistent"
    thin: bool | None = None
    shared: bool = False
    """True if several machines write to it, by its own sharing or by that of its controller."""
    parents: tuple[str, ...] = ()
    """Datastore paths of the links below :attr:`file`, nearest first."""
    tracking: TrackingState = TrackingState(Tracking.OFF, "not looked at")
    controller: Controller | None = None
    unit: int | None = None
    encrypted: bool = False

    @property
    def in_snapshots(self) -> bool:
        """False for what a snapshot leaves alone: independent disks, and physical raw mappings."""
        return not self.mode.startswith("independent") and self.backing is not Backing.RAW_MAPPING_PHYSICAL

    @property
    def datastore(self) -> str:
        return self.file[1:].split("]", 1)[0] if self.file.startswith("[") else ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot. ``children`` are the snapshots made on top of it."""

    moref: str
    name: str
    description: str
    created: datetime | None = None
    quiesced: bool = False
    children: tuple[Snapshot, ...] = ()

    def walk(self) -> Iterator[Snapshot]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A machine as the host described it at one moment."""

    moref: str
    name: str
    path: str
    """Inventory path, ``/Datacenter/vm/folder/name``."""
    power: Power
    disks: tuple[VirtualDisk, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    """The roots of the tree."""
    instance_uuid: str | None = None
    bios_uuid: str | None = None
    change_tracking: bool = False
    """What its configuration says; each disk says whether tracking is active."""
    change_tracking_supported: bool = True
    consolidation_needed: bool = False
    template: bool = False
    guest_id: str | None = None
    firmware: str | None = None
    hardware_version: int | None = None
    cpus: int = 1
    memory_mib: int = 0
    vmx: str | None = field(default=None)
    """Datastore path of its configuration file."""

    def all_snapshots(self) -> Iterator[Snapshot]:
        for root in self.snapshots:
            yield from root.walk()

    def disk(self, key: int) -> VirtualDisk | None:
        return next((disk for disk in self.disks if disk.key == key), None)
