"""A machine moved to another datastore, its guest running and its snapshots kept: storage vMotion.

Frozen links are copied while the guest runs, the current ones in a stun; then the machine names the copies
and the originals go. Whoever has an original open reads on from it, as from any file that was removed;
whoever opens its path anew finds nothing. Change tracking goes on: it counts the guest's writes, not the
files'.

Source: published descriptions of storage vMotion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vdkit.block.copy import copy
from vdkit.errors import VixError
from vdkit.sim import links
from vdkit.sim.consolidation import tree_of
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.faults import FileAlreadyExists, FileLocked, NotSupported
from vdkit.sim.locks import Locked, LockMode

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

#: Files of a machine beside its disks that are not written anew by the machine itself.
_CARRIED = (".vmsn", ".nvram", ".log")
_REWRITTEN = (".vmx", ".vmtx", ".vmsd")


def relocate(machine: Machine, target: Datastore) -> None:
    """Move everything of the machine to ``target``. All or nothing; raises ModelFault."""
    with machine.operation("relocate"):
        old = [(split_path(path), path) for path in machine.files()]
        if all(name == target.name for (name, _), _ in old):
            return
        _Move(machine, target).run()


class _Move:
    def __init__(self, machine: Machine, target: Datastore) -> None:
        self._machine = machine
        self._target = target
        self._folder = _free_folder(target, machine.folder)
        self._tree: dict[str, str | None] = {**machine.dropped_links, **tree_of(machine)}
        self._paths = self._places()
        self._copied: list[str] = []
        self._originals: list[tuple[Datastore, str]] = []

    def _places(self) -> dict[str, str]:
        """Where every link goes, by datastore path."""
        found: dict[str, str] = {}
        shared = self._machine.home.shared_links(self._machine)
        for link, parent in self._tree.items():
            if link in shared:
                raise NotSupported(f"linked clones stand on {link}: it is not relocated here")
            if parent is not None and _folder_of(parent) != _folder_of(link):
                raise NotSupported(f"{link} stands on {parent}: linked clones are not relocated here")
            place = self._target.path(f"{self._folder}/{link.rpartition('/')[2]}")
            if place in found.values():
                raise FileAlreadyExists(place, "two disks of the machine have files of this name")
            found[link] = place
        return found

    def run(self) -> None:
        machine = self._machine
        leaves = {disk.file for disk in machine.disks.values()}
        try:
            self._target.store.make_folder(self._folder)
            for link in self._paths:
                if link not in leaves:
                    self._copy_link(link)
            with machine.gate.stun(), self._closed(), self._unwritten():
                machine.home.hook("stun", machine)
                for link in leaves:
                    self._copy_link(link)
                self._carry_files()
                self._switch()
        except BaseException:
            self._undo()
            raise
        self._delete_originals()

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """The running disks let go of their files, and have those that the machine names at the end."""
        running = self._machine.powered_on
        disks = list(self._machine.disks.values()) if running else []
        for disk in disks:
            disk.detach()
        try:
            yield
        finally:
            if running:
                self._machine.attach_all()

    @contextmanager
    def _unwritten(self) -> Iterator[None]:
        """A disk that the data port writes to cannot be moved."""
        with ExitStack() as held:
            for disk in self._machine.disks.values():
                try:
                    lock = disk.datastore.locks.acquire([(disk.leaf, LockMode.READ)], "a relocation")
                except Locked as error:
                    raise FileLocked(disk.file, str(error)) from error
                held.enter_context(lock)
            yield

    def _copy_link(self, link: str) -> None:
        store_name, name = split_path(link)
        datastore = self._machine.home.datastore(store_name)
        for file in links.files_of(datastore, name):
            self._copy_file(datastore, file)

    def _carry_files(self) -> None:
        machine = self._machine
        for suffix in (*_CARRIED, *_REWRITTEN):
            stem = _base(machine.stem)
            for name in machine.datastore.files(machine.folder):
                if name.startswith(stem) and name.endswith(suffix):
                    file = f"{machine.folder}/{name}".lstrip("/")
                    if suffix in _CARRIED:
                        self._copy_file(machine.datastore, file)
                    else:
                        self._originals.append((machine.datastore, file))

    def _copy_file(self, datastore: Datastore, file: str) -> None:
        fresh = f"{self._folder}/{file.rpartition('/')[2]}"
        with (
            links.storage(self._target, fresh),
            datastore.store.open(file) as source,
            self._target.store.create(fresh, source.capacity) as made,
        ):
            self._copied.append(fresh)
            if source.capacity:
                copy(source, made)
        self._originals.append((datastore, file))

    def _switch(self) -> None:
        machine, moved = self._machine, self._paths
        machine.datastore, machine.vmx_name = self._target, f"{self._folder}/{_base(machine.vmx_name)}"
        for disk in machine.disks.values():
            place = moved[disk.file]
            disk.datastore = self._target
            disk.refresh(place)
        for snapshot in machine.snapshots():
            snapshot.disks = {
                key: replace(
                    state, file=moved[state.file], parents=tuple(moved[link] for link in state.parents)
                )
                for key, state in snapshot.disks.items()
            }
        machine.dropped_links = _renamed(machine.dropped_links, moved)
        machine.save()

    def _undo(self) -> None:
        if self._machine.datastore is self._target and self._machine.folder == self._folder:
            return  # the machine has moved already: what failed came after
        for name in self._copied:
            self._target.discard(name)
        _discard_empty(self._target, self._folder)

    def _delete_originals(self) -> None:
        for datastore, name in self._originals:
            datastore.discard(name)
        for datastore, folder in {(store, name.rpartition("/")[0]) for store, name in self._originals}:
            _discard_empty(datastore, folder)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _renamed(dropped: Mapping[str, str | None], moved: Mapping[str, str]) -> dict[str, str | None]:
    return {
        moved[link]: None if parent is None else moved.get(parent, parent) for link, parent in dropped.items()
    }


def _free_folder(target: Datastore, wanted: str) -> str:
    """``web``, or ``web_1`` where that is taken."""
    folder, number = wanted, 0
    while target.exists(folder) or target.files(folder):
        number += 1
        folder = f"{wanted}_{number}"
    return folder


def _discard_empty(datastore: Datastore, folder: str) -> None:
    if folder and not datastore.files(folder):
        try:
            datastore.discard(folder)
        except VixError:
            return  # an empty folder harms nobody
