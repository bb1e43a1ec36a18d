"""The life of a snapshot: made, used, removed whatever happens, and found again if the run was killed.

Our snapshots are told apart by the start of their name and by a tag in their description, ``vdkit:RUN``: a
snapshot of somebody else is never touched.

Sources: the vSphere Web Services API reference (CreateSnapshot_Task, CreateSnapshotEx_Task, GuestQuiesceSpec,
RemoveSnapshot_Task), VMware's configuration maximums (32 snapshots in a row).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from pyVmomi import vim, vmodl

from vdkit.errors import (
    ControlError,
    NotSupported,
    ObjectBusy,
    ObjectNotFound,
    SnapshotFailed,
    UsageError,
    VixError,
)
from vdkit.vsphere import tasks
from vdkit.vsphere.consolidation import Pace, Tell, settle
from vdkit.vsphere.faults import is_quiesce_failure
from vdkit.vsphere.hardware import snapshots as snapshot_tree
from vdkit.vsphere.model import Snapshot, VirtualMachine
from vdkit.vsphere.properties import of_one
from vdkit.vsphere.session import Session

#: How the names of our snapshots begin.
NAME_PREFIX: Final = "vdkit"
#: Characters that the API allows in a snapshot's name.
MAX_NAME: Final = 80
#: Snapshots in a row, each on top of the one before, that a host makes.
MAX_SNAPSHOTS: Final = 32
#: Seconds that a guest may be given to come to rest; the API takes 5 to 240 minutes.
QUIESCE_LEAST: Final = 300
QUIESCE_MOST: Final = 14_400
#: Seconds between two attempts while the machine is busy: first, longest.
BUSY_FIRST: Final = 1.0
BUSY_LONGEST: Final = 30.0
#: Seconds that a removal is tried again while something else holds the machine; moving it takes so long.
REMOVE_BUSY_DEADLINE: Final = 1800.0
#: Times that a removal is asked for in all that fails for another reason.
REMOVE_ATTEMPTS: Final = 3
#: Seconds a quiesced snapshot may take before the caller is told.
CREATE_DEADLINE: Final = 1800.0

_TAG = re.compile(r"(?:^|\s)vdkit:([0-9A-Za-z][0-9A-Za-z._-]{0,127})(?=\s|$)")
_RUN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that was just made.

    ``fell_back`` says why the guest was not brought to rest although it was asked for.
    """

    moref: str
    name: str
    run: str
    quiesced: bool
    fell_back: str | None = None


def tag(run: str) -> str:
    """What the description of a snapshot of that run holds."""
    if not _RUN.fullmatch(run):
        raise UsageError(f"run id {run!r}: 1 to 128 letters, digits and . _ - are allowed")
    return f"vdkit:{run}"


def run_of(snapshot: Snapshot) -> str | None:
    """The run that made a snapshot; None if it is not one of ours."""
    found = _TAG.search(snapshot.description)
    return found[1] if found and snapshot.name.startswith(NAME_PREFIX) else None


