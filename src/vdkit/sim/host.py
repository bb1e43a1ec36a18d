"""The simulated host: SOAP and files over HTTPS, disks over the NFC data port, on one model.

::

    with SimulatedHost(["./datastore"], user="root", password="secret") as host:
        print(host.environment())

Everything that it starts (threads, sockets, files of running machines) has ended when :meth:`stop` returns.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vdkit.errors import ConnectionLost, UsageError
from vdkit.net.connect import host_port, unbracket
from vdkit.net.secret import Secret
from vdkit.sim.certificates import Certificate, context_of
from vdkit.sim.clock import Clock
from vdkit.sim.data_ports import DataPorts, certificate_for
from vdkit.sim.https import HttpsServer
from vdkit.sim.inventory import HOST_NAME, Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.scenario import Scenario
from vdkit.sim.site import Site
from vdkit.sim.soap.build import populate
from vdkit.sim.soap.dispatch import check_version
from vdkit.sim.soap.world import DataPort, World
from vdkit.sim.tickets import TicketBox

#: ESXi hosts of one vCenter.
MAX_HOSTS = 64


class SimulatedHost:
    """See the module. ``datastores`` are folders (``datastore1``, ``datastore2``...) or a ready inventory."""

    def __init__(
        self,
        datastores: Sequence[str | Path] | Inventory,
        *,
        personality: str = "esx",
        listen: str = "127.0.0.1",
        port: int = 0,
        nfc_port: int = 0,
        user: str = "root",
        password: str | Secret | None = None,
        scenario: Scenario | None = None,
        clock: Clock | None = None,
        certificate: Certificate | None = None,
        hosts: int = 1,
        host_certificates: Sequence[Certificate] = (),
    ) -> None:
        """``port`` and ``nfc_port`` 0 let the system choose; without a password one is made.

        ``hosts`` is the number of ESXi hosts of a vCenter: each has a data port of its own, on 127.0.0.2 and
        up if ``listen`` is 127.0.0.1, with the certificate of ``host_certificates`` or one that is made. A
        single host uses ``certificate`` for both ports unless it is given another one there. With an
        inventory, its own personality, clock and hosts hold. Raises UsageError and StoreError.
        """
        if isinstance(datastores, Inventory):
            inventory = datastores
        else:
            inventory = Inventory(personality=personality, clock=clock, host_names=host_names(hosts))
            for number, folder in enumerate(datastores, 1):
                inventory.add_folder(folder, f"datastore{number}")
        self.inventory = inventory
        self.scenario = scenario or Scenario()
        self.host = unbracket(listen)
        self.user = user
        self.password = _secret(password)
        self.certificate = certificate or certificate_for(self.host)
        self.world: World | None = None
        self._port = port
        self._nfc_port = nfc_port
        self._https: HttpsServer | None = None
        self._host_certificates = tuple(host_certificates)
        self._data: DataPorts | None = None
        self._mutex = threading.Lock()
        self._restarting: threading.Thread | None = None
        self._stopping = threading.Event()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._started = False

    def __repr__(self) -> str:
        return f"<SimulatedHost {host_port(self.host, self.port)} {self.inventory.personality}>"

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen and serve. Raises ConnectFailed if a port cannot be had. Once only."""
        if self._started:
            raise UsageError("a simulated host is started once")
        check_version(self.scenario.api_version)
        self._started = True
        tickets = TicketBox(self.inventory, lifetime=self.scenario.ticket_seconds)
        self.world = World(self.inventory, tickets, self.scenario, self.user, self.password)
        populate(self.world)
        try:
            self._start_ports(self.world, tickets)
        except BaseException:
            self.stop()
            raise
        return self

    def _start_ports(self, world: World, tickets: TicketBox) -> None:
        single = len(self.inventory.places.hosts) == 1
        own = self._host_certificates or ((self.certificate,) if single else ())
        self._data = DataPorts(
            self.inventory,
            tickets,
            self.scenario,
            listen=self.host,
            port=self._nfc_port,
            certificates=own,
        )
        self._data.start()
        world.before_ticket = self._data.refresh
        for host in self.inventory.places.hosts:
            server = self._data.of(host)
            # A single host is where its client has found the management, whatever that called it.
            address = "" if single else server.host
            world.data_ports[host.moref] = DataPort(address, server.port, server.thumbprint)
        self._folder = tempfile.TemporaryDirectory(prefix="vdkit-sim-")
        self._site = Site(world, self.scenario, self._restart_from_a_request)
        self._listen()
        known = f"{host_port(self.host, self.port)} {self.thumbprint_sha1}\n"
        self._known_hosts(self._folder).write_text(known, encoding="ascii")

    def _listen(self) -> None:
        self._https = HttpsServer(self._site.serve, context_of(self.certificate), self.host, self._port)
        self._https.start()
        self._port = self._https.port

    @staticmethod
    def _known_hosts(folder: tempfile.TemporaryDirectory[str]) -> Path:
        return Path(folder.name) / "known_hosts"

    def stop(self) -> None:
        """End everything and wait for it. The files stay; twice is fine."""
        self._stopping.set()
        if self.world is not None:
            self.world.close()
        with self._mutex:
            restarting = self._restarting
        if restarting is not None:
            restarting.join()
        if self._https is not None:
            self._https.stop()
        if self._data is not None:
            self._data.stop()
        self.inventory.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- where and how to reach it ---------------------------------------------------------------

    @property
    def port(self) -> int:
        """Of HTTPS."""
        return self._port

    @property
    def nfc_port(self) -> int:
        """Of the data port; of the first host's if there are several."""
        return self._nfc_port if self._data is None else self.data_port().port

    def data_port(self, host: str | None = None) -> NfcServer:
        """The data port of an ESXi host, by name or id; of the first one without. Raises NotFound."""
        if self._data is None:
            raise UsageError("the simulated host has not been started")
        places = self.inventory.places
        return self._data.of(places.hosts[0] if host is None else places.host(host))

    @property
    def thumbprint_sha1(self) -> str:
        return self.certificate.sha1

    @property
    def thumbprint_sha256(self) -> str:
        return self.certificate.sha256

    @property
    def url(self) -> str:
        return f"https://{host_port(self.host, self.port)}/sdk"

    @property
    def nfc_memory_peak(self) -> int:
        """Most bytes of requests that a data port held at once, counted while there is a limit."""
        return max((one.memory_peak for one in self._ledgers), default=0)

    @property
    def nfc_memory_refused(self) -> int:
        """Requests that the data ports had no memory for."""
        return sum(one.memory_refused for one in self._ledgers)

    @property
    def nfc_connections_peak(self) -> int:
        """Most connections that a data port had at once; those turned away do not count."""
        return max((one.connections_peak for one in self._ledgers), default=0)

    @property
    def nfc_connections_refused(self) -> int:
        return sum(one.connections_refused for one in self._ledgers)

    @property
    def _ledgers(self) -> list[Ledger]:
        return [] if self._data is None else self._data.ledgers

    def environment(self) -> dict[str, str]:
        """Settings for vdkit's own commands and for govc; the password is among them.

        govc finds the certificate's thumbprint in a file that is there while the host runs.
        """
        address = host_port(self.host, self.port)
        known = {} if self._folder is None else {"GOVC_TLS_KNOWN_HOSTS": str(self._known_hosts(self._folder))}
        return {
            "VDKIT_HOST": address,
            "VDKIT_USER": self.user,
            "VDKIT_PASSWORD": self.password.reveal(),
            "VDKIT_THUMBPRINT": self.thumbprint_sha256,
            "GOVC_URL": self.url,
            "GOVC_USERNAME": self.user,
            "GOVC_PASSWORD": self.password.reveal(),
            **known,
        }

    # -- what tests do to it ---------------------------------------------------------------------

    def machine(self, name: str) -> Machine:
        """The model's machine of that name. Raises NotFound."""
        return self.inventory.find(name)

    def power_on_all(self) -> None:
        for machine in self.inventory.machines:
            if not machine.powered_on:
                machine.power_on()

    def move_machine(self, name: str, host: str | None = None) -> None:
        """vMotion of a machine to an ESXi host by name or id; to the next one without. Raises NotFound."""
        machine, places = self.machine(name), self.inventory.places
        target = places.next_host(places.host_of(machine)).moref if host is None else host
        self.inventory.move(machine, target)

    def change_password(self, password: str | Secret, *, end_sessions: bool = False) -> None:
        """The account's password is another one from now on; sessions go on unless they are ended."""
        self.password = _secret(password)
        if self.world is not None:
            self.world.password = self.password
        if end_sessions:
            self.expire_sessions()

    def expire_sessions(self) -> None:
        """End every session, as a restart of the management service does."""
        if self.world is not None:
            self.world.sessions.close_all()
            self.world.changes.bump()

    def stop_management(self) -> None:
        """The management service goes down: sessions are gone, connections break, the port refuses."""
        self.expire_sessions()
        if self._https is not None:
            self._https.stop()

    def start_management(self) -> None:
        """It comes up again, on the same port. Raises ConnectFailed if somebody else has that by now."""
        self._listen()

    def _restart_from_a_request(self) -> None:
        """The scenario's restart. The request that met it gets no answer; its thread must not wait here."""
        with self._mutex:
            self._restarting = threading.Thread(target=self._restart, name="sim-restart")
            self._restarting.start()
        raise ConnectionLost("the management service restarts")

    def _restart(self) -> None:
        self.stop_management()
        if not self._stopping.wait(self.scenario.restart_seconds):
            self.start_management()

    def break_connections(self) -> None:
        """Break every connection to the management port; new ones are served."""
        if self._https is not None:
            self._https.break_connections()

    def break_data_connections(self) -> None:
        """Break every connection to the data ports; new ones are served."""
        if self._data is not None:
            self._data.break_connections()

    def set_data_faults(self, faults: NfcFaults | None) -> None:
        """What goes wrong on the data port, from the next connection on; None for nothing."""
        self.scenario.nfc = faults
        if self._data is not None:
            self._data.refresh()

    @property
    def internal_errors(self) -> list[BaseException]:
        """Errors in serving that are the simulator's own mistakes; a test may want none."""
        return list(self.world.internal_errors) if self.world is not None else []


def host_names(count: int) -> tuple[str, ...]:
    """Names of the ESXi hosts of a simulated vCenter; a single one is called as hosts call themselves."""
    if not 1 <= count <= MAX_HOSTS:
        raise UsageError(f"{count} ESXi hosts", remedy=f"a simulated vCenter has 1 to {MAX_HOSTS}")
    return (HOST_NAME,) if count == 1 else tuple(f"esx{number}.localdomain" for number in range(1, count + 1))


def _secret(password: str | Secret | None) -> Secret:
    if password is None:
        return Secret(secrets.token_urlsafe(16))
    return password if isinstance(password, Secret) else Secret(password)
