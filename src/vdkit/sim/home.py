"""What a machine needs of the inventory that it lives in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vdkit.sim.clock import Clock
from vdkit.sim.datastore import Datastore

if TYPE_CHECKING:
    from vdkit.sim.machine import Machine

#: Called at the start of every operation, and before every merge of a consolidation, with the event's name
#: and the machine. It may sleep (slow storage) or raise a ModelFault (the operation fails there). Events:
#: createMachine powerOn powerOff reconfigure destroy createSnapshot stun removeSnapshot consolidate
#: revertSnapshot relocate.
Hook = Callable[[str, "Machine"], None]


def no_hook(_event: str, _machine: Machine) -> None:
    """The healthy host."""


class MachineHome(Protocol):
    """See the module."""

    @property
    def clock(self) -> Clock: ...

    @property
    def hook(self) -> Hook: ...

    @property
    def areas_per_page(self) -> int:
        """Areas in one answer of QueryChangedDiskAreas."""

    def datastore(self, name: str) -> Datastore:
        """Raises InvalidDatastorePath."""

    def shared_links(self, machine: Machine) -> frozenset[str]:
        """Datastore paths of links that other machines stand on: linked clones, and what they came from."""

    def snapshot_moref(self, machine: Machine, uid: int) -> str: ...

    def check_name(self, name: str, machine: Machine | None = None) -> None:
        """Raises InvalidName or DuplicateName."""

    def changed(self, machine: Machine) -> None:
        """Something about the machine that observers see is different now."""

    def removed(self, machine: Machine) -> None:
        """The machine is gone."""