def create(
    session: Session,
    vm: VirtualMachine,
    name: str,
    description: str,
    *,
    quiesce: bool = False,
    allow_crash_consistent: bool = False,
    quiesce_timeout: float | None = None,
    deadline: float = CREATE_DEADLINE,
    tell: Tell | None = None,
) -> Taken:
    """Make a snapshot without memory, after every merge of the machine's disks has ended.

    ``quiesce`` brings the guest's file systems to rest; only with ``allow_crash_consistent`` is a snapshot
    made without it when the guest cannot. ``quiesce_timeout`` is how many seconds the guest has for it where
    the host knows such a time-out (6.5 and later). ``tell`` hears while it waits for merges. ``name`` begins
    with :data:`NAME_PREFIX`, ``description`` holds :func:`tag`. Raises SnapshotFailed, ObjectBusy,
    NoPrivilege, TaskFailed.
    """
    run = run_of(Snapshot("", name, description))
    if run is None or len(name) > MAX_NAME:
        raise UsageError(
            f"snapshot {name!r}: the name must begin with {NAME_PREFIX!r} and have at most {MAX_NAME} "
            "characters, and the description hold tag(run), or it could not be found again"
        )
    if quiesce_timeout is not None and not QUIESCE_LEAST <= quiesce_timeout <= QUIESCE_MOST:
        raise UsageError(
            f"quiesce time-out of {quiesce_timeout:g} s: {QUIESCE_LEAST} to {QUIESCE_MOST} seconds can be had"
        )
    settle(session, vm, deadline=deadline, tell=tell)
    _refuse_too_many(session, vm)
    machine: Any = session.managed(vim.VirtualMachine, vm.moref)

    def plain(quiesced: bool) -> Taken:
        moref = _create(
            session,
            vm,
            name,
            lambda: machine.CreateSnapshot_Task(name, description, False, quiesced),
            deadline=deadline,
        )
        return Taken(moref, name, run, quiesced=quiesced)

    try:
        if quiesce and quiesce_timeout is not None:
            return _create_timed(session, vm, name, description, run, quiesce_timeout, deadline, plain)
        return plain(quiesce)
    except VixError as error:
        if not (quiesce and allow_crash_consistent and is_quiesce_failure(error)):
            raise
        reason = error.message
    return replace(plain(False), fell_back=reason)


def remove(
    session: Session,
    vm: VirtualMachine,
    moref: str,
    *,
    deadline: float = tasks.DEFAULT_DEADLINE,
    tell: Tell | None = None,
) -> None:
    """Remove a snapshot (not those made on top of it) and wait until its disks are merged.

    A snapshot that is gone already is fine. While the machine is busy it is tried again for a while, after
    other faults of the host a few times.
    ``deadline`` (seconds) bounds all of it; ``tell`` hears how far it is. Raises SnapshotFailed and what the
    host refuses.
    """
    what = f"remove snapshot {moref} of {vm.name} ({vm.moref})"
    until = time.monotonic() + deadline
    busy_until = min(until, time.monotonic() + REMOVE_BUSY_DEADLINE)
    pause, faults = BUSY_FIRST, 0
    snapshot = session.managed(vim.vm.Snapshot, moref)
    pace = Pace(vm.name, tell)
    while True:
        left = max(1.0, until - time.monotonic())
        try:
            tasks.run(
                session,
                what,
                lambda: snapshot.RemoveSnapshot_Task(False, True),
                deadline=left,
                progress=pace,
            )
            break
        except ObjectNotFound:
            break
        except VixError as error:
            # Busy, or the connection went in the middle: then the removal may be under way, and asking again
            # finds it running (busy) or done (not found). After a failed merge it is not found either, and
            # what is left to merge is settled below.
            faults += not error.retryable
            if faults >= REMOVE_ATTEMPTS or _is_final(error) or time.monotonic() + pause > busy_until:
                raise
        session.sleep(pause)
        pause = min(pause * 2, BUSY_LONGEST)
    settle(session, vm, deadline=max(1.0, until - time.monotonic()), tell=tell)


def _is_final(error: VixError) -> bool:
    """True if asking for the removal again would be answered in the same way."""
    return not (error.retryable or type(error) in (ControlError, SnapshotFailed))


@contextmanager
def temporary_snapshot(
    session: Session,
    vm: VirtualMachine,
    name: str,
    description: str,
    *,
    quiesce: bool = False,
    allow_crash_consistent: bool = False,
    quiesce_timeout: float | None = None,
    deadline: float = tasks.DEFAULT_DEADLINE,
    tell: Tell | None = None,
) -> Iterator[Taken]:
    """A snapshot for the length of a block; removed on every way out, also when interrupted while it is made.

    ``deadline`` is for the removal; the other arguments are those of :func:`create` and :func:`remove`.
    A failure of the block is what the caller sees; a failure to remove is added to it as a note, or raised as
    SnapshotFailed when the block succeeded.
    """
    taken = None
    try:
        taken = create(
            session,
            vm,
            name,
            description,
            quiesce=quiesce,
            allow_crash_consistent=allow_crash_consistent,
            quiesce_timeout=quiesce_timeout,
            tell=tell,
        )
        yield taken
    except BaseException as error:
        _remove_after(error, session, vm, name, description, taken, deadline)
        raise
    try:
        remove(session, vm, taken.moref, deadline=deadline, tell=tell)
    except VixError as error:
        raise SnapshotFailed(_left_behind(session, vm, name, taken.moref, error), remedy=_REMEDY) from error
    except BaseException as error:
        _start_removal(error, session, vm, name, taken.moref)
        raise


