"""The diagnosis of what is around a machine: account, server, hosts, ports as seen from here.

Sources: our notes on the limits of hosts (500 sessions for one user of a vCenter, TCP 902 to every host that
may run the machine), and users' threads where a closed port 902 showed as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from pyVmomi import vim

from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.errors import ExitCode, NoPrivilege, NotSupported, TransportError, VixError
from vdkit.jobs.findings import Finding, Severity, good, note, problem, warning
from vdkit.net.connect import host_port
from vdkit.net.fingerprints import Fingerprints
from vdkit.vsphere import privileges
from vdkit.vsphere.known_faults import faults_of
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.placement import (
    EsxHost,
    Placement,
    count_sessions,
    is_free_licence,
    server_time,
)
from vdkit.vsphere.privileges import Missing, On, Target, Use
from vdkit.vsphere.session import Session
from vdkit.vsphere.tickets import NfcTicket, read_ticket

#: Seconds that the clocks of this machine and the server may differ.
MAX_CLOCK_DIFFERENCE: Final = 300.0
#: Sessions of one user that a vCenter bears, and how many of them are worth a warning.
MAX_SESSIONS_OF_USER: Final = 500
MANY_SESSIONS: Final = 400
#: Days before a certificate's end that are worth a note.
CERTIFICATE_DAYS: Final = 30
#: Ports that are tried at the same time.
MAX_PROBES: Final = 16
DATA_PORT: Final = 902


class Probe(Protocol):
    """How a port is looked at: :func:`vdkit.net.fingerprints.fingerprints` is one."""

    def __call__(self, host: str, port: int, /, *, greeting: bool | None, timeout: float) -> Fingerprints: ...


# -- the server and the account ----------------------------------------------------------------------


def server_findings(session: Session, now: Callable[[], datetime]) -> Iterator[Finding]:
    """Clock, sessions, licence."""
    what = f"server {session.where}"
    before = now()
    theirs = server_time(session)
    middle = before + (now() - before) / 2
    difference = (theirs - middle).total_seconds()
    if abs(difference) > MAX_CLOCK_DIFFERENCE:
        ahead = "ahead of" if difference > 0 else "behind"
        text = f"its clock is {abs(difference):.0f} s {ahead} the one here"
        yield warning("server.clock", what, text, "set both by NTP: certificates and tickets have times")
    else:
        yield good("server.clock", what, f"its clock differs by {abs(difference):.0f} s")
    yield from _sessions(session, what)
    if is_free_licence(session):
        text = "the free ESXi licence: programs may only read, and a snapshot is refused"
        yield problem("server.licence", what, text, "an evaluation or paid licence", ExitCode.CONTROL)


def _sessions(session: Session, what: str) -> Iterator[Finding]:
    count = count_sessions(session)
    if count is None:
        text = "its sessions cannot be counted by this account (Sessions.TerminateSession)"
        yield note("server.sessions", what, text)
    elif count.own >= MANY_SESSIONS:
        text = f"{count.own} sessions of this account; {MAX_SESSIONS_OF_USER} are the most"
        yield warning("server.sessions", what, text, "end those of programs that never log out")
    else:
        yield good("server.sessions", what, f"{count.own} sessions of this account, {count.total} in all")


def account_findings(
    session: Session, vm: VirtualMachine, placed: Placement, uses: Sequence[Use]
) -> Iterator[Finding]:
    """Each privilege that is missing for ``uses``; a problem if a backup needs it."""
    what = f"account at {session.where}"
    if any(disk.encrypted for disk in vm.disks):
        uses = [*uses, Use.ENCRYPTED]
    if session.about.is_vcenter:  # a backup asks for it, and goes on without
        uses = [*uses, Use.LOCK]
    try:
        lacking = privileges.missing(session, _targets(session, vm, placed), uses)
    except (NotSupported, NoPrivilege) as error:
        yield note("account.privileges", what, f"its privileges cannot be told: {error.message}")
        return
    for one in lacking:
        yield _lacking(what, one)
    if not lacking:
        named = ", ".join(use.value for use in uses)
        yield good("account.privileges", what, f"it has every privilege for: {named}")


def _lacking(what: str, one: Missing) -> Finding:
    text = f"lacks {one.privilege} on {one.target.name} ({one.target.moref}): {one.need.to}"
    remedy = f"add {one.privilege} to the role of the account ({one.need.on.value})"
    if one.need.optional:
        return note("account.privileges", what, text, remedy)
    blocking = not one.need.uses.isdisjoint({Use.BACKUP, Use.ENCRYPTED})
    if blocking:
        return problem("account.privileges", what, text, remedy, ExitCode.CONTROL)
    return warning("account.privileges", what, text, remedy)


def _targets(session: Session, vm: VirtualMachine, placed: Placement) -> dict[On, list[Target]]:
    root = session.content.rootFolder
    found = {
        On.ROOT: [Target(vim.Folder, root._GetMoId(), "the root folder")],
        On.MACHINE: [Target(vim.VirtualMachine, vm.moref, vm.name)],
        On.DATASTORE: [Target(vim.Datastore, one.moref, one.name) for one in placed.datastores],
        On.HOST: [Target(vim.HostSystem, one.moref, one.name) for one in placed.hosts],
    }
    if placed.folder is not None:
        found[On.FOLDER] = [Target(vim.Folder, placed.folder, f"the folder of {vm.name}")]
    if placed.pool is not None:
        found[On.POOL] = [Target(vim.ResourcePool, placed.pool, f"the resource pool of {vm.name}")]
    return found


# -- hosts and ports ---------------------------------------------------------------------------------


def host_findings(
    session: Session,
    vm: VirtualMachine,
    placed: Placement,
    *,
    probe: Probe,
    now: Callable[[], datetime],
    timeout: float,
    cancel: CancelToken | None = None,
) -> list[Finding]:
    """State of every host that may run the machine, and its ports as they look from here.

    ``timeout`` is in seconds for each port; ports of several hosts are tried at the same time.
    """
    found: list[Finding] = []
    if not placed.hosts:
        text = "the account does not see the host that runs it: its ports cannot be tried"
        return [warning("host.unseen", f"machine {vm.name}", text, "give the role System.View on the hosts")]
    for host in placed.hosts:
        found += _state(host)
    try:
        ticket = read_ticket(session, vm)
    except VixError as error:
        found.append(
            problem(
                "host.ticket",
                f"machine {vm.name}",
                f"no ticket for its disks: {error.message}",
                error.remedy,
                error.exit_code,
            )
        )
        ticket = None
    return [*found, *_ports(session, placed, ticket, probe, now, timeout, cancel)]


def _state(host: EsxHost) -> Iterator[Finding]:
    what = f"host {host.name}"
    if not host.connected and host.runs_it:
        text = "it is not connected to vCenter"
        remedy = "reconnect it, or log in to it directly"
        yield problem("host.connection", what, text, remedy, ExitCode.CONTROL)
    elif not host.connected:
        yield warning("host.connection", what, "it is not connected to vCenter", "reconnect it")
    if host.maintenance:
        text = "in maintenance mode"
        severity = Severity.WARNING if host.runs_it else Severity.NOTE
        yield Finding("host.maintenance", severity, what, text, "wait until it has left it")
    for fault in faults_of(host.version, host.build):
        yield warning("host.known-fault", what, fault, "patch the host")


def _ports(
    session: Session,
    placed: Placement,
    ticket: NfcTicket | None,
    probe: Probe,
    now: Callable[[], datetime],
    timeout: float,
    cancel: CancelToken | None,
) -> list[Finding]:
    """All ports, at most :data:`MAX_PROBES` at once; the order of the answers is that of the hosts."""
    wanted: list[_Port] = []
    for host in placed.hosts:
        wanted.append(_Port(host, host.address, host.port, host.thumbprint, data=False))
        if host.runs_it and ticket is not None:
            wanted.append(_Port(host, ticket.host, ticket.port, ticket.thumbprint, data=True))
        else:
            # Without a ticket the port is a guess, and a backup does not come so far.
            port = ticket.port if ticket is not None else DATA_PORT
            wanted.append(_Port(host, host.address, port, None, data=True, guess=ticket is None))
    answers: dict[int, list[Finding]] = {}
    direct = not session.about.is_vcenter
    todo = list(enumerate(wanted))

    def work(scope: WorkerScope) -> None:
        while not scope.token.cancelled:
            try:
                number, port = todo.pop()
            except IndexError:
                return
            answers[number] = list(port.look(probe, now(), timeout, direct=direct))

    with WorkerScope("vdkit doctor", cancel) as scope:
        for _ in range(min(MAX_PROBES, len(wanted))):
            scope.spawn(work, scope)
    if cancel is not None:
        cancel.check()
    return [finding for number in sorted(answers) for finding in answers[number]]


class _Port:
    """One port of a host: ``data`` is the port of the disks, ``expected`` a SHA-1 thumbprint."""

    def __init__(
        self,
        host: EsxHost,
        address: str,
        port: int,
        expected: str | None,
        *,
        data: bool,
        guess: bool = False,
    ) -> None:
        self._host, self._address, self._port = host, address, port
        self._expected, self._data, self._guess = expected, data, guess

    def look(self, probe: Probe, now: datetime, timeout: float, *, direct: bool) -> Iterator[Finding]:
        check = "host.data-port" if self._data else "host.management-port"
        where = host_port(self._address, self._port)
        what = f"host {self._host.name}, {where}"
        try:
            seen = probe(self._address, self._port, greeting=self._data, timeout=timeout)
        except TransportError as error:
            yield self._closed(check, what, error, direct=direct)
            return
        yield good(check, what, f"TCP {self._port} answers from here")
        if self._expected and self._expected.upper() != seen.sha1.upper():
            text = (
                f"its certificate is not the one that the server names: {seen.sha1} instead of "
                f"{self._expected}"
            )
            remedy = "find out what answers there; after a new certificate, reconnect the host to vCenter"
            yield problem("host.certificate", what, text, remedy, ExitCode.TRUST)
        yield from _dates(seen.der, what, now)

    def _closed(self, check: str, what: str, error: TransportError, *, direct: bool) -> Finding:
        if not self._data and not direct:
            text = f"not reached from here, which only a log-in to it would need: {error.message}"
            return note(check, what, text)
        if self._host.runs_it:
            text = f"the disks cannot be read from here: {error.message}"
            if self._guess:
                return warning(check, what, text, error.remedy)
            return problem(check, what, text, error.remedy, error.exit_code)
        text = f"the disks cannot be read once the machine runs there: {error.message}"
        return warning(check, what, text, error.remedy)


def _dates(der: bytes, what: str, now: datetime) -> Iterator[Finding]:
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError as error:
        yield warning("host.certificate", what, f"its certificate cannot be read: {error}")
        return
    begin = certificate.not_valid_before_utc.astimezone(UTC)
    end = certificate.not_valid_after_utc.astimezone(UTC)
    remedy = "renew it; where it is pinned by its thumbprint, it works until then"
    if now > end:
        yield warning("host.certificate", what, f"its certificate ended on {end:%Y-%m-%d}", remedy)
    elif now < begin:
        yield warning("host.certificate", what, f"its certificate begins on {begin:%Y-%m-%d}", remedy)
    elif (end - now).days < CERTIFICATE_DAYS:
        yield note("host.certificate", what, f"its certificate ends on {end:%Y-%m-%d}", remedy)
