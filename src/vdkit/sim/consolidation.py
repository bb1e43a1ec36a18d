"""Merging deltas that no snapshot needs into their parents, while the guest runs.

Which links there are is a tree; a link is *kept* if it is the current leaf of a disk or belongs to a
snapshot. One that is not kept and has one child takes that child's data and place; one without children, if
it is a delta, is deleted; one with several stays. So a base keeps its name, as on a host.

A running leaf is merged in two steps: a helper delta takes the guest's writes while the data moves, then,
in a stun, the little that the helper holds follows. Change tracking is not touched by any of it: it counts
the guest's writes, not the files'. Source: published descriptions of vSphere's snapshot removal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from vdkit.sim import links
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import FileLocked
from vdkit.sim.locks import FileLock, Locked, LockMode
from vdkit.sim.snapshot import DiskState, Merging

if TYPE_CHECKING:
    from vdkit.sim.disk import SimDisk
    from vdkit.sim.machine import Machine

#: Datastore path of a link to that of its parent.
Tree = Mapping[str, str | None]


class Merge(NamedTuple):
    """``child`` is the only child of ``parent``, which nobody needs as it is."""

    child: str
    parent: str


class Delete(NamedTuple):
    """A delta that nobody needs."""

    link: str


def tree_of(machine: Machine) -> dict[str, str | None]:
    """All links of the machine's disks and snapshots."""
    states = [disk.state() for disk in machine.disks.values()]
    for snapshot in machine.snapshots():
        states += snapshot.disks.values()
    tree: dict[str, str | None] = {}
    for state in states:
        chain = (state.file, *state.parents)
        tree.update(zip(chain, (*chain[1:], None), strict=True))
    return tree


def kept_by(machine: Machine) -> set[str]:
    """The links that are somebody's: current leaves, what snapshots froze, what other machines stand on."""
    kept = {disk.file for disk in machine.disks.values()} | machine.home.shared_links(machine)
    for snapshot in machine.snapshots():
        kept |= {state.file for state in snapshot.disks.values()}
    return kept


def next_step(tree: Tree, kept: Collection[str]) -> Merge | Delete | None:
    """What to do next, nearest to the base first; None when all is done."""
    for link in sorted(tree, key=lambda name: (_depth(tree, name), name)):
        if link in kept:
            continue
        children = [child for child, parent in tree.items() if parent == link]
        if len(children) == 1:
            return Merge(children[0], link)
        if not children and tree[link] is not None:
            return Delete(link)
    return None


def _depth(tree: Tree, link: str) -> int:
    depth = 0
    at = tree[link]
    while at is not None:
        depth += 1
        at = tree[at]
    return depth


def drop(machine: Machine, before: Tree) -> None:
    """Remember links of an earlier tree that nobody names any more, and whether work is left."""
    machine.dropped_links |= {link: parent for link, parent in before.items() if link not in tree_of(machine)}
    tree = {**machine.dropped_links, **tree_of(machine)}
    machine.consolidation_needed = next_step(tree, kept_by(machine)) is not None
    machine.save()


def run(machine: Machine) -> None:
    """Until nothing is left to do.

    A failure leaves a machine that works and says ``consolidation_needed``. Raises ModelFault.
    """
    tree = {**machine.dropped_links, **tree_of(machine)}
    machine.consolidation_needed = next_step(tree, kept_by(machine)) is not None
    while (step := next_step(tree, kept_by(machine))) is not None:
        machine.home.hook("consolidate", machine)
        match step:
            case Merge(child, parent):
                _merge(machine, tree, child, parent)
                tree = {
                    name: parent if above == child else above for name, above in tree.items() if name != child
                }
            case Delete(link):
                datastore, name = _locate(machine, link)
                with _hold(datastore, [name]):
                    links.delete(datastore, name)
                del tree[link]
                machine.dropped_links.pop(link, None)
    machine.dropped_links.clear()
    machine.consolidation_needed = False
    machine.save()


def _locate(machine: Machine, path: str) -> tuple[Datastore, str]:
    datastore, name = split_path(path)
    return machine.home.datastore(datastore), name


def _hold(datastore: Datastore, names: list[str]) -> FileLock:
    try:
        return datastore.locks.acquire([(name, LockMode.WRITE) for name in names], "a consolidation")
    except Locked as error:
        raise FileLocked(datastore.path(error.name), str(error)) from error