def list_snapshots(session: Session, vm: VirtualMachine) -> tuple[Snapshot, ...]:
    """The roots of the machine's snapshot tree, as they are now."""
    row = of_one(session, vim.VirtualMachine, vm.moref, ("snapshot",), f"list the snapshots of {vm.name}")
    tree = row.get("snapshot")
    return snapshot_tree(tree.rootSnapshotList) if tree is not None else ()


def require(session: Session, vm: VirtualMachine, moref: str) -> None:
    """Raises SnapshotFailed if the machine has no snapshot of that id any more."""
    if not any(one.moref == moref for root in list_snapshots(session, vm) for one in root.walk()):
        what = f"snapshot {moref} of {vm.name} ({vm.moref})"
        raise SnapshotFailed(
            f"{session.where}: {what} was deleted while its disks were read: that may mix then and now",
            remedy="see in the host's client who deletes snapshots, then run the command again",
        )


def of_others(session: Session, vm: VirtualMachine) -> list[Snapshot]:
    """The snapshots of the machine that are not ours; parents before children."""
    return [one for root in list_snapshots(session, vm) for one in root.walk() if run_of(one) is None]


def find_leftovers(session: Session, vm: VirtualMachine, *, keep: Collection[str] = ()) -> list[Snapshot]:
    """Our snapshots on the machine, of all runs but those in ``keep``; parents before children.

    A run that still goes on elsewhere looks the same as one that was killed: ``keep`` its id, or hold a lock.
    """
    return [
        snapshot
        for root in list_snapshots(session, vm)
        for snapshot in root.walk()
        if (run := run_of(snapshot)) is not None and run not in keep
    ]


def remove_leftovers(
    session: Session,
    vm: VirtualMachine,
    *,
    keep: Collection[str] = (),
    deadline: float = tasks.DEFAULT_DEADLINE,
) -> list[Snapshot]:
    """Remove what :func:`find_leftovers` finds, youngest first, and return it."""
    found = find_leftovers(session, vm, keep=keep)
    for snapshot in reversed(found):
        remove(session, vm, snapshot.moref, deadline=deadline)
    return found


_REMEDY: Final = "the next backup of this machine removes it, or vdkit cleanup does"
#: Snapshots that a message names.
_NAMED: Final = 4


def _create(
    session: Session, vm: VirtualMachine, name: str, start: Callable[[], Any], *, deadline: float
) -> str:
    """Start the task, again while the machine is busy; the id of the snapshot."""
    what = f"make snapshot {name!r} of {vm.name} ({vm.moref})"
    until = time.monotonic() + deadline
    pause = BUSY_FIRST
    while True:
        try:
            made: Any = tasks.run(session, what, start, deadline=deadline)
            break
        except ObjectBusy:
            if time.monotonic() + pause > until:
                raise
        session.sleep(pause)
        pause = min(pause * 2, BUSY_LONGEST)
    if made is None:
        raise SnapshotFailed(f"{session.where}: {what}: the host names no snapshot after success")
    moref: str = made._GetMoId()
    return moref


