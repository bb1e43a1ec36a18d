"""Snapshots of a machine, and the facts about machine and disks that they freeze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4

from vdkit.sim.controllers import PLAIN, Controller, DiskOptions, Slot

#: Snapshots in a row that a host makes; the documented limit.
MAX_SNAPSHOT_DEPTH = 32


@dataclass(frozen=True)
class MachineConfig:
    """What a ``.vmx`` file says of a machine besides its disks. Sizes: memory in MiB."""

    name: str
    bios_uuid: str
    instance_uuid: str
    guest_id: str = "otherLinux64Guest"
    memory_mib: int = 1024
    cpus: int = 1
    firmware: str = "bios"
    hardware_version: int = 19
    change_tracking: bool = False
    annotation: str = ""
    #: Said by the ending of the file's name alone.
    template: bool = False
    key_id: str = ""
    """Of the key that its files are encrypted with; empty for none."""

    @classmethod
    def new(cls, name: str) -> MachineConfig:
        """A machine with new ids and defaults."""
        return cls(name=name, bios_uuid=new_uuid("564d"), instance_uuid=new_uuid("52"))

    @property
    def version(self) -> str:
        """``vmx-19``"""
        return f"vmx-{self.hardware_version:02d}"


def new_uuid(prefix: str) -> str:
    """A random UUID that starts with ``prefix`` (hex), as VMware's do."""
    return str(UUID(prefix + uuid4().hex[len(prefix) :]))


@dataclass(frozen=True)
class DiskSpec:
    """A disk for a new machine: a new one of ``capacity`` bytes, or (capacity 0) that at ``path``.

    It hangs on ``controller``, or on the first SCSI controller, at ``unit`` or the first that is free.
    """

    capacity: int = 0
    thin: bool = True
    path: str | None = None
    unit: int | None = None
    controller: Controller | None = None
    options: DiskOptions = PLAIN


@dataclass(frozen=True)
class DiskState:
    """A disk at one moment: now, or at a snapshot. Paths are datastore paths, sizes bytes.

    ``parents`` go from the nearest to the base. ``change_id`` is None if the disk was not tracked.
    """

    slot: Slot
    capacity: int
    file: str
    parents: tuple[str, ...]
    thin: bool
    uuid: str
    content_id: str
    change_id: str | None
    options: DiskOptions = PLAIN

    @property
    def key(self) -> int:
        return self.slot.key

    @property
    def unit(self) -> int:
        return self.slot.unit

    @property
    def label(self) -> str:
        """``Hard disk 1``"""
        return self.slot.label


@dataclass(frozen=True)
class Merging:
    """``child`` is being merged into ``parent`` (datastore paths), whose content id was ``cid`` before."""

    child: str
    parent: str
    cid: int


@dataclass(eq=False)
class Snapshot:
    """A node of a machine's snapshot tree. ``disks`` by device key, as they were; ``config`` likewise."""

    moref: str
    uid: int
    name: str
    description: str
    created: datetime
    powered_on: bool
    memory: bool
    quiesced: bool
    config: MachineConfig
    disks: Mapping[int, DiskState]
    parent: Snapshot | None = None
    children: list[Snapshot] = field(default_factory=list)

    def walk(self) -> Iterator[Snapshot]:
        """This snapshot and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def depth(self) -> int:
        """1 for a root."""
        return 1 if self.parent is None else self.parent.depth + 1
