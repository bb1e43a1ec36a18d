"""The data port of the simulated host: NFC over TCP, in TLS and in clear, for other people's clients too.

It serves block devices that a :class:`~vdkit.sim.ports.TicketOffice` grants. One thread per connection: it
reads a request, reads the device straight into the buffer that it sends, and takes the next request when the
client has taken the reply, so that memory is bounded by TCP's back-pressure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vdkit.errors import ConnectionLost, TransportError
from vdkit.net.deadline import Deadline
from vdkit.net.listener import Listener
from vdkit.net.stream import SocketStream
from vdkit.sim.certificates import Certificate, context_of
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.sim.nfc_ledger import Ledger, Limits
from vdkit.sim.nfc_login import STEP_TIMEOUT, Login, Settings
from vdkit.sim.nfc_outlet import Outlet
from vdkit.sim.nfc_session import DiskSession
from vdkit.sim.ports import Grant, TicketOffice
from vdkit.wire.nfc.handshake import HOST_VERSION_8

_log = logging.getLogger(__name__)
#: What a client reads in place of the greeting when there are too many connections. Ours.
TOO_MANY = b"421 Service not available: too many connections\r\n"


class NfcServer:
    """Serves disks on one address until :meth:`stop`, which breaks what is open and joins every thread.

    ``faults`` may be replaced at any time; a connection keeps those that were there when it began. ``ledger``
    counts what clients ask for and may be given limits.
    ``strict_records`` refuses two handshake messages in one TLS record, as hosts do.
    """

    def __init__(
        self,
        office: TicketOffice,
        certificate: Certificate,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        faults: NfcFaults | None = None,
        limits: Limits | None = None,
        host_version: int = HOST_VERSION_8,
        strict_records: bool = False,
    ) -> None:
        self.faults = faults or NfcFaults()
        self.ledger = Ledger(limits)
        self._certificate = certificate
        self._settings = Settings(office, certificate, context_of(certificate), host_version, strict_records)
        #: Called before each read with what its session may open.
        self.on_read: Callable[[Grant], None] | None = None
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._sessions: dict[SocketStream, Grant] = {}
        self._listener = Listener(self._serve, host, port, name="nfc")

    @property
    def host(self) -> str:
        return self._listener.host

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def thumbprint(self) -> str:
        """SHA-1 of the certificate, as tickets carry it."""
        return self._certificate.sha1

    @property
    def connections(self) -> int:
        """Connections being served now."""
        return self._listener.connections

    def start(self) -> Self:
        self._listener.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        self._listener.stop()

    def break_connections(self) -> None:
        """Break what is open now, as a restart of the host's service would; new connections are served."""
        self._listener.break_connections()

    def break_sessions(self, wanted: Callable[[Grant], bool]) -> None:
        """Break the disk sessions of the grants that are ``wanted``."""
        with self._mutex:
            found = [raw for raw, grant in self._sessions.items() if wanted(grant)]
            for raw in found:
                raw.abort()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self, raw: SocketStream) -> None:
        if not self.ledger.connect():
            self._turn_away(raw)
            return
        try:
            self._serve_counted(raw)
        finally:
            self.ledger.disconnect()

    def _turn_away(self, raw: SocketStream) -> None:
        """No answer to a connection too many is on record: these three are what servers do."""
        _log.info("%s: one connection too many", raw.peer)
        match self.faults.connection_refusal:
            case "greeting":
                raw.send((TOO_MANY,), Deadline.after(STEP_TIMEOUT))
            case "hang":
                # Until the client gives up, or the server stops.
                while raw.recv_into(memoryview(bytearray(1)), Deadline.after(STEP_TIMEOUT)):
                    pass
            case "close":
                raise ConnectionLost(f"{raw.peer}: turned away")

    def _serve_counted(self, raw: SocketStream) -> None:
        faults = self.faults
        outlet = Outlet(raw, faults, self._stopping)
        try:
            admitted = Login(raw, outlet, self._settings, faults).run()
        except TransportError as error:
            _log.info("%s: turned away: %s", raw.peer, error)
            return
        if admitted is None:
            return
        stream, grant = admitted
        with self._mutex:
            self._sessions[raw] = grant
        try:
            with DiskSession(stream, outlet, grant, faults, self.ledger, self.on_read) as session:
                session.run()
        finally:
            with self._mutex:
                del self._sessions[raw]
