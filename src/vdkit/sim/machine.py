"""A virtual machine: identity, power, disks, snapshots, and the files that keep all of it.

One operation at a time: a second one that comes meanwhile gets TaskInProgress. What observers read
(attributes and :meth:`SimDisk.state`) is replaced as a whole at the end of an operation, never half
changed. The work itself is in :mod:`~vdkit.sim.hardware` (devices), :mod:`~vdkit.sim.snapshotting` and
:mod:`~vdkit.sim.consolidation`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from vdkit.errors import VixError
from vdkit.sim import consolidation, hardware, machinefiles, snapshotting
from vdkit.sim.controllers import PLAIN, Controller, DiskOptions
from vdkit.sim.datastore import Datastore
from vdkit.sim.disk import SimDisk
from vdkit.sim.faults import (
    FileLocked,
    InvalidArgument,
    InvalidPowerState,
    ManagedObjectNotFound,
    NotFound,
    NotSupported,
    TaskInProgress,
)
from vdkit.sim.gate import StunGate
from vdkit.sim.home import MachineHome
from vdkit.sim.locks import Locked
from vdkit.sim.snapshot import DiskState, MachineConfig, Merging, Snapshot
from vdkit.sim.tracking import ChangedAreas
from vdkit.sim.vmx import VmxText

ON, OFF = "poweredOn", "poweredOff"


class Machine:
    """See the module. Made by :class:`~vdkit.sim.inventory.Inventory`. Every method may raise ModelFault."""

    def __init__(
        self, home: MachineHome, moref: str, datastore: Datastore, vmx_name: str, config: MachineConfig
    ) -> None:
        """``vmx_name`` is the name of the .vmx file in the datastore."""
        self.home = home
        self.moref = moref
        self.datastore = datastore
        self.vmx_name = vmx_name
        self.text = VmxText()
        self.config = config
        self.disks: dict[int, SimDisk] = {}
        #: By the name of the bus and the number on it.
        self.controllers: dict[tuple[str, int], Controller] = {("scsi", 0): Controller()}
        self.snapshot_roots: list[Snapshot] = []
        self.current_snapshot: Snapshot | None = None
        self.last_snapshot_uid = 0
        self.consolidation_needed = False
        #: Links that nobody names any more and that wait to be deleted: datastore path to that of the parent.
        self.dropped_links: dict[str, str | None] = {}
        #: The merge in progress, for a host that goes down in the middle of it.
        self.merging: Merging | None = None
        self.powered_on = False
        self.operation_name: str | None = None
        self._gate = StunGate()
        self._busy = threading.Lock()
        self._gone = False

    def __repr__(self) -> str:
        return f"<Machine {self.moref} {self.name!r} {self.power_state}>"

    # -- what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def power_state(self) -> str:
        """``poweredOn`` or ``poweredOff``."""
        return ON if self.powered_on else OFF

    @property
    def gate(self) -> StunGate:
        """Guest I/O passes it; a stun closes it."""
        return self._gate

    @property
    def folder(self) -> str:
        """Name of its folder in the datastore."""
        return self.vmx_name.rpartition("/")[0]

    @property
    def stem(self) -> str:
        """Of the names of its files: that of the configuration file without its ending."""
        return self.vmx_name.rpartition(".")[0]

    @property
    def vmx_path(self) -> str:
        """``[datastore1] vm/vm.vmx``"""
        return self.datastore.path(self.vmx_name)

    @property
    def tracking_active(self) -> bool:
        """True once every disk that can be is really tracked, which needs a stun after it was configured."""
        able = [disk for disk in self.disks.values() if hardware.trackable(self, disk)]
        return bool(able) and all(disk.tracker is not None for disk in able)

    def disk(self, key: int) -> SimDisk:
        """The disk with a device key. Raises InvalidArgument(deviceKey)."""
        found = self.disks.get(key)
        if found is None:
            raise InvalidArgument("deviceKey")
        return found

    def snapshots(self) -> Iterator[Snapshot]:
        """All of them, parents first."""
        for root in list(self.snapshot_roots):
            yield from root.walk()

    def snapshot(self, moref: str) -> Snapshot:
        """Raises ManagedObjectNotFound."""
        for snapshot in self.snapshots():
            if snapshot.moref == moref:
                return snapshot
        raise ManagedObjectNotFound("VirtualMachineSnapshot", moref)

    def changed_areas(
        self, key: int, start: int, change_id: str, snapshot: Snapshot | None = None
    ) -> ChangedAreas:
        """QueryChangedDiskAreas. Offsets in bytes; ``change_id`` may be ``*``."""
        disk = self.disk(key)
        until: DiskState | None = None
        if snapshot is not None:
            if snapshot not in list(self.snapshots()):
                raise NotFound(f"snapshot {snapshot.moref} is gone")
            until = snapshot.disks.get(key)
            if until is None:
                raise InvalidArgument("deviceKey")
        return disk.changed(change_id, until, start, page=self.home.areas_per_page)

    def files(self) -> list[str]:
        """Datastore paths of everything that belongs to the machine and exists."""
        return machinefiles.files_of(self)

    # -- power -----------------------------------------------------------------------------------

    def power_on(self) -> None:
        with self.operation("powerOn"):
            if self.config.template:
                raise NotSupported(f"{self.name} is a template: it cannot be powered on")
            if self.powered_on:
                raise InvalidPowerState(ON, ON)
            self.attach_all()
            self.powered_on = True
            self.apply_tracking()
            self.save()

    def power_off(self) -> None:
        with self.operation("powerOff"):
            if not self.powered_on:
                raise InvalidPowerState(OFF, OFF)
            self.stop()
            self.apply_tracking()
            self.save()

    def stop(self) -> None:
        """Take the power away, inside an operation; guest I/O in flight is finished first."""
        with self._gate.stun():
            self.powered_on = False
            for disk in self.disks.values():
                disk.detach()
                disk.refresh(disk.file)

    def attach_all(self) -> None:
        done: list[SimDisk] = []
        try:
            for disk in self.disks.values():
                try:
                    disk.attach()
                except Locked as error:
                    raise FileLocked(disk.file, str(error)) from error
                done.append(disk)
        except VixError:
            for disk in done:
                disk.detach()
            raise

    def close(self) -> None:
        """The host goes down, after an operation in progress: files are closed, their state stays."""
        with self._busy, self._gate.stun():
            self._gone = True
            for disk in self.disks.values():
                disk.detach()

    # -- configuration ---------------------------------------------------------------------------

    def rename(self, name: str) -> None:
        """The display name; files keep theirs, as on a host."""
        with self.operation("reconfigure"):
            self.home.check_name(name, self)
            self.config = replace(self.config, name=name)
            self.save()

    def set_template(self, template: bool) -> None:
        """A template is a machine that is off and stays so; its configuration file ends in ``.vmtx``."""
        with self.operation("reconfigure"):
            if self.config.template == template:
                raise NotSupported(f"{self.name} is {'a' if template else 'no'} template already")
            if self.powered_on:
                raise InvalidPowerState(OFF, ON)
            before = self.vmx_name
            self.config = replace(self.config, template=template)
            self.vmx_name = f"{self.stem}.{'vmtx' if template else 'vmx'}"
            self.save()
            self.datastore.discard(before)

    def set_change_tracking(self, enabled: bool) -> None:
        """On: begins at once on a machine that is off, else with the next stun. Off: at once."""
        with self.operation("reconfigure"):
            self.config = replace(self.config, change_tracking=enabled)
            if not enabled or not self.powered_on:
                self.apply_tracking()
            self.save()

    def set_hardware(
        self, *, memory_mib: int | None = None, cpus: int | None = None, annotation: str | None = None
    ) -> None:
        with self.operation("reconfigure"):
            hardware.set_sizes(self, memory_mib=memory_mib, cpus=cpus, annotation=annotation)
            self.save()

    def add_disk(
        self,
        capacity: int,
        *,
        thin: bool = True,
        path: str | None = None,
        unit: int | None = None,
        controller: Controller | None = None,
        options: DiskOptions = PLAIN,
    ) -> SimDisk:
        """A new, empty disk; without ``path`` (a datastore path) it lies beside the machine's other files.

        ``controller`` is added to the machine if it is not there; None is the first SCSI controller.
        """
        with self.operation("reconfigure"):
            return hardware.add_disk(
                self, capacity, thin=thin, path=path, unit=unit, controller=controller, options=options
            )

    def attach_disk(
        self,
        path: str,
        *,
        unit: int | None = None,
        controller: Controller | None = None,
        options: DiskOptions = PLAIN,
    ) -> SimDisk:
        """A disk that exists, by datastore path."""
        with self.operation("reconfigure"):
            return hardware.attach_disk(self, path, unit=unit, controller=controller, options=options)

    def add_controller(self, controller: Controller) -> None:
        with self.operation("reconfigure"):
            hardware.add_controller(self, controller)
            self.save()

    def set_disk_options(self, key: int, options: DiskOptions) -> None:
        """How a disk is attached; see :class:`~vdkit.sim.controllers.DiskOptions`."""
        with self.operation("reconfigure"):
            hardware.set_options(self, key, options)

    def remove_disk(self, key: int, *, destroy_files: bool = False) -> None:
        with self.operation("reconfigure"):
            hardware.remove_disk(self, key, destroy_files=destroy_files)

    def grow_disk(self, key: int, capacity: int) -> None:
        """To ``capacity`` bytes; only without snapshots. A running guest sees it through a new guest
        device.
        """
        with self.operation("reconfigure"):
            hardware.grow_disk(self, key, capacity)

    def destroy(self) -> None:
        """Only while off: all files of the machine are deleted."""
        with self.operation("destroy"):
            if self.powered_on:
                raise InvalidPowerState(OFF, ON)
            machinefiles.delete_all(self)
            self._gone = True
            self.home.removed(self)

    def unregister(self) -> None:
        """Only while off: the files stay."""
        with self.operation("destroy"):
            if self.powered_on:
                raise InvalidPowerState(OFF, ON)
            self._gone = True
            self.home.removed(self)

    # -- snapshots -------------------------------------------------------------------------------

    def create_snapshot(
        self, name: str, description: str = "", *, memory: bool = False, quiesce: bool = False
    ) -> Snapshot:
        with self.operation("createSnapshot"):
            if self.config.template:
                raise NotSupported(f"{self.name} is a template: no snapshot of it is made")
            return snapshotting.create(self, name, description, memory=memory, quiesce=quiesce)

    def remove_snapshot(
        self, snapshot: Snapshot, *, children: bool = False, consolidate: bool = True
    ) -> None:
        """``children``: with all below it."""
        with self.operation("removeSnapshot"):
            snapshotting.remove(self, snapshot, children=children, consolidate=consolidate)

    def remove_all_snapshots(self, *, consolidate: bool = True) -> None:
        with self.operation("removeSnapshot"):
            snapshotting.remove_all(self, consolidate=consolidate)

    def revert_to_snapshot(self, snapshot: Snapshot, *, suppress_power_on: bool = False) -> None:
        with self.operation("revertSnapshot"):
            snapshotting.revert(self, snapshot, suppress_power_on=suppress_power_on)

    def rename_snapshot(self, snapshot: Snapshot, name: str | None, description: str | None) -> None:
        with self.operation("reconfigure"):
            snapshotting.rename(self, snapshot, name, description)

    def consolidate(self) -> None:
        """Merge and delete what no snapshot needs, as ConsolidateVMDisks does."""
        with self.operation("removeSnapshot"):
            consolidation.run(self)

    # -- for the parts ---------------------------------------------------------------------------

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """One at a time; the hook is asked first, observers are told at the end."""
        if not self._busy.acquire(blocking=False):
            raise TaskInProgress(f"{self.name}: {self.operation_name} is in progress")
        try:
            if self._gone:
                raise ManagedObjectNotFound("VirtualMachine", self.moref)
            self.operation_name = name
            self.home.hook(name, self)
            yield
        finally:
            self.operation_name = None
            self._busy.release()
            if not self._gone:
                self.home.changed(self)

    def apply_tracking(self) -> None:
        """Begin or end tracking as configured: after a stun, or at once on a machine that is off."""
        for disk in self.disks.values():
            if self.config.change_tracking and hardware.trackable(self, disk):
                disk.track()
            else:
                disk.untrack()

    def save(self) -> None:
        """Write the .vmx and the snapshot list."""
        machinefiles.save(self)
