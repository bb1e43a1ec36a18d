"""Snapshots taken, removed, reverted to: real delta disks under a stun of the whole machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vdkit.errors import VixError
from vdkit.sim import consolidation, hardware, links
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.disk import SimDisk
from vdkit.sim.faults import FileLocked, InvalidName, NotFound, SnapshotFault
from vdkit.sim.locks import Locked, LockMode
from vdkit.sim.snapshot import MAX_SNAPSHOT_DEPTH, DiskState, Snapshot

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

_MAX_NAME = 80


def create(machine: Machine, name: str, description: str, *, memory: bool, quiesce: bool) -> Snapshot:
    """All disks at one moment. If one of them fails, none has a delta."""
    if not name or len(name) > _MAX_NAME:
        raise InvalidName(name[:_MAX_NAME])
    parent = machine.current_snapshot
    if parent is not None and parent.depth >= MAX_SNAPSHOT_DEPTH:
        raise SnapshotFault(f"{machine.name}: {parent.depth} snapshots in a row, a host makes no more")
    obstacle = hardware.snapshot_obstacle(machine)
    if obstacle is not None:
        raise SnapshotFault(f"{machine.name}: {obstacle}")
    with _unlocked(machine), machine.gate.stun():
        machine.home.hook("stun", machine)
        taken = {key: disk for key, disk in machine.disks.items() if disk.options.in_snapshots}
        frozen = {key: disk.state() for key, disk in taken.items()}
        _fork_all(taken)
        for key, disk in taken.items():
            # The id that a snapshot carries is that of the epoch it closes. A new child has its parent's
            # content.
            change_id = None if disk.tracker is None else disk.tracker.freeze()
            frozen[key] = replace(frozen[key], change_id=change_id, content_id=disk.facts.content_id)
        machine.apply_tracking()
        machine.last_snapshot_uid += 1
        snapshot = Snapshot(
            moref=machine.home.snapshot_moref(machine, machine.last_snapshot_uid),
            uid=machine.last_snapshot_uid,
            name=name,
            description=description,
            created=machine.home.clock.now(),
            powered_on=machine.powered_on,
            memory=memory and machine.powered_on,
            quiesced=quiesce,
            config=machine.config,
            disks=frozen,
            parent=parent,
        )
        _siblings(machine, snapshot).append(snapshot)
        machine.current_snapshot = snapshot
        # Before the guest goes on: what it writes from now is in the new leaf, and the files must say so.
        machine.save()
    return snapshot


def _fork_all(disks: Mapping[int, SimDisk]) -> None:
    done: list[SimDisk] = []
    try:
        for disk in disks.values():
            disk.fork(links.next_delta(disk.datastore, disk.leaf))
            done.append(disk)
    except VixError:
        for disk in done:
            disk.unfork()
        raise


@contextmanager
def _unlocked(machine: Machine) -> Iterator[None]:
    """A disk that the data port writes to cannot be frozen, and none can be opened so meanwhile."""
    with ExitStack() as held:
        for disk in machine.disks.values():
            if not machine.powered_on:
                try:
                    held.enter_context(
                        disk.datastore.locks.acquire([(disk.leaf, LockMode.READ)], "a snapshot")
                    )
                except Locked as error:
                    raise FileLocked(disk.file, str(error)) from error
        yield


def _siblings(machine: Machine, snapshot: Snapshot) -> list[Snapshot]:
    return machine.snapshot_roots if snapshot.parent is None else snapshot.parent.children


def _require(machine: Machine, snapshot: Snapshot) -> None:
    if snapshot not in list(machine.snapshots()):
        raise NotFound(f"{machine.name}: snapshot {snapshot.moref} is gone")


def remove(machine: Machine, snapshot: Snapshot, *, children: bool, consolidate: bool) -> None:
    """Out of the tree first, then the data; so a consolidation that fails leaves no snapshot behind."""
    _require(machine, snapshot)
    before = consolidation.tree_of(machine)
    gone = list(snapshot.walk()) if children else [snapshot]
    siblings = _siblings(machine, snapshot)
    at = siblings.index(snapshot)
    heirs = [] if children else list(snapshot.children)
    for heir in heirs:
        heir.parent = snapshot.parent
    siblings[at : at + 1] = heirs
    while machine.current_snapshot in gone:
        machine.current_snapshot = machine.current_snapshot.parent if machine.current_snapshot else None
    _finish_removal(machine, before, consolidate=consolidate)


def remove_all(machine: Machine, *, consolidate: bool) -> None:
    before = consolidation.tree_of(machine)
    machine.snapshot_roots = []
    machine.current_snapshot = None
    _finish_removal(machine, before, consolidate=consolidate)


def _finish_removal(machine: Machine, before: consolidation.Tree, *, consolidate: bool) -> None:
    with machine.gate.stun():
        machine.home.hook("stun", machine)
        machine.apply_tracking()
    consolidation.drop(machine, before)
    machine.home.changed(machine)
    if consolidate:
        consolidation.run(machine)


def rename(machine: Machine, snapshot: Snapshot, name: str | None, description: str | None) -> None:
    _require(machine, snapshot)
    if name is not None:
        if not name or len(name) > _MAX_NAME:
            raise InvalidName(name[:_MAX_NAME])
        snapshot.name = name
    if description is not None:
        snapshot.description = description
    machine.save()


def revert(machine: Machine, snapshot: Snapshot, *, suppress_power_on: bool) -> None:
    """Disks and configuration as they were; what was written since is thrown away.

    A snapshot without memory leaves the machine off. Tracking begins a new history: old ids become unknown.
    """
    _require(machine, snapshot)
    before = consolidation.tree_of(machine)
    resume = snapshot.memory and snapshot.powered_on and not suppress_power_on
    if machine.powered_on:
        machine.stop()
    with _unlocked(machine):
        old = dict(machine.disks)
        untouched = {key: disk for key, disk in old.items() if not disk.options.in_snapshots}
        machine.disks = dict(sorted({**untouched, **_disks_of(machine, snapshot.disks, old)}.items()))
    machine.config = replace(snapshot.config, name=machine.config.name)
    machine.current_snapshot = snapshot
    for key in snapshot.disks:
        machine.disks[key].reset_tracking()
    machine.apply_tracking()
    consolidation.drop(machine, before)
    consolidation.run(machine)
    if resume:
        machine.attach_all()
        machine.powered_on = True
        machine.save()


def _disks_of(
    machine: Machine, states: Mapping[int, DiskState], old: Mapping[int, SimDisk]
) -> dict[int, SimDisk]:
    """The disks of a snapshot, each with a new, empty leaf on the link that was frozen."""
    leaves: dict[int, tuple[Datastore, str]] = {}
    try:
        for key, state in states.items():
            store_name, frozen = split_path(state.file)
            datastore = machine.home.datastore(store_name)
            name = links.next_delta(datastore, frozen)
            links.fork(datastore, frozen, name, state.capacity)
            leaves[key] = (datastore, name)
    except VixError:
        for datastore, name in leaves.values():
            links.delete(datastore, name)
        raise
    made: dict[int, SimDisk] = {}
    for key, (datastore, name) in leaves.items():
        made[key] = SimDisk(machine, states[key].slot, datastore, name, states[key].options)
        previous = old.get(key)
        if previous is not None:
            made[key].inherit(previous)
    return made
