"""The simulated host: SOAP and files over HTTPS, disks over the NFC data port, on one model.

::

    with SimulatedHost(["./datastore"], user="root", password="secret") as host:
        print(host.environment())

Everything that it starts (threads, sockets, files of running machines) has ended when :meth:`stop` returns.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import secrets
import tempfile
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from vdkit.errors import UsageError, VixError
from vdkit.net.connect import host_port, unbracket
from vdkit.net.secret import Secret
from vdkit.sim.certificates import Certificate, context_of, make_certificate
from vdkit.sim.clock import Clock
from vdkit.sim.folder_access import FolderAccess, HttpFault, from_error, refusal
from vdkit.sim.https import HttpRequest, HttpResponse, HttpsServer
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Limits
from vdkit.sim.nfc_server import NfcServer
from vdkit.sim.scenario import Scenario
from vdkit.sim.soap.build import populate
from vdkit.sim.soap.dispatch import Dispatcher, check_version, service_versions
from vdkit.sim.soap.objects import Client
from vdkit.sim.soap.world import World
from vdkit.sim.tickets import TicketBox

#: Largest SOAP request, in bytes.
MAX_REQUEST = 4 << 20
_XML = ("Content-Type", "text/xml; charset=utf-8")


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
    ) -> None:
        """``port`` and ``nfc_port`` 0 let the system choose; without a password one is made.

        With an inventory, its own personality and clock hold. Raises UsageError and StoreError.
        """
        if isinstance(datastores, Inventory):
            inventory = datastores
        else:
            inventory = Inventory(personality=personality, clock=clock)
            for number, folder in enumerate(datastores, 1):
                inventory.add_folder(folder, f"datastore{number}")
        self.inventory = inventory
        self.scenario = scenario or Scenario()
        self.host = unbracket(listen)
        self.user = user
        self.password = _secret(password)
        self.certificate = certificate or _certificate_for(self.host)
        self.world: World | None = None
        self._port = port
        self._nfc_port = nfc_port
        self._https: HttpsServer | None = None
        self._nfc: NfcServer | None = None
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
        self._nfc = NfcServer(tickets, self.certificate, self.host, self._nfc_port)
        self._refresh_nfc_faults()
        self._nfc.start()
        world.address = self.host
        world.before_ticket = self._refresh_nfc_faults
        world.data_port = self._nfc.port
        world.thumbprint = self.certificate.sha1
        self._folder = tempfile.TemporaryDirectory(prefix="vdkit-sim-")
        handler = _Site(world, self.scenario).serve
        self._https = HttpsServer(handler, context_of(self.certificate), self.host, self._port)
        self._https.start()
        known = f"{host_port(self.host, self.port)} {self.thumbprint_sha1}\n"
        self._known_hosts(self._folder).write_text(known, encoding="ascii")

    def _refresh_nfc_faults(self) -> None:
        """Whoever asks for a ticket is about to connect: let what the scenario says now hold for it."""
        if self._nfc is not None:
            self._nfc.faults = self.scenario.nfc or NfcFaults()
            self._nfc.ledger.limits = Limits(
                self.scenario.nfc_memory_limit, self.scenario.nfc_connection_limit
            )

    @staticmethod
    def _known_hosts(folder: tempfile.TemporaryDirectory[str]) -> Path:
        return Path(folder.name) / "known_hosts"

    def stop(self) -> None:
        """End everything and wait for it. The files stay; twice is fine."""
        if self.world is not None:
            self.world.close()
        if self._https is not None:
            self._https.stop()
        if self._nfc is not None:
            self._nfc.stop()
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
        return self._https.port if self._https is not None else self._port

    @property
    def nfc_port(self) -> int:
        return self._nfc.port if self._nfc is not None else self._nfc_port

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
        """Most bytes of requests that the data port held at once, counted while there is a limit."""
        return self._nfc.ledger.memory_peak if self._nfc is not None else 0

    @property
    def nfc_memory_refused(self) -> int:
        """Requests that the data port had no memory for."""
        return self._nfc.ledger.memory_refused if self._nfc is not None else 0

    @property
    def nfc_connections_peak(self) -> int:
        """Most connections that the data port had at once; those turned away do not count."""
        return self._nfc.ledger.connections_peak if self._nfc is not None else 0

    @property
    def nfc_connections_refused(self) -> int:
        return self._nfc.ledger.connections_refused if self._nfc is not None else 0

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

    def expire_sessions(self) -> None:
        """End every session, as a restart of the management service does."""
        if self.world is not None:
            self.world.sessions.close_all()
            self.world.changes.bump()

    def break_connections(self) -> None:
        """Break every connection to the management port; new ones are served."""
        if self._https is not None:
            self._https.break_connections()

    def set_data_faults(self, faults: NfcFaults | None) -> None:
        """What goes wrong on the data port, from the next connection on; None for nothing."""
        self.scenario.nfc = faults
        self._refresh_nfc_faults()

    @property
    def internal_errors(self) -> list[BaseException]:
        """Errors in serving that are the simulator's own mistakes; a test may want none."""
        return list(self.world.internal_errors) if self.world is not None else []


