"""Back up one virtual machine: snapshot, changed blocks, read, commit, remove the snapshot.

The order loses nothing: on a vCenter the machine's files are kept where they are first of all; a place at the
host is waited for before there is a snapshot that would grow meanwhile; change ids are taken from the
snapshot whose data are read (never from the running machine), the changes are asked for before the snapshot
goes, it must still be there when all has been read, and the point is complete before it is removed; then the
machine may be moved again. Whatever ends the run earlier leaves the repository as it was; a snapshot that
could not be removed is found by the next run, because its description names the repository and the point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, get_args

from vdkit.backup import (
    Consistency,
    Decision,
    Level,
    Method,
    Phase,
    Point,
    PointWriter,
    Repository,
    ResetPolicy,
    VmIdentity,
    backup_disk,
    begin_point,
    choose_level,
    previous_disk,
)
from vdkit.backup import Tracking as IdState
from vdkit.backup.level import CHOICES
from vdkit.block.copy import CopyProgress
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken
from vdkit.disklib.modes import Opened, choose_modes, open_in_modes, subject_of
from vdkit.disklib.remote import Turn, open_remote
from vdkit.errors import ChangeTrackingError, NotSupported, SnapshotFailed, TrackingOff, VixError
from vdkit.jobs.hardware import facts_of
from vdkit.jobs.observer import Observer, retry_told_to
from vdkit.net.budget import HostBudgets
from vdkit.transports.nfc import CompressionName, Mode
from vdkit.vsphere import access, inventory, snapshots, tracking
from vdkit.vsphere.model import Tracking, VirtualDisk, VirtualMachine
from vdkit.vsphere.session import Session

#: Snapshots of others that are named.
_NAMED: Final = 4


@dataclass(frozen=True)
class BackupResult:
    """A complete point. ``skipped``: disks that no snapshot can hold; ``warnings``: what else to look at."""

    point: Point
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    modes: Mapping[int, str] = field(default_factory=dict)
    """The transport mode that each disk was read in, by its key."""


def backup_machine(
    session: Session,
    machine: str,
    repository: Repository,
    observer: Observer,
    *,
    level: Level = Level.AUTO,
    on_reset: ResetPolicy = ResetPolicy.FAIL,
    enable_tracking: bool = True,
    quiesce: bool = False,
    allow_crash_consistent: bool = False,
    quiesce_timeout: float | None = None,
    access_lock: bool = True,
    modes: str | None = None,
    compression: CompressionName = "none",
    budget: HostBudgets | None = None,
    cancel: CancelToken | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> BackupResult:
    """Make a restore point of ``machine`` (a name, a path, a moref or a UUID).

    ``enable_tracking`` switches change tracking on where it is off, so that the next run can be incremental.
    ``quiesce`` brings the guest's file systems to rest, in ``quiesce_timeout`` seconds where the host knows
    such a limit; with ``allow_crash_consistent`` the run goes on when they cannot be. ``access_lock``: on a
    vCenter nobody moves the machine to other storage meanwhile; an account that may not ask for that is
    warned, and the run goes on. ``modes`` is a list of transport modes, None the default for where we run;
    ``budget`` is how the host is shared. Raises what the layers below raise: ObjectNotFound,
    RepositoryLocked, TrackingReset, transport and store errors; then no point has been made, and the snapshot
    is gone or will be found by the next run.
    """
    choose_modes(modes)  # a list that cannot work is told before anything is done
    vm = inventory.find_machine(session, machine)
    identity = _identity(session, vm)
    _refuse_hopeless(session, vm, modes)
    with begin_point(repository, identity, notice=observer.note) as writer:
        run = f"{repository.id}.{writer.id}"
        result: BackupResult | None = None
        try:
            with (
                _files_kept(session, vm, repository, observer, access_lock=access_lock, cancel=cancel),
                Turn() as turn,
            ):
                _remove_leftovers(session, vm, repository, observer)
                if enable_tracking:
                    vm = _enable_tracking(session, vm, run, observer)
                reader = _reader(
                    session,
                    vm,
                    observer,
                    turn,
                    modes,
                    compression=compression,
                    budget=budget,
                    cancel=cancel,
                    sleep=sleep,
                )
                backup = _Run(session, vm, repository, writer, reader, observer, level, on_reset, cancel)
                result = backup.under_snapshot(
                    run,
                    quiesce=quiesce,
                    allow_crash_consistent=allow_crash_consistent,
                    quiesce_timeout=quiesce_timeout,
                )
        except VixError as error:
            # The point is complete: that the machine cannot be moved yet is a thing to look at.
            if result is None:
                raise
            observer.warning(str(error))
            result = replace(result, warnings=(*result.warnings, str(error)))
        return result


def _identity(session: Session, vm: VirtualMachine) -> VmIdentity:
    """Under what its points are filed, if points can be made of it at all."""
    if vm.instance_uuid is None:
        raise NotSupported(
            f"{session.where}: {vm.name} ({vm.moref}) has no instance UUID to file its points under"
        )
    if vm.template:  # told before its configuration is touched
        raise SnapshotFailed(
            f"{session.where}: {vm.name} ({vm.moref}) is a template: no snapshot can be made of it",
            remedy="convert it to a machine for the backup; the Python library opens its disks as they are",
        )
    return VmIdentity(vm.name, vm.instance_uuid.lower())


def _refuse_hopeless(session: Session, vm: VirtualMachine, modes: str | None) -> None:
    """What no snapshot would change is told before there is one."""
    held = [disk for disk in vm.disks if disk.in_snapshots]
    if not held:
        raise _no_disk(session, vm)
    for disk in held:
        choose_modes(modes, subject_of(vm, disk.file, disk=disk))


def _no_disk(session: Session, vm: VirtualMachine) -> SnapshotFailed:
    return SnapshotFailed(
        f"{session.where}: {vm.name} ({vm.moref}) has no disk that a snapshot can hold",
        remedy="independent disks and physical raw device mappings cannot be backed up this way",
    )


def access_identity(repository_id: str) -> str:
    """Under what name backups into a repository disable relocation; vdkit cleanup ends it by this name."""
    return f"vdkit {repository_id}"


def _reader(
    session: Session,
    vm: VirtualMachine,
    observer: Observer,
    turn: Turn,
    modes: str | None,
    *,
    compression: CompressionName,
    budget: HostBudgets | None,
    cancel: CancelToken | None,
    sleep: Callable[[float], None],
) -> Callable[[VirtualDisk], Opened[BlockDevice]]:
    """What opens the disks of the machine, once there is a place for them at the host."""
    retry = retry_told_to(observer, sleep)
    if choose_modes(modes).mode in get_args(Mode):
        turn.wait(session, vm, budget=budget, retry=retry, cancel=cancel)

    def opened(disk: VirtualDisk) -> Opened[BlockDevice]:
        remote = partial(
            open_remote,
            session,
            vm,
            disk.file,
            compression=compression,
            budget=budget,
            turn=turn,
            retry=retry,
            cancel=cancel,
        )
        subject = subject_of(vm, disk.file, disk=disk)
        return open_in_modes(modes, subject, lambda mode: remote(mode=mode))

    return opened


class _Run:
    """One backup, from the snapshot on."""

    def __init__(
        self,
        session: Session,
        vm: VirtualMachine,
        repository: Repository,
        writer: PointWriter,
        reader: Callable[[VirtualDisk], Opened[BlockDevice]],
        observer: Observer,
        level: Level,
        on_reset: ResetPolicy,
        cancel: CancelToken | None,
    ) -> None:
        self._session = session
        self._vm = vm
        self._repository = repository
        self._writer = writer
        self._reader = reader
        self._observer = observer
        self._level = level
        self._on_reset = on_reset
        self._cancel = cancel
        self._warnings: list[str] = []
        self._modes: dict[int, str] = {}

    def under_snapshot(
        self, run: str, *, quiesce: bool, allow_crash_consistent: bool, quiesce_timeout: float | None
    ) -> BackupResult:
        self._observer.step(f"snapshot of {self._vm.name}")
        point: Point | None = None
        skipped: tuple[str, ...] = ()
        try:
            with snapshots.temporary_snapshot(
                self._session,
                self._vm,
                f"{snapshots.NAME_PREFIX} backup {self._writer.id}",
                f"Made for a backup; removed when it ends. {snapshots.tag(run)}",
                quiesce=quiesce,
                allow_crash_consistent=allow_crash_consistent,
                quiesce_timeout=quiesce_timeout,
                tell=self._observer.note,
            ) as taken:
                if taken.fell_back:
                    self._warn(f"the snapshot is only crash consistent: {taken.fell_back}")
                skipped = self._read_disks(taken.moref)
                snapshots.require(self._session, self._vm, taken.moref)
                point = self._writer.commit(
                    hardware=facts_of(self._vm),
                    consistency=Consistency.QUIESCED if taken.quiesced else Consistency.CRASH,
                )
                self._observer.step("removing the snapshot")
        except SnapshotFailed as error:
            # The point is complete and visible: a snapshot that stayed is a thing to look at, not a failure.
            if point is None:
                raise
            self._warn(str(error))
        return BackupResult(point, skipped, tuple(self._warnings), self._modes)

    def _read_disks(self, snapshot: str) -> tuple[str, ...]:
        with tracking.ChangeQuery(self._session, self._vm, snapshot) as query:
            disks = query.save_ids()
            skipped = self._skipped(disks)
            for key, disk in sorted(disks.items()):
                if disk.in_snapshots:
                    self._back_up(query, key, disk)
        return skipped

    def _skipped(self, disks: Mapping[int, VirtualDisk]) -> tuple[str, ...]:
        missing = [d for d in self._vm.disks if d.key not in disks or not disks[d.key].in_snapshots]
        if len(missing) == len(self._vm.disks):
            raise _no_disk(self._session, self._vm)
        for disk in missing:
            self._warn(
                f"disk {disk.key} ({disk.label}) is not part of snapshots and is NOT backed up: "
                f"{disk.tracking.reason}"
            )
        return tuple(f"{disk.key} ({disk.label})" for disk in missing)

    def _back_up(self, query: tracking.ChangeQuery, key: int, disk: VirtualDisk) -> None:
        decision, ranges = self._decide(query, key, disk)
        what = f"disk {key} ({disk.label})"
        self._observer.step(f"{what}: {decision.method.value}: {decision.reason}")
        opened = self._reader(disk)
        self._modes[key] = opened.mode
        for note in opened.notes:
            self._observer.note(f"{what}: {note}")
        with opened.device as source:
            record = backup_disk(
                source,
                self._writer,
                key=key,
                label=disk.label,
                decision=decision,
                ranges=ranges,
                change_id=query.next_id(key),
                progress=self._progress(what),
                cancel=self._cancel,
            )
        self._observer.note(
            f"{what}: {record.read} bytes read over {opened.mode}, {record.stored} stored, "
            f"{record.seconds:.1f} s"
        )

    def _decide(
        self, query: tracking.ChangeQuery, key: int, disk: VirtualDisk
    ) -> tuple[Decision, RangeSet | None]:
        """How to read a disk, and what of it. The changes are asked for only if they would be used."""
        previous = previous_disk(self._repository, self._writer.previous, key)
        what = f"{self._vm.name}, disk {key} ({disk.label})"

        def choose(state: IdState) -> Decision:
            return choose_level(
                self._level,
                previous,
                capacity=disk.capacity,
                tracking=state,
                on_reset=self._on_reset,
                what=what,
            )

        try:
            decision = choose(IdState.USABLE)
            if decision.method is not Method.CHANGES or previous is None or previous.disk.change_id is None:
                query.full(key)
                return decision, None
            ranges = query.changed_ranges(key, previous.disk.change_id, since_capacity=previous.disk.capacity)
        except ChangeTrackingError as error:
            if self._on_reset is ResetPolicy.FAIL:
                raise type(error)(error.message, remedy=_remedy(error)) from error
            decision = choose(IdState.OFF if isinstance(error, TrackingOff) else IdState.RESET)
            self._warn(error.message)
            query.full(key)
            return decision, None
        return decision, ranges

    def _progress(self, what: str) -> Callable[[Phase, CopyProgress], None]:
        def tell(phase: Phase, progress: CopyProgress) -> None:
            self._observer.progress(f"{what} {phase.value}", progress.done, progress.total)

        return tell

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._observer.warning(text)


def _remedy(error: ChangeTrackingError) -> str:
    """What to do about it: the choices of a backup, and what would bring tracking back where it is off."""
    return f"{error.remedy}, or {CHOICES}" if isinstance(error, TrackingOff) and error.remedy else CHOICES


def _files_kept(
    session: Session,
    vm: VirtualMachine,
    repository: Repository,
    observer: Observer,
    *,
    access_lock: bool,
    cancel: CancelToken | None,
) -> AbstractContextManager[object]:
    """While it lasts nobody moves the files. A stand-alone host moves none in any case."""
    if not access_lock or not session.about.is_vcenter:
        return nullcontext()
    return access.access(
        session,
        vm,
        access_identity(repository.id),
        without=lambda why: observer.warning(f"{why} (--no-access-lock goes without, and says nothing)"),
        cancel=cancel,
        tell=observer.note,
    )


def _remove_leftovers(
    session: Session, vm: VirtualMachine, repository: Repository, observer: Observer
) -> None:
    """Snapshots of earlier runs into this repository: its lock is held, so none of them is in use."""
    with _explained(f"removing what an earlier run left on {vm.name}"):
        for snapshot in reversed(snapshots.find_leftovers(session, vm)):
            run = snapshots.run_of(snapshot) or ""
            if run.startswith(f"{repository.id}."):
                observer.note(f"removing snapshot {snapshot.name!r}, left by an earlier run")
                snapshots.remove(session, vm, snapshot.moref, tell=observer.note)
            else:
                observer.warning(
                    f"snapshot {snapshot.name!r} belongs to a backup into another repository: left alone"
                )
        others = [snapshot.name for snapshot in snapshots.of_others(session, vm)]
        if others:
            shown = ", ".join(repr(name) for name in others[:_NAMED])
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            observer.note(f"{vm.name} has {len(others)} snapshots of others: {shown}{more}: left alone")


def _enable_tracking(session: Session, vm: VirtualMachine, run: str, observer: Observer) -> VirtualMachine:
    waiting = [disk for disk in vm.disks if disk.tracking.tracking in (Tracking.OFF, Tracking.PENDING)]
    if not waiting or not vm.change_tracking_supported:
        if not vm.change_tracking_supported:
            observer.warning(
                f"{vm.name} cannot track changes (hardware version below 7): every backup reads all"
            )
        return vm
    if vm.snapshots:
        # Those that an earlier run had left may be gone by now.
        vm = inventory.get_machine(session, vm.moref)
    if vm.snapshots:
        names = ", ".join(repr(snapshot.name) for snapshot in vm.all_snapshots())
        observer.warning(
            f"change tracking of {vm.name} is not switched on while it has snapshots ({names}): this backup "
            "reads all; delete them, and the next one switches it on"
        )
        return vm
    observer.note(f"switching change tracking on for {vm.name}, so that the next backup can be incremental")
    return tracking.enable(session, vm, run=run)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except VixError as error:
        error.add_note(f"while {what}")
        raise
