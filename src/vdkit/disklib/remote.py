"""Disks of a machine over the network: a ticket for each opening, and a new one after each failure.

No connection is made before the host's budget has one to give, and none sends more than its part of it; see
:mod:`vdkit.net.budget`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.disklib.resuming import DEFAULT_ATTEMPTS, ResumingDisk
from vdkit.errors import NotFound, TransportError, UsageError, VixError
from vdkit.net.budget import HostBudget, HostBudgets, HostLease, Lease
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
    turn: Turn | None = None,
    cancel: CancelToken | None = None,
) -> ResumingDisk:
    """A disk of a machine over NFC, opened again with a new ticket when it fails for a passing reason.

    ``path`` is a datastore path; ``device_key`` tells which disk it belongs to, and is looked up in the
    machine's configuration for writing if it is not given. ``tickets`` asks for other tickets than those of
    the machine, which may then be None. ``buffer_size`` and ``buffer_count`` are those of
    :func:`~vdkit.transports.nfc.open_nfc`. ``budget`` is how processes share the host, None the way that all
    of them do by default; ``turn`` the place there that the caller keeps. Raises what opening raises,
    TooManyConnections among it.
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

    admission = _Admission(session, budget or HostBudgets(), timeouts, retry, cancel, turn)

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


class Turn:
    """A place at a host that stays ours from one disk to the next, so that nothing waits in between.

    A job that makes a snapshot takes it before: what waits under a snapshot lets it grow. One disk at a time
    uses it; others wait for places of their own. A machine that has moved to another host loses it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lease: HostLease | None = None
        self._path: Path | None = None
        self._lent = False

    def wait(
        self,
        session: Session,
        vm: VirtualMachine,
        *,
        budget: HostBudgets | None = None,
        retry: Retry | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Wait for a place at the host that reads the machine. Parameters and errors: :func:`open_remote`."""
        admission = _Admission(
            session, budget or HostBudgets(), Timeouts(), retry or Retry(), cancel, turn=None
        )
        path, lease = admission.place(partial(read_ticket, session, vm))
        self.close()
        with self._lock:
            self._lease, self._path = lease, path

    def lend(self, path: Path) -> Lease | None:
        """The place, if it is at the host of that budget and nobody has it."""
        with self._lock:
            if self._lease is None or self._lent:
                return None
            if path == self._path:
                self._lent = True
                return _Lent(self._lease, self._give_back)
        # Nobody waits for one place while keeping another: two that did would wait for each other.
        self.close()
        return None

    def _give_back(self) -> None:
        with self._lock:
            self._lent = False

    def close(self) -> None:
        """Let go of the place. Twice is fine."""
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Lent:
    """A lease that its user's closing does not end."""

    def __init__(self, lease: HostLease, closed: Callable[[], None]) -> None:
        self._lease = lease
        self._closed: Callable[[], None] | None = closed

    @property
    def floor(self) -> int:
        return self._lease.floor

    def take(self, size: int) -> bool:
        return self._closed is not None and self._lease.take(size)

    def give(self, size: int) -> None:
        self._lease.give(size)

    def close(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()


class _Admission:
    """The turn of a disk at the host that its ticket names."""

    def __init__(
        self,
        session: Session,
        budgets: HostBudgets,
        timeouts: Timeouts,
        retry: Retry,
        cancel: CancelToken | None,
        turn: Turn | None,
    ) -> None:
        self._session = session
        self._budgets = budgets
        self._wait = timeouts.request if budgets.wait is None else budgets.wait
        self._left = self._wait
        self._retry = retry
        self._cancel = cancel
        self._turn = turn

    def admit(self, ask: Callable[[], NfcTicket]) -> tuple[NfcTicket, Lease]:
        """A ticket and a lease of its host. The first ticket goes stale while we wait: then a fresh one."""
        ticket = ask()
        budget = self._budget(ticket)
        kept = None if self._turn is None else self._turn.lend(budget.path)
        if kept is not None:
            return ticket, kept
        ticket, _, lease = self._admit(ask, ticket, budget)
        return ticket, lease

    def place(self, ask: Callable[[], NfcTicket]) -> tuple[Path, HostLease]:
        """A lease of the host of a ticket, and which; the ticket expires."""
        ticket = ask()
        _, budget, lease = self._admit(ask, ticket, self._budget(ticket))
        return budget.path, lease

    def _admit(
        self, ask: Callable[[], NfcTicket], ticket: NfcTicket, budget: HostBudget
    ) -> tuple[NfcTicket, HostBudget, HostLease]:
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
        return ticket, budget, lease

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
