"""Copies of a machine: full ones, and linked ones whose disks are deltas on a snapshot of the original.

Source: the published descriptions of CloneVM_Task and of the disk move types of RelocateSpec.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vdkit.block.copy import copy
from vdkit.errors import VixError
from vdkit.sim import links
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import FileLocked, NotSupported
from vdkit.sim.locks import Locked, LockMode
from vdkit.sim.snapshot import DiskSpec, DiskState, MachineConfig, Snapshot

if TYPE_CHECKING:
    from vdkit.sim.inventory import Inventory
    from vdkit.sim.machine import Machine

_SNAPSHOT = "vdkit clone"


def clone(
    inventory: Inventory,
    source: Machine,
    name: str,
    datastore: Datastore,
    *,
    snapshot: Snapshot | None = None,
    linked: bool = False,
    template: bool = False,
) -> Machine:
    """A new machine, powered off, with the disks of ``snapshot`` or those of now.

    A running machine is copied from a snapshot that is made for it and removed. All or nothing; raises
    ModelFault.
    """
    if linked and snapshot is None:
        raise NotSupported(f"{source.name}: a linked clone stands on a snapshot, and none is named")
    with _frozen(source, snapshot) as (config, states):
        made = _Clone(inventory, source, name, datastore, linked=linked).make(config, states)
    if template:
        made.set_template(True)
    return made


@contextmanager
def _frozen(source: Machine, snapshot: Snapshot | None) -> Iterator[tuple[MachineConfig, list[DiskState]]]:
    """What is copied, and nobody changes it meanwhile."""
    own = None
    if snapshot is None and source.powered_on:
        own = snapshot = source.create_snapshot(_SNAPSHOT)
    try:
        if snapshot is not None:
            yield snapshot.config, list(snapshot.disks.values())
        else:
            yield source.config, [disk.state() for disk in source.disks.values()]
    finally:
        if own is not None:
            source.remove_snapshot(own)


class _Clone:
    def __init__(
        self, inventory: Inventory, source: Machine, name: str, datastore: Datastore, *, linked: bool
    ) -> None:
        self._inventory = inventory
        self._source = source
        self._name = name
        self._datastore = datastore
        self._linked = linked
        self._made: list[str] = []

    def make(self, config: MachineConfig, states: list[DiskState]) -> Machine:
        inventory, datastore = self._inventory, self._datastore
        inventory.check_name(self._name)
        vmx = inventory.free_vmx_name(datastore, self._name)
        stem = vmx.rpartition(".")[0]
        fresh = MachineConfig.new(self._name)
        try:
            datastore.store.make_folder(vmx.rpartition("/")[0])
            specs = []
            for number, state in enumerate(states):
                target = f"{stem}_{number}.vmdk" if number else f"{stem}.vmdk"
                self._disk(state, target)
                specs.append(
                    DiskSpec(
                        path=datastore.path(target),
                        unit=state.unit,
                        controller=self._source.controllers.get(state.slot[:2]),
                        options=state.options,
                    )
                )
            return inventory.create_machine(
                self._name,
                datastore.name,
                specs,
                config=replace(
                    config,
                    bios_uuid=fresh.bios_uuid,
                    instance_uuid=fresh.instance_uuid,
                    change_tracking=False,
                    template=False,
                ),
                vmx_path=datastore.path(vmx),
            )
        except VixError:
            for target in self._made:
                links.delete(datastore, target)
            raise

    def _disk(self, state: DiskState, target: str) -> None:
        store_name, name = split_path(state.file)
        origin = self._inventory.datastore(store_name)
        chain = [name, *(split_path(parent)[1] for parent in state.parents)]
        try:
            held = origin.locks.acquire([(link, LockMode.READ) for link in chain], "a clone")
        except Locked as error:
            raise FileLocked(state.file, str(error)) from error
        with held:
            if self._linked:
                if origin is not self._datastore:
                    raise NotSupported("a linked clone lies in the datastore of its original here")
                links.fork(origin, name, target, state.capacity)
                self._made.append(target)
                return
            links.create(self._datastore, target, state.capacity, thin=state.thin)
            self._made.append(target)
            with links.open_frozen(origin, name) as old, links.open_leaf(self._datastore, target) as new:
                copy(old, new)
