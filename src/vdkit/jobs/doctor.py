"""Look before a backup: what will work, what will not, why, and what helps. Nothing is changed.

Every part of the diagnosis that cannot be made says so as a finding of its own, so that silence always means
that something was looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from vdkit.block.workers import CancelToken
from vdkit.errors import VixError
from vdkit.jobs.doctor_disks import disk_report, machine_findings
from vdkit.jobs.doctor_hosts import Probe, account_findings, host_findings, server_findings
from vdkit.jobs.findings import Finding, Report, problem
from vdkit.net.fingerprints import fingerprints
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.placement import Placement, placement
from vdkit.vsphere.privileges import Use
from vdkit.vsphere.session import Session

#: Seconds that a port may take to answer.
DEFAULT_PROBE_TIMEOUT: Final = 5.0
#: What the account is looked at for, unless the caller says something else.
DEFAULT_USES: Final = (Use.BACKUP, Use.DOCTOR)


def _now() -> datetime:
    return datetime.now(UTC)


def examine(
    session: Session,
    machine: str,
    *,
    uses: Sequence[Use] = DEFAULT_USES,
    timeout: float = DEFAULT_PROBE_TIMEOUT,
    probe: Probe = fingerprints,
    now: Callable[[], datetime] = _now,
    cancel: CancelToken | None = None,
) -> Report:
    """A report on ``machine`` (a name, a path, a moref or a UUID).

    ``uses`` says what the account must be able to do; ``timeout`` is in seconds for each port. Raises
    ObjectNotFound and Ambiguous for the machine; everything else that fails is a finding.
    """
    vm = find_machine(session, machine)
    findings: list[Finding] = []
    placed: Placement | None = None
    try:
        placed = placement(session, vm)
    except VixError as error:
        findings.append(_failed(f"machine {vm.name}", "where it runs cannot be told", error))
    findings += machine_findings(vm, placed)
    findings += _tried(f"server {session.where}", lambda: server_findings(session, now))
    if placed is not None:
        findings += _around(session, vm, placed, uses, timeout, probe, now, cancel)
    return Report(
        machine=vm.name,
        moref=vm.moref,
        path=vm.path,
        disks=tuple(
            disk_report(vm, disk, placed.datastore(disk.datastore) if placed is not None else None)
            for disk in vm.disks
        ),
        findings=tuple(findings),
    )


def _around(
    session: Session,
    vm: VirtualMachine,
    placed: Placement,
    uses: Sequence[Use],
    timeout: float,
    probe: Probe,
    now: Callable[[], datetime],
    cancel: CancelToken | None,
) -> Iterator[Finding]:
    account = f"account at {session.where}"
    yield from _tried(account, lambda: account_findings(session, vm, placed, uses))
    yield from _tried(
        f"hosts of {vm.name}",
        lambda: host_findings(session, vm, placed, probe=probe, now=now, timeout=timeout, cancel=cancel),
    )


def _tried(subject: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What ``look`` finds; a failure in the middle is a finding, and keeps what came before."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except VixError as error:
        found.append(_failed(subject, "not all of it could be looked at", error))
    return found


def _failed(subject: str, text: str, error: VixError) -> Finding:
    return problem("doctor.failed", subject, f"{text}: {error.message}", error.remedy, error.exit_code)
