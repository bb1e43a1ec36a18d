"""The data ports of a simulated host: one for each ESXi host, with its own address and certificate."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

from vdkit.sim.certificates import Certificate, make_certificate
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger, Limits
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.places import Entity
from vdkit.sim.ports import Grant
from vdkit.sim.scenario import Scenario
from vdkit.sim.tickets import DiskGrant, TicketBox

_LOOPBACK = ipaddress.ip_address("127.0.0.1")


def certificate_for(host: str) -> Certificate:
    """Names the loopback addresses, as every certificate of ours does, and the address listened on."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return make_certificate(names=("localhost", "localhost.localdomain", host))
    return make_certificate(addresses=tuple({"127.0.0.1": None, "::1": None, str(address): None}))


def addresses_of(listen: str, count: int) -> list[str]:
    """Where each of ``count`` hosts listens. Several on 127.0.0.1 have addresses of their own, .2 and up."""
    if count == 1 or listen not in ("127.0.0.1", "localhost"):
        return [listen] * count
    return [str(_LOOPBACK + number) for number in range(1, count + 1)]


class DataPorts:
    """One :class:`NfcServer` for each host of the inventory, by the host's id."""

    def __init__(
        self,
        inventory: Inventory,
        tickets: TicketBox,
        scenario: Scenario,
        *,
        listen: str,
        port: int,
        certificates: Sequence[Certificate],
    ) -> None:
        """``certificates`` are those of the hosts in order; hosts without one get one that is made."""
        self._inventory = inventory
        self._scenario = scenario
        self._mutex = threading.Lock()
        self._reads = 0
        self._migrated = False
        hosts = inventory.places.hosts
        self.addresses = addresses_of(listen, len(hosts))
        shared = len(set(self.addresses)) < len(hosts)
        self.certificates: list[Certificate] = []
        self._servers: dict[str, NfcServer] = {}
        for number, (host, address) in enumerate(zip(hosts, self.addresses, strict=True)):
            own = certificates[number] if number < len(certificates) else certificate_for(address)
            self.certificates.append(own)
            wanted = port + number if port and shared else port
            office = tickets.counter(host.moref)
            self._servers[host.moref] = NfcServer(office, own, address, wanted)
        self.refresh()
        inventory.places.on_move(self._moved)

    def start(self) -> None:
        """Raises ConnectFailed if an address cannot be had."""
        for server in self._servers.values():
            server.start()

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def refresh(self) -> None:
        """Let what the scenario says now hold from the next connection on."""
        scenario = self._scenario
        for host in self._inventory.places.hosts:
            server = self._servers[host.moref]
            memory = scenario.nfc_memory_limits.get(host.name, scenario.nfc_memory_limit)
            server.faults = scenario.nfc or NfcFaults()
            server.ledger.limits = Limits(memory, scenario.nfc_connection_limit)
            server.on_read = None if scenario.migrate_after_reads is None else self._count_read

    def of(self, host: Entity) -> NfcServer:
        return self._servers[host.moref]

    @property
    def ledgers(self) -> list[Ledger]:
        return [server.ledger for server in self._servers.values()]

    def break_connections(self) -> None:
        for server in self._servers.values():
            server.break_connections()

    # -- vMotion ---------------------------------------------------------------------------------

    def _count_read(self, grant: Grant) -> None:
        limit = self._scenario.migrate_after_reads
        with self._mutex:
            self._reads += 1
            if limit is None or self._migrated or self._reads <= limit or not isinstance(grant, DiskGrant):
                return
            self._migrated = True
        places = self._inventory.places
        self._inventory.move(grant.machine, places.next_host(places.host_of(grant.machine)).moref)

    def _moved(self, machine: Machine, before: Entity, _now: Entity) -> None:
        if self._scenario.migration_breaks_sessions:
            self._servers[before.moref].break_sessions(
                lambda grant: isinstance(grant, DiskGrant) and grant.machine is machine
            )
