"""Disks of a machine over the network: a ticket for each opening, and a new one after each failure.

No connection is made before the host's budget has one to give, and none sends more than its part of it; see
:mod:`vdkit.net.budget`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.disklib.resuming import DEFAULT_ATTEMPTS, ResumingDisk
from vdkit.errors import NotFound, TransportError, UsageError, VixError
from vdkit.net.budget import HostBudget, HostBudgets, HostLease
from vdkit.net.limits import limits_of, server_of
from vdkit.transports.nfc import CompressionName as Compression
from vdkit.transports.nfc import Mode, NfcTarget, Timeouts, open_nfc
from vdkit.vsphere.model import VirtualDisk, VirtualMachine
from vdkit.vsphere.session import Session
from vdkit.vsphere.tickets import NfcTicket, disk_ticket, naming_the_choice, read_ticket

#: Tickets that are asked for while a vCenter names another host each time.
_TICKETS: Final = 3


@dataclass(frozen=True, slots=True)
class Retry:
    """How a remote disk comes back after a passing failure. See :class:`ResumingDisk`.

    ``waiting`` hears why a disk waits for its turn at a busy host, at once and then every half minute.
    """

    attempts: int = DEFAULT_ATTEMPTS
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    notify: Callable[[VixError, float], None] | None = None
    waiting: Callable[[str], None] | None = None


def open_remote(
    session: Session,
    vm: VirtualMachine | None,
    path: str,
    *,
    writable: bool = False,
    mode: Mode = "nbdssl",
    compression: Compression = "none",
    device_key: int | None = None,
    tickets: Callable[[], NfcTicket] | None = None,
    retry: Retry | None = None,
    timeouts: Timeouts | None = None,
    buffer_size: int | None = None,
    buffer_count: int | None = None,
    budget: HostBudgets | None = None,
    cancel: CancelToken | None = None,
) -> ResumingDisk:
    """A disk of a machine over NFC, opened again with a new ticket when it fails for a passing reason.

    ``path`` is a datastore path; ``device_key`` tells which disk it belongs to, and is looked up in the
    machine's configuration for writing if it is not given. ``tickets`` asks for other tickets than those of
    the machine, which may then be None. ``buffer_size`` and ``buffer_count`` are those of
    :func:`~vdkit.transports.nfc.open_nfc`. ``budget`` is how processes share the host, None the way that all
    of them do by default. Raises what opening raises, TooManyConnections among it.
    """
    retry = retry or Retry()
    timeouts = timeouts or Timeouts()
    key = device_key
    if vm is None and tickets is None:
        raise UsageError(f"{session.where}: {path}: a disk is opened through its machine or with a ticket")
    if writable and key is None and vm is not None and tickets is None:
        key = _disk_of(session, vm, path).key

    def ask() -> NfcTicket:
        if vm is None or tickets is not None:
            assert tickets is not None
            return tickets()
        if writable and key is not None:
            return disk_ticket(session, vm, key, writable=True)
        return read_ticket(session, vm)

    admission = _Admission(session, budget or HostBudgets(), timeouts, retry, cancel)

    def opener() -> BlockDevice | WritableDevice:
        ticket, lease = admission.admit(ask)
        with naming_the_choice(session, ticket):
            return open_nfc(
                _target(ticket, path),
                mode=mode,
                writable=writable,
                compression=compression,
                buffer_size=buffer_size,
                buffer_count=buffer_count,
                timeouts=timeouts,
                lease=lease,
                adapt=retry.attempts > 1,
                sleep=retry.sleep,
                jitter=retry.jitter,
            )

    return ResumingDisk(
        opener,
        attempts=retry.attempts,
        sleep=retry.sleep,
        jitter=retry.jitter,
        notify=retry.notify,
        cancel=cancel,
    )


class _Admission:
    """The turn of a disk at the host that its ticket names."""

    def __init__(
        self,
        session: Session,
        budgets: HostBudgets,
        timeouts: Timeouts,
        retry: Retry,
        cancel: CancelToken | None,
    ) -> None:
        self._session = session
        self._budgets = budgets
        self._wait = timeouts.request if budgets.wait is None else budgets.wait
        self._left = self._wait
        self._retry = retry
        self._cancel = cancel

    def admit(self, ask: Callable[[], NfcTicket]) -> tuple[NfcTicket, HostLease]:
        """A ticket and a lease of its host. The first ticket goes stale while we wait: then a fresh one."""
        ticket = ask()
        budget = self._budget(ticket)
        lease = self._lease(budget)
        try:
            for _ in range(_TICKETS):
                if not lease.waited:
                    break
                ticket = ask()
                named = self._budget(ticket)
                if named.path == budget.path:
                    break
                # vCenter sends us to another host than before.
                lease.close()
                budget = named
                lease = self._lease(budget)
        except BaseException:
            lease.close()
            raise
        return ticket, lease

    def _budget(self, ticket: NfcTicket) -> HostBudget:
        server = server_of(ticket.service)
        limits = limits_of(self._session.about.version, server)
        return self._budgets.of(ticket.host, ticket.port, server, limits)

    def _lease(self, budget: HostBudget) -> HostLease:
        try:
            lease = budget.lease(
                wait=self._left,
                cancel=self._cancel,
                notify=self._retry.waiting,
                sleep=self._retry.sleep,
                jitter=self._retry.jitter,
            )
        except TransportError:
            # The retries that follow are for other troubles: none of them waits as long again.
            self._left = 0.0
            raise
        self._left = self._wait
        return lease


def _target(ticket: NfcTicket, path: str) -> NfcTarget:
    return NfcTarget(
        host=ticket.host,
        port=ticket.port,
        ticket=ticket.ticket,
        service=ticket.service,
        thumbprint=ticket.thumbprint,
        certificate=ticket.certificate,
        path=path,
        legacy_tls=ticket.legacy_tls,
    )


def _disk_of(session: Session, vm: VirtualMachine, path: str) -> VirtualDisk:
    for disk in vm.disks:
        if path == disk.file or path in disk.parents:
            return disk
    known = ", ".join(disk.file for disk in vm.disks) or "none"
    raise NotFound(
        f"{session.where}: {vm.name} ({vm.moref}) has no disk {path!r}", remedy=f"its disks are: {known}"
    )
