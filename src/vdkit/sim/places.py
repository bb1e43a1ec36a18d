"""Where machines are: on which ESXi host they run, and in which folder of the inventory they hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdkit.sim.faults import DuplicateName, InvalidName, NotFound

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

_MAX_NAME = 80


@dataclass(frozen=True)
class Entity:
    """A managed object without behaviour of its own. ``kind`` is the managed type, ``moref`` the id."""

    kind: str
    moref: str
    name: str
    parent: Entity | None = None


#: Called after a machine has moved: the machine, the host it was on, the host it is on now.
Moved = Callable[["Machine", Entity, Entity], None]


class Places:
    """See the module. Machines that nobody places go to the hosts in turn, into the folder of machines."""

    def __init__(self, hosts: Sequence[Entity], vm_folder: Entity) -> None:
        self.hosts = list(hosts)
        self.vm_folder = vm_folder
        self._mutex = threading.Lock()
        self._folders: list[Entity] = []
        self._host_of: dict[str, Entity] = {}
        self._folder_of: dict[str, Entity] = {}
        self._next_host = 0
        self._listeners: list[Moved] = []

    # -- hosts -----------------------------------------------------------------------------------

    def host(self, name: str) -> Entity:
        """By name or id. Raises NotFound."""
        for host in self.hosts:
            if name in (host.name, host.moref):
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise NotFound(f"there is no ESXi host {name!r}, only {known}")

    def host_of(self, machine: Machine) -> Entity:
        with self._mutex:
            return self._host_of.get(machine.moref, self.hosts[0])

    def next_host(self, host: Entity) -> Entity:
        """The host after that one; the same if it is the only one."""
        return self.hosts[(self.hosts.index(host) + 1) % len(self.hosts)]

    def move(self, machine: Machine, host: Entity) -> None:
        """vMotion, or a cold migration: the machine is on ``host`` from now on."""
        with self._mutex:
            before = self._host_of.get(machine.moref, self.hosts[0])
            self._host_of[machine.moref] = host
            listeners = list(self._listeners)
        if before is not host:
            for listener in listeners:
                listener(machine, before, host)

    def on_move(self, listener: Moved) -> None:
        """Call it after every move, on the thread that made it."""
        with self._mutex:
            self._listeners.append(listener)

    # -- folders ---------------------------------------------------------------------------------

    @property
    def folders(self) -> list[Entity]:
        """Folders below the folder of machines, parents first."""
        with self._mutex:
            return list(self._folders)

    def folder(self, moref: str) -> Entity | None:
        return next((one for one in self.folders if one.moref == moref), None)

    def make_folder(self, name: str, parent: Entity | None = None) -> Entity:
        """Raises InvalidName and DuplicateName."""
        above = parent or self.vm_folder
        if not name.strip() or len(name) > _MAX_NAME:
            raise InvalidName(name[:_MAX_NAME])
        with self._mutex:
            for one in self._folders:
                if one.parent is above and one.name == name:
                    raise DuplicateName(name, "Folder", one.moref)
            made = Entity("Folder", f"group-v{1000 + len(self._folders)}", name, above)
            self._folders.append(made)
            return made

    def folder_at(self, path: str) -> Entity:
        """``clients/berlin`` below the folder of machines, made where it is missing; ``""`` is that one."""
        at = self.vm_folder
        for name in [part for part in path.split("/") if part]:
            there = [one for one in self.folders if one.parent is at and one.name == name]
            at = there[0] if there else self.make_folder(name, at)
        return at

    def folder_of(self, machine: Machine) -> Entity:
        with self._mutex:
            return self._folder_of.get(machine.moref, self.vm_folder)

    def put(self, machine: Machine, folder: Entity) -> None:
        with self._mutex:
            self._folder_of[machine.moref] = folder

    # -- machines --------------------------------------------------------------------------------

    def admit(self, moref: str) -> None:
        """A new machine: it goes to the next host in turn."""
        with self._mutex:
            self._host_of[moref] = self.hosts[self._next_host % len(self.hosts)]
            self._next_host += 1

    def forget(self, machine: Machine) -> None:
        with self._mutex:
            self._host_of.pop(machine.moref, None)
            self._folder_of.pop(machine.moref, None)
