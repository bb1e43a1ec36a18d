"""Tickets for the data port: single use, expiring, scoped to a machine's files or to one disk.

A ticket is asked for over the management plane and redeemed at the data port; what it then allows, and how a
refusal is worded, follows our NFC specification (sections 2.5, 12.2, 13.4).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from vdkit.block.device import BlockDevice
from vdkit.net.secret import Secret
from vdkit.sim import diskaccess, ports
from vdkit.sim.faults import InvalidDatastorePath, ModelFault
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import new_uuid

#: Seconds that a ticket waits to be used. Real hosts: short, exact time unknown.
DEFAULT_LIFETIME = 60.0
#: Unused tickets that are kept at most; the oldest go first.
MAX_WAITING = 10_000


class Access(Enum):
    """``MACHINE_FILES``: every disk file of a machine, read-only. ``READ_DISK``: one disk and its parents.
    ``WRITE_DISK``: one disk, its current leaf read-write, on a machine that is off."""

    MACHINE_FILES = "machine files"
    READ_DISK = "read one disk"
    WRITE_DISK = "write one disk"


@dataclass(frozen=True)
class _Ticket:
    grant: ports.Grant
    expires: float
    host: str


class TicketBox:
    """Issues tickets, and redeems them as the data port's :class:`~vdkit.sim.ports.TicketOffice`."""

    def __init__(self, inventory: Inventory, *, lifetime: float = DEFAULT_LIFETIME) -> None:
        self.lifetime = lifetime
        self._inventory = inventory
        self._mutex = threading.Lock()
        self._waiting: dict[str, _Ticket] = {}

    def issue(self, access: Access, machine: Machine, disk_key: int | None = None) -> Secret:
        """Raises InvalidArgument(deviceKey) for a disk that the machine lacks."""
        if access is Access.MACHINE_FILES:
            disk_key = None
        else:
            machine.disk(-1 if disk_key is None else disk_key)
        host = self._inventory.places.host_of(machine).moref
        return self.issue_grant(DiskGrant(self._inventory, access, machine, disk_key), host)

    def issue_grant(self, grant: ports.Grant, host: str) -> Secret:
        """A ticket for that grant, to be used at an ESXi host, by its id."""
        text = new_uuid("52")
        now = self._inventory.clock.monotonic()
        with self._mutex:
            self._waiting = {key: held for key, held in self._waiting.items() if held.expires > now}
            while len(self._waiting) >= MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[text] = _Ticket(grant, now + self.lifetime, host)
        return Secret(text)

    def redeem(self, ticket: str) -> ports.Grant | None:
        return self._redeem(ticket, None)

    def counter(self, host: str) -> ports.TicketOffice:
        """The office of one ESXi host, by its id: it knows the tickets of machines that were there."""
        return _Counter(self, host)

    def _redeem(self, ticket: str, host: str | None) -> ports.Grant | None:
        with self._mutex:
            found = self._waiting.get(ticket)
            if found is not None and host in (None, found.host):
                del self._waiting[ticket]
            else:
                found = None
        if found is None or found.expires <= self._inventory.clock.monotonic():
            return None
        return found.grant


class _Counter:
    def __init__(self, box: TicketBox, host: str) -> None:
        self._box = box
        self._host = host

    def redeem(self, ticket: str) -> ports.Grant | None:
        return self._box._redeem(ticket, self._host)


class DiskGrant:
    """What one ticket allows; it outlives the ticket for as long as the data session does."""

    def __init__(self, inventory: Inventory, access: Access, machine: Machine, disk_key: int | None) -> None:
        self._inventory = inventory
        self._access = access
        self.machine = machine
        self._disk_key = disk_key

    def open(self, path: str, *, writable: bool) -> BlockDevice:
        """See :class:`~vdkit.sim.ports.Grant`."""
        if writable and self._access is not Access.WRITE_DISK:
            raise ports.denied(path, writable=True)
        try:
            datastore, name = self._inventory.resolve(path)
        except InvalidDatastorePath as error:
            raise ports.missing(path) from error
        scope = diskaccess.links_of(self.machine, self._disk_key)
        if datastore.path(name) not in scope:
            if self._within_folder(datastore.path(name)) and not datastore.exists(name):
                raise ports.missing(path)
            raise ports.denied(path, writable=writable)
        if not datastore.exists(name):
            raise ports.missing(path)
        try:
            if writable:
                return diskaccess.open_for_writing(self.machine, datastore, name)
            return diskaccess.open_for_reading(self.machine, datastore, name)
        except ModelFault as error:
            raise ports.Refusal(ports.CODE_DISK, str(error)) from error

    def disk_database(self, path: str) -> dict[str, str]:
        """The ``ddb.`` entries of the chain at ``path``, the nearest link's winning."""
        try:
            datastore, name = self._inventory.resolve(path)
        except InvalidDatastorePath as error:
            raise ports.missing(path) from error
        if datastore.path(name) not in diskaccess.links_of(self.machine, self._disk_key):
            raise ports.denied(path, writable=False)
        try:
            return diskaccess.disk_database(datastore, name)
        except ModelFault as error:
            raise ports.Refusal(ports.CODE_DISK, str(error)) from error

    def _within_folder(self, path: str) -> bool:
        return path.startswith(f"{self.machine.datastore.path(self.machine.folder)}/")
