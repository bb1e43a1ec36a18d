"""Disks of a machine over the network: a ticket for each opening, and a new one after each failure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.disklib.resuming import DEFAULT_ATTEMPTS, ResumingDisk
from vdkit.errors import NotFound, VixError
from vdkit.transports.nfc import CompressionName as Compression
from vdkit.transports.nfc import Mode, NfcTarget, Timeouts, open_nfc
from vdkit.vsphere.model import VirtualDisk, VirtualMachine
from vdkit.vsphere.session import Session
from vdkit.vsphere.tickets import NfcTicket, disk_ticket, read_ticket


@dataclass(frozen=True, slots=True)
class Retry:
    """How a remote disk comes back after a passing failure. See :class:`ResumingDisk`."""

    attempts: int = DEFAULT_ATTEMPTS
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    notify: Callable[[VixError, float], None] | None = None


def open_remote(
    session: Session,
    vm: VirtualMachine,
    path: str,
    *,
    writable: bool = False,
    mode: Mode = "nbdssl",
    compression: Compression = "none",
    device_key: int | None = None,
    retry: Retry | None = None,
    timeouts: Timeouts | None = None,
    cancel: CancelToken | None = None,
) -> ResumingDisk:
    """A disk of a machine over NFC, opened again with a new ticket when it fails for a passing reason.

    ``path`` is a datastore path; ``device_key`` tells which disk it belongs to, and is looked up in the
    machine's configuration for writing if it is not given.
    """
    retry = retry or Retry()
    key = device_key
    if writable and key is None:
        key = _disk_of(session, vm, path).key

    def opener() -> BlockDevice | WritableDevice:
        ticket = disk_ticket(session, vm, key, writable=True) if writable and key is not None else None
        target = _target(ticket or read_ticket(session, vm), path)
        return open_nfc(target, mode=mode, writable=writable, compression=compression, timeouts=timeouts)

    return ResumingDisk(
        opener,
        attempts=retry.attempts,
        sleep=retry.sleep,
        jitter=retry.jitter,
        notify=retry.notify,
        cancel=cancel,
    )


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
