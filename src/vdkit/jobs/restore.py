"""Restore a point: to a new machine on a host, or to a disk file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from vdkit.backup import DiskRecord, Point, Repository, open_checked, open_point, restore_disk
from vdkit.block.compare import compare
from vdkit.block.copy import CopyProgress
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken
from vdkit.disklib.local import RAW, save, unsave
from vdkit.disklib.modes import Opened, choose_modes, open_in_modes, subject_of
from vdkit.disklib.opening import open_local
from vdkit.disklib.remote import open_remote
from vdkit.disklib.resuming import ResumingDisk
from vdkit.errors import ControlError, UsageError, VerifyFailed, VixError
from vdkit.jobs.hardware import datastore_of, machine_like
from vdkit.jobs.observer import Observer, retry_told_to
from vdkit.net.budget import HostBudgets
from vdkit.transports.nfc import CompressionName
from vdkit.vsphere import machines
from vdkit.vsphere.model import VirtualDisk, VirtualMachine
from vdkit.vsphere.session import Session

#: A host may make a disk larger than asked for by less than this, in bytes: it counts in larger units.
_MOST_ROUNDING: Final = 1 << 20


@dataclass(frozen=True)
class RestoreResult:
    """The machine that was made, powered off, and how many bytes were written to its disks."""

    machine: VirtualMachine
    written: int
    modes: Mapping[int, str] = field(default_factory=dict)
    """The transport mode that each disk was written in, by its key in the point."""


def restore_machine(
    session: Session,
    repository: Repository,
    point: Point,
    name: str,
    observer: Observer,
    *,
    datastore: str | None = None,
    modes: str | None = None,
    compression: CompressionName = "none",
    budget: HostBudgets | None = None,
    verify: bool = False,
    cancel: CancelToken | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> RestoreResult:
    """Make the machine ``name`` with the disks of ``point``; it is left powered off.

    ``datastore`` None means the one that the machine's first disk lay on; ``modes`` is a list of transport
    modes, None the default for where we run; ``budget`` is how the host is shared. ``verify`` reads every
    disk back and compares it with the point; a disk whose connection was lost on the way is compared in any
    case. When the restore fails, the half-made machine is deleted. Raises AlreadyExists, PointInvalid,
    VerifyFailed, transport and control errors.
    """
    choose_modes(modes)  # a list that cannot work is told before anything is done
    where = f"point {point.id}"
    facts = point.manifest.hardware
    target = datastore or datastore_of(facts)
    if target is None:
        raise UsageError(
            f"{where}: it does not say on which datastore the machine was", remedy="pass --datastore"
        )
    records = sorted(point.manifest.disks, key=lambda disk: disk.key)
    new = machine_like(facts, name, target, [disk.capacity for disk in records], where=where)
    observer.step(f"creating machine {name} on [{target}]")
    vm = machines.create(session, new)
    try:
        made = sorted(vm.disks, key=lambda disk: disk.key)
        if not _sizes_fit(made, records):
            raise ControlError(f"{session.where}: {name}: the host made disks of other sizes than asked for")
        remote = partial(
            open_remote,
            session,
            vm,
            compression=compression,
            budget=budget,
            retry=retry_told_to(observer, sleep),
            cancel=cancel,
        )
        open_it = partial(_open_disk, vm, modes, remote)
        written, used = 0, {}
        for record, disk in zip(records, made, strict=True):
            size, used[record.key] = _write_disk(
                repository, point, record, disk, open_it, observer, verify=verify, cancel=cancel
            )
            written += size
    except BaseException as error:
        _delete(session, vm, error)
        raise
    return RestoreResult(vm, written, used)


def _sizes_fit(made: Sequence[VirtualDisk], records: Sequence[DiskRecord]) -> bool:
    """As many disks as asked for; a host that rounds a size makes it a little larger, never smaller."""
    return len(made) == len(records) and all(
        0 <= disk.capacity - record.capacity < _MOST_ROUNDING
        for disk, record in zip(made, records, strict=True)
    )


def _write_disk(
    repository: Repository,
    point: Point,
    record: DiskRecord,
    disk: VirtualDisk,
    open_it: Callable[..., Opened[ResumingDisk]],
    observer: Observer,
    *,
    verify: bool,
    cancel: CancelToken | None,
) -> tuple[int, str]:
    """Write one disk of the new machine; returns the bytes written and the transport mode."""
    what = f"disk {record.key} ({record.label})"
    observer.step(f"{what}: writing to {disk.file}")

    def tell(progress: CopyProgress) -> None:
        observer.progress(f"{what} restore", progress.done, progress.total)

    opened = open_it(disk, writable=True, device_key=disk.key)
    for note in opened.notes:
        observer.note(f"{what}: {note}")
    with opened.device as device:
        result = restore_disk(
            repository, point, record.key, device, target_is_zero=True, progress=tell, cancel=cancel
        )
        reopened = device.reopened
    if reopened and not verify:
        # What a host had acknowledged when its connection broke is probably on its disk; a restore is not
        # the place for "probably".
        observer.note(f"{what}: the connection was lost {reopened} times: comparing what was written")
    if verify or reopened:
        observer.step(f"{what}: reading it back")
        with open_it(disk).device as restored:
            _check_equal(repository, point, record.key, restored, f"{what} in {disk.file}")
    return result.written, opened.mode


def _open_disk(
    vm: VirtualMachine,
    modes: str | None,
    remote: Callable[..., ResumingDisk],
    disk: VirtualDisk,
    *,
    writable: bool = False,
    device_key: int | None = None,
) -> Opened[ResumingDisk]:
    subject = subject_of(vm, disk.file, disk=disk, writable=writable)
    return open_in_modes(
        modes, subject, lambda mode: remote(disk.file, mode=mode, writable=writable, device_key=device_key)
    )


def restore_file(
    repository: Repository,
    point: Point,
    key: int,
    target: Path,
    observer: Observer,
    *,
    to: str = "monolithicSparse",
    verify: bool = False,
    cancel: CancelToken | None = None,
) -> int:
    """Write disk ``key`` of ``point`` to a new disk in a local file of type ``to``; returns bytes written.

    A file that does not hold what was stored is not left behind.
    """
    what = f"disk {key} of point {point.id}"
    observer.step(f"{what}: writing {target}")
    saved = False
    try:
        with open_checked(repository, point, key, cancel=cancel) as (device, token):
            result = save(
                device,
                target,
                to=to,
                progress=lambda done, total: observer.progress(f"disk {key} restore", done, total),
                cancel=token,
            )
            saved = True
        if verify:
            observer.step(f"{what}: reading it back")
            source_format = RAW if to.casefold() == RAW else "vmdk"
            with open_local(target, source_format=source_format) as restored:
                _check_equal(repository, point, key, restored, str(target))
    except BaseException:
        if saved:  # what fails earlier removes its own remains, and must not touch what was there before
            unsave(target, to=to)
        raise
    return result.written


def _check_equal(repository: Repository, point: Point, key: int, restored: BlockDevice, what: str) -> None:
    with open_point(repository, point, key) as wanted:
        if restored.capacity < wanted.capacity:
            raise VerifyFailed(f"{what}: {restored.capacity} bytes, point {point.id} has {wanted.capacity}")
        at = compare(wanted, restored, ranges=RangeSet([(0, wanted.capacity)]))
    if at is not None:
        raise VerifyFailed(f"{what}: differs from point {point.id} at byte {at}")


def _delete(session: Session, vm: VirtualMachine, error: BaseException) -> None:
    """Half a machine must not be taken for a restored one; failing to delete it must not hide the reason."""
    try:
        machines.destroy(session, vm)
    except VixError as failure:
        error.add_note(
            f"{session.where}: the half-restored machine {vm.name} ({vm.moref}) remains: {failure.message}"
        )