def _merge(machine: Machine, tree: Tree, child: str, parent: str) -> None:
    datastore, child_name = _locate(machine, child)
    parent_name = split_path(parent)[1]
    user = next((d for d in machine.disks.values() if child in (d.file, *d.state().parents)), None)
    running = user is not None and machine.powered_on
    helper = None
    # Ask first whether the files can be had: a helper that was made in vain would only lengthen the chain.
    with _Exclusive(user if running else None, datastore, [child_name, parent_name]):
        pass
    if user is not None and running and user.leaf == child_name:
        helper = _take_aside(machine, user)
    above = [split_path(name)[1] for name, under in tree.items() if under == child]
    if helper is not None:
        above.append(helper)
    with _Exclusive(user if running else None, datastore, [child_name, parent_name]):
        with _marked(machine, datastore, child_name, parent_name):
            links.merge(datastore, child_name, parent_name)
        with machine.gate.stun():
            if user is not None and running:
                user.close_leaf()
            try:
                with _marked(machine, datastore, child_name, parent_name):
                    links.adopt(datastore, child_name, parent_name, above)
                    _forget(machine, child, parent)
                if helper is not None:
                    with _marked(machine, datastore, helper, parent_name):
                        links.merge(datastore, helper, parent_name)
                        links.adopt(datastore, helper, parent_name, [])
                        _forget(machine, datastore.path(helper), parent)
            finally:
                if user is not None and running:
                    user.open_leaf()


@contextmanager
def _marked(machine: Machine, datastore: Datastore, child: str, parent: str) -> Iterator[None]:
    """While it lasts, the machine's files say what is going on, so that :func:`recover` can help."""
    with links.storage(datastore, parent):
        cid = links.descriptor_of(datastore, parent).cid
    machine.merging = Merging(datastore.path(child), datastore.path(parent), cid)
    machine.save()
    try:
        yield
    finally:
        machine.merging = None
        machine.save()


def recover(machine: Machine) -> None:
    """After the host went down in a merge: make the files fit again; the data are right either way."""
    if machine.merging is None:
        return
    datastore, child = _locate(machine, machine.merging.child)
    parent = split_path(machine.merging.parent)[1]
    if links.is_whole(datastore, child):
        links.unadopt(datastore, child, parent, machine.merging.cid)
    elif datastore.exists(child):
        links.delete(datastore, child)
    machine.merging = None
    machine.consolidation_needed = True


def delete_links(machine: Machine, tree: Tree) -> None:
    """All that no other machine stands on, children before parents. Raises FileLocked before anything is
    deleted.
    """
    shared = machine.home.shared_links(machine)
    ours = [link for link in sorted(tree, key=lambda name: -_depth(tree, name)) if link not in shared]
    located = [_locate(machine, link) for link in ours]
    held: list[FileLock] = []
    try:
        held.extend(_hold(datastore, [name]) for datastore, name in located)
        for datastore, name in located:
            links.delete(datastore, name)
    finally:
        for lock in held:
            lock.release()


def _take_aside(machine: Machine, disk: SimDisk) -> str:
    """A delta for the guest to write to while what it wrote before is moved; its name."""
    with machine.gate.stun():
        name = links.next_delta(disk.datastore, disk.leaf)
        disk.fork(name)
        machine.save()
    return name


class _Exclusive:
    """The files of a merge for us alone: taken over from the running machine, or from nobody."""

    def __init__(self, disk: SimDisk | None, datastore: Datastore, names: list[str]) -> None:
        self._disk = disk
        self._lock: FileLock | None = None
        try:
            if disk is None:
                self._lock = _hold(datastore, names)
            else:
                disk.relock(names)
        except Locked as error:
            raise FileLocked(datastore.path(error.name), str(error)) from error

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        if self._disk is not None:
            self._disk.relock([])
        elif self._lock is not None:
            self._lock.release()


def _forget(machine: Machine, child: str, parent: str) -> None:
    """Everybody who named ``child`` now names ``parent``."""
    gone = {child}
    for snapshot in machine.snapshots():
        snapshot.disks = {key: without(state, gone) for key, state in snapshot.disks.items()}
    for disk in machine.disks.values():
        if gone & {disk.file, *disk.state().parents}:
            disk.refresh(parent if disk.file in gone else disk.file)
    machine.save()


def without(state: DiskState, gone: Collection[str]) -> DiskState:
    """A chain with links taken out; the next one below takes the place of the first."""
    chain = [link for link in (state.file, *state.parents) if link not in gone]
    return replace(state, file=chain[0], parents=tuple(chain[1:]))
