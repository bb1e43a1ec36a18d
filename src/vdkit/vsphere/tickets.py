"""Tickets for the data port: what a transport needs to read or write disks.

A ticket is single use and short-lived; one is asked for right before a disk is opened. Facts: our protocol
notes, sections 2.5 and 14.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import ProtocolError
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
