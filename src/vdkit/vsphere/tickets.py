"""Tickets for the data port: what a transport needs to read or write disks.

A ticket is single use and short-lived; one is asked for right before a disk is opened. Facts: our protocol
notes, sections 2.5 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import ConnectFailed, DeadlineExceeded, ProtocolError
from vdkit.net.connect import host_port, unbracket
from vdkit.net.secret import Secret
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session
from vdkit.wire.vim import internal

#: Characters of a session id that are believed.
MAX_TICKET: Final = 4096
#: Characters of a certificate that are believed.
MAX_CERTIFICATE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class NfcTicket:
    """Where to go with which secret, and how the data port's certificate must look."""

    host: str
    port: int
    service: str
    ticket: Secret
    thumbprint: str | None
    """SHA-1 of the data port's certificate."""
    certificate: str | None
    """The same certificate in PEM, from newer hosts."""
    legacy_tls: bool = False
    """True if the host was named as one that may speak TLS older than 1.2."""


def read_ticket(session: Session, vm: VirtualMachine) -> NfcTicket:
    """A ticket to read any file of a machine.

    Raises NoPrivilege (VirtualMachine.Provisioning.GetVmFiles), ObjectNotFound, NotSupported.
    """
    machine = session.managed(vim.VirtualMachine, vm.moref)
    what = f"get a ticket to read {vm.name} ({vm.moref})"
    return _ticket(session, what, lambda nfc: nfc.NfcGetVmFiles(vm=machine))


def disk_ticket(session: Session, vm: VirtualMachine, device_key: int, *, writable: bool) -> NfcTicket:
    """A ticket for one disk of a machine and the links below it.

    Raises NoPrivilege (VirtualMachine.Provisioning.DiskRandomRead or DiskRandomAccess), ObjectNotFound.
    """
    act = "write" if writable else "read"
    what = f"get a ticket to {act} disk {device_key} of {vm.name} ({vm.moref})"
    machine = session.managed(vim.VirtualMachine, vm.moref)
    host = of_one(session, vim.VirtualMachine, vm.moref, ("runtime.host",), what).get("runtime.host")

    def ask(nfc: Any) -> Any:
        method = nfc.NfcRandomAccessOpenDisk if writable else nfc.NfcRandomAccessOpenReadonly
        return method(vm=machine, diskDeviceKey=device_key, hostForAccess=host)

    return _ticket(session, what, ask)


def datastore_ticket(session: Session, datastore: str, purpose: str) -> NfcTicket:
    """A ticket for files of a datastore (by its id), for what ``purpose`` says ("read first-class disk x").

    That hosts let a disk be opened with it is not on record; see the reference of the disk library. Raises
    NoPrivilege (Datastore.FileManagement), ObjectNotFound.
    """
    store = session.managed(vim.Datastore, datastore)
    what = f"get a ticket to {purpose} on {datastore}"
    return _ticket(session, what, lambda nfc: nfc.NfcFileManagement(ds=store))


@contextmanager
def naming_the_choice(session: Session, ticket: NfcTicket) -> Iterator[None]:
    """Failures to reach a data port say that it was not the user who chose that host."""
    try:
        yield
    except (ConnectFailed, DeadlineExceeded) as error:
        if unbracket(ticket.host).lower() != session.host.lower():
            error.message = (
                f"{error.message} ({session.where} named {host_port(ticket.host, ticket.port)} as the "
                "place of the disk)"
            )
        raise


def _ticket(session: Session, what: str, ask: Callable[[Any], Any]) -> NfcTicket:
    def get() -> Any:
        content = internal.retrieve_internal_content(session.stub)
        return ask(internal.NfcService(content.nfcService, session.stub))

    # A ticket that is lost on the way expires by itself: asking again is as good as reading.
    answer = session.read(what, get)
    where = f"{session.where}: {what}"
    secret = answer.sessionId or ""
    if not 0 < len(secret) <= MAX_TICKET:
        raise ProtocolError(f"{where}: the ticket's session id has {len(secret)} characters")
    port = answer.port or 0
    if not 0 < port < 1 << 16:
        raise ProtocolError(f"{where}: the ticket names port {port}")
    certificate = getattr(answer, "sslCertificate", None) or None
    if certificate is not None and len(certificate) > MAX_CERTIFICATE:
        raise ProtocolError(f"{where}: the ticket's certificate has {len(certificate)} characters")
    return NfcTicket(
        host=answer.host or session.host,
        port=port,
        service=answer.service or "nfc",
        ticket=Secret(secret),
        thumbprint=answer.sslThumbprint or None,
        certificate=certificate,
        legacy_tls=session.legacy_tls,
    )