def _create_timed(
    session: Session,
    vm: VirtualMachine,
    name: str,
    description: str,
    run: str,
    quiesce_timeout: float,
    deadline: float,
    plain: Callable[[bool], Taken],
) -> Taken:
    """Quiesced with a time-out of the caller's; ``plain`` is for servers that know none."""
    machine: Any = session.managed(vim.VirtualMachine, vm.moref)
    spec = vim.vm.GuestQuiesceSpec(timeout=round(quiesce_timeout / 60))
    try:
        moref = _create(
            session,
            vm,
            name,
            lambda: machine.CreateSnapshotEx_Task(name, description, False, spec),
            deadline=max(deadline, quiesce_timeout + deadline),
        )
    except NotSupported as error:
        if not isinstance(error.__cause__, vmodl.fault.MethodNotFound):
            raise
        return plain(True)
    return Taken(moref, name, run, quiesced=True)


def _refuse_too_many(session: Session, vm: VirtualMachine) -> None:
    """A host says only that the level is too deep, and some say less."""
    row = of_one(session, vim.VirtualMachine, vm.moref, ("snapshot",), f"list the snapshots of {vm.name}")
    tree = row.get("snapshot")
    if tree is None or tree.currentSnapshot is None:
        return
    current = tree.currentSnapshot._GetMoId()
    line = next(
        (found for root in snapshot_tree(tree.rootSnapshotList) for found in _line(root, current)), ()
    )
    if len(line) >= MAX_SNAPSHOTS:
        raise SnapshotFailed(
            f"{session.where}: {vm.name} ({vm.moref}) has {len(line)} snapshots in a row, and a host makes "
            f"no more than {MAX_SNAPSHOTS}: {', '.join(repr(one.name) for one in line[:_NAMED])}...",
            remedy="remove those that nobody needs in the host's client; vdkit cleanup finds vdkit's own",
        )


def _line(root: Snapshot, moref: str) -> Iterator[tuple[Snapshot, ...]]:
    """From ``root`` to the snapshot of that id, if it is below."""
    if root.moref == moref:
        yield (root,)
    for child in root.children:
        for rest in _line(child, moref):
            yield (root, *rest)


def _remove_after(
    error: BaseException,
    session: Session,
    vm: VirtualMachine,
    name: str,
    description: str,
    taken: Taken | None,
    deadline: float,
) -> None:
    """Remove after a failure; whatever goes wrong now must not hide that failure."""
    moref = taken.moref if taken else "unknown"
    try:
        if taken is not None:
            remove(session, vm, taken.moref, deadline=deadline)
            return
        # It failed or was interrupted while being made: the task may yet end, and leave a snapshot.
        _wait_for_creation(session, vm, deadline=CREATE_DEADLINE)
        for snapshot in find_leftovers(session, vm):
            if snapshot.name == name and snapshot.description == description:
                moref = snapshot.moref
                remove(session, vm, moref, deadline=deadline)
    except VixError as failure:
        # A creation that the host refused outright left nothing to speak of.
        refused = taken is None and moref == "unknown" and isinstance(error, VixError) and not error.retryable
        if not refused:
            error.add_note(f"{_left_behind(session, vm, name, moref, failure)}; {_REMEDY}")


def _start_removal(error: BaseException, session: Session, vm: VirtualMachine, name: str, moref: str) -> None:
    """Interrupted while it was removed, perhaps before the host was asked: so ask, and wait for nothing."""
    snapshot = session.managed(vim.vm.Snapshot, moref)
    what = f"remove snapshot {moref} of {vm.name} ({vm.moref})"
    try:
        session.call(what, lambda: snapshot.RemoveSnapshot_Task(False, True))
    except (ObjectNotFound, ObjectBusy):
        return  # the host is at it, or done
    except VixError as failure:
        error.add_note(f"{_left_behind(session, vm, name, moref, failure)}; {_REMEDY}")


def _wait_for_creation(session: Session, vm: VirtualMachine, *, deadline: float) -> None:
    until = time.monotonic() + deadline
    while time.monotonic() < until and any(
        "createsnapshot" in task.act for task in tasks.running(session, vm)
    ):
        session.sleep(BUSY_FIRST)


def _left_behind(session: Session, vm: VirtualMachine, name: str, moref: str, error: VixError) -> str:
    what = f"snapshot {name!r} ({moref}) of {vm.name} ({vm.moref})"
    return f"{session.where}: {what} could not be removed: {error.message}"