def _secret(password: str | Secret | None) -> Secret:
    if password is None:
        return Secret(secrets.token_urlsafe(16))
    return password if isinstance(password, Secret) else Secret(password)


def _certificate_for(host: str) -> Certificate:
    """Names the loopback addresses, as every certificate of ours does, and the address listened on."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return make_certificate(names=("localhost", "localhost.localdomain", host))
    return make_certificate(addresses=tuple({"127.0.0.1": None, "::1": None, str(address): None}))


class _Site:
    """What the HTTPS port serves, by path."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world = world
        self._scenario = scenario
        self._soap = Dispatcher(world)
        self._files = FolderAccess(world.inventory)

    def serve(self, request: HttpRequest) -> HttpResponse:
        path = request.path
        try:
            if path in ("/sdk", "/sdk/", "/sdk/vimService"):
                return self._call(request)
            if path == "/sdk/vimServiceVersions.xml" and request.method == "GET":
                return HttpResponse(headers=[_XML], body=service_versions(self._scenario.api_version))
            if path == "/folder" or path.startswith("/folder/"):
                return self._folder(request)
            if path.startswith("/guest/"):
                self._authenticate(request)
                return self._files.guest(request)
        except HttpFault as fault:
            return refusal(fault)
        except VixError as error:
            answer = from_error(error)
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._world.note_error(error)
            return refusal(answer)
        return refusal(HttpFault(HTTPStatus.NOT_FOUND, f"nothing is served at {path[:200]}"))

    def _call(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, "calls are POST requests")
        headers = request.headers
        client = Client(request.peer, headers.get("user-agent", ""), _host_of(request.host))
        body = request.body.read(MAX_REQUEST)
        reply = self._soap.serve(body, headers.get("soapaction", ""), headers.get("cookie"), client)
        cookies = [("Set-Cookie", cookie) for cookie in reply.cookies]
        return HttpResponse(reply.status, [_XML, ("Cache-Control", "no-cache"), *cookies], reply.body)

    def _folder(self, request: HttpRequest) -> HttpResponse:
        if request.method not in ("GET", "HEAD", "PUT"):
            raise HttpFault(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not served here")
        self._authenticate(request)
        if self._scenario.folder_status is not None:
            raise HttpFault(HTTPStatus(self._scenario.folder_status), "simulated fault")
        return self._files.folder(request)

    def _authenticate(self, request: HttpRequest) -> None:
        """A session's cookie, or the user and password of this request. Raises 401."""
        if self._world.sessions.of_cookie(request.headers.get("cookie")) is not None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic" and not self._scenario.login_refused:
            try:
                given = base64.b64decode(token.strip(), validate=True)
            except binascii.Error:
                given = b""
            wanted = f"{self._world.user}:{self._world.password.reveal()}".encode()
            if secrets.compare_digest(given, wanted):
                return
        raise HttpFault(HTTPStatus.UNAUTHORIZED, "log in first: a session's cookie, or basic authentication")


def _host_of(header: str) -> str:
    """The host part of a ``Host`` header."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
